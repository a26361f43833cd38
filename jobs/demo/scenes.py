"""Generate scenes with exact labels: their shapes, their events, and their pixels at any time.

A scene depends on its seed alone. Places are fractions of the frame's width and height, sizes are
fractions of its shorter side, and times are fractions `u` of the clip's duration, so a scene can be
drawn at any size and rate. Colours differ within a scene, and captions name shapes in the order of
COLOURS, so a scene has exactly one right caption.

Letters: N frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jobs.demo.drawing import cover_of, cover_of_text

Split = Literal["train", "validation", "test"]
# The splits share no seed.
SPLITS: dict[Split, range] = {
    "train": range(2**40),
    "validation": range(2**40, 2**41),
    "test": range(2**41, 2**42),
}

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (225, 35, 35),
    "orange": (250, 140, 20),
    "yellow": (245, 230, 40),
    "green": (30, 165, 50),
    "blue": (40, 70, 230),
    "purple": (150, 40, 190),
}
BACKGROUNDS = {"black": (12, 12, 12), "grey": (125, 125, 125), "white": (242, 242, 242)}
# Directions of motions along x (to the right) and y (down).
DIRECTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up left": (-1, -1),
    "up right": (1, -1),
    "down left": (-1, 1),
    "down right": (1, 1),
}
MOTIONS = ("still", *DIRECTIONS, "growing", "shrinking")
EVENTS = ("appears", "disappears", "turns")
WORDS = ("CAT", "DOG", "SUN", "MOON", "STAR", "TREE", "FISH", "BIRD", "HOME", "STOP")

TEXT_BAND = 0.3  # share of the frame's height, at its top, that is kept for written text


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """What may occur in a scene, and how often."""

    num_shapes: tuple[float, float, float] = (0.5, 0.36, 0.14)  # probability of 1, 2 and 3 shapes
    small: float = 0.5  # probability that a shape is small
    still: float = 0.15  # probability that a shape does not move
    event: float = 0.2  # probability of an event
    text: float = 0.1  # probability of written text, only in scenes with a single shape


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One shape and its path from u = 0 to u = 1."""

    shape: str
    colour: str
    rgb: tuple[float, float, float]  # the drawn colour, which is near the named one
    motion: str
    size: str  # "small", "large", or "" for one that grows or shrinks
    start_xy: tuple[float, float]
    end_xy: tuple[float, float]
    start_radius: float
    end_radius: float

    @property
    def name(self) -> str:
        """The name in captions and questions."""
        return f"{self.colour} {self.shape}"

    def xy(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the centres [N, 2] at times `u` [N]."""
        start, end = np.array(self.start_xy), np.array(self.end_xy)
        return start + (end - start) * u[:, None]

    def radius(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the radii [N] at times `u` [N]."""
        return self.start_radius + (self.end_radius - self.start_radius) * u


@dataclass(frozen=True, kw_only=True)
class Event:
    """One change of one shape, at time `u`."""

    kind: str  # of EVENTS
    shape: int  # index in `Scene.shapes`
    u: float
    colour: str = ""  # the new colour, if it turns

    def visible_at(self, u: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return at which times `u` [N] the shape is visible."""
        if self.kind == "turns":
            return np.ones(len(u), bool)
        return u >= self.u if self.kind == "appears" else u < self.u

    @property
    def when(self) -> str:
        """The part of the clip in which it happens; never the middle."""
        return "early" if self.u < 0.5 else "late"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The content of one clip."""

    seed: int
    shapes: tuple[Shape, ...]
    background: str
    background_rgb: tuple[float, float, float]
    event: Event | None
    text: str
    duration_s: float

    def visible(self, shape: int, u: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return at which times `u` [N] the shape with this index is visible."""
        if self.event is None or self.event.shape != shape:
            return np.ones(len(u), bool)
        return self.event.visible_at(u)


def random_scene(seed: int, difficulty: Difficulty | None = None) -> Scene:
    """Make the scene of a seed; equal arguments give equal scenes."""
    difficulty = difficulty or Difficulty()
    rng = np.random.default_rng(seed)
    background = str(rng.choice(list(BACKGROUNDS)))
    count = int(rng.choice(3, p=difficulty.num_shapes)) + 1
    text = _random_text(rng) if count == 1 and rng.random() < difficulty.text else ""
    has_event = not text and rng.random() < difficulty.event
    shapes = _random_shapes(rng, count, difficulty, bool(text))
    return Scene(
        seed=seed,
        shapes=shapes,
        background=background,
        background_rgb=_near(rng, BACKGROUNDS[background], 10),
        event=_random_event(rng, shapes) if has_event else None,
        text=text,
        duration_s=float(rng.choice([1.6, 2.0, 2.4, 3.2, 4.0])),
    )


def frame_times(num_frames: int) -> NDArray[np.float64]:
    """Return the middles of `num_frames` equal parts of a clip, as fractions of its duration."""
    return (np.arange(num_frames) + 0.5) / num_frames


def draw(scene: Scene, u: NDArray[np.float64], width_px: int, height_px: int) -> NDArray[np.uint8]:
    """Draw the frames [N, height_px, width_px, 3] of a scene at times `u` [N]."""
    frames = np.empty((len(u), height_px, width_px, 3), np.float32)
    frames[:] = scene.background_rgb
    for index, shape in enumerate(scene.shapes):
        centres = shape.xy(u) * (width_px, height_px)
        radius = shape.radius(u) * min(width_px, height_px)
        cover, corners = cover_of(shape.shape, centres, radius, (width_px, height_px))
        rgb = np.tile(np.array(shape.rgb, np.float32), (len(u), 1))
        if scene.event is not None and scene.event.shape == index:
            _apply(scene.event, u, cover, rgb)
        side = cover.shape[1]
        paint = cover[..., None] * rgb[:, None, None]
        for number, (left, top) in enumerate(corners):
            box = frames[number, top : top + side, left : left + side]
            box *= 1 - cover[number, ..., None]
            box += paint[number]
    if scene.text:
        ink = 0.0 if scene.background == "white" else 255.0
        frames += cover_of_text(scene.text, width_px, height_px, TEXT_BAND)[..., None] * (
            ink - frames
        )
    return frames.astype(np.uint8)


def _random_text(rng: np.random.Generator) -> str:
    return str(rng.choice(WORDS)) if rng.random() < 0.5 else str(rng.integers(10, 100))


def _random_shapes(
    rng: np.random.Generator, count: int, difficulty: Difficulty, has_text: bool
) -> tuple[Shape, ...]:
    """Draw shapes of different colours, in the order of COLOURS, that never hide each other."""
    colours = sorted(rng.choice(len(COLOURS), count, replace=False))
    names = [list(COLOURS)[index] for index in colours]
    top = TEXT_BAND if has_text else 0.0
    while True:
        shapes: list[Shape] = []
        for name in names:
            shape = _placed(rng, name, count, difficulty, top, shapes)
            if shape is None:
                break
            shapes.append(shape)
        if len(shapes) == count:
            return tuple(shapes)


def _placed(
    rng: np.random.Generator,
    colour: str,
    count: int,
    difficulty: Difficulty,
    top: float,
    others: Sequence[Shape],
) -> Shape | None:
    """Draw a shape that keeps away from the others at all times; None if none was found."""
    is_still = rng.random() < difficulty.still
    motion = "still" if is_still else str(rng.choice(MOTIONS[1:]))
    kind = str(rng.choice(SHAPES))
    is_small = count > 1 or top > 0 or rng.random() < difficulty.small
    for _ in range(40):
        shape = _random_shape(rng, colour, kind, motion, is_small=is_small, count=count, top=top)
        if all(_keeps_away(shape, other) for other in others):
            return shape
    return None


def _random_shape(
    rng: np.random.Generator,
    colour: str,
    kind: str,
    motion: str,
    *,
    is_small: bool,
    count: int,
    top: float,
) -> Shape:
    radius = rng.uniform(0.145, 0.165) if is_small else rng.uniform(0.215, 0.24)
    radius *= 0.88 if count == 3 else 1.0
    start_radius = end_radius = radius
    if motion in ("growing", "shrinking"):
        low, high = (0.1, 0.18) if is_small else (0.12, 0.26)
        start_radius, end_radius = (low, high) if motion == "growing" else (high, low)
    margin = max(start_radius, end_radius) * 1.05
    low, high = np.array([margin, margin + top]), np.array([1 - margin, 1 - margin])
    path = np.array(DIRECTIONS.get(motion, (0, 0))) * rng.uniform(0.3, 0.55, 2)
    path = np.clip(path, -(high - low), high - low)
    # The middle of the path is chosen so that both ends are within the frame.
    middle = rng.uniform(low + abs(path) / 2, high - abs(path) / 2)
    start, end = middle - path / 2, middle + path / 2
    return Shape(
        shape=kind,
        colour=colour,
        rgb=_near(rng, COLOURS[colour], 14),
        motion=motion,
        size="" if motion in ("growing", "shrinking") else "small" if is_small else "large",
        start_xy=(float(start[0]), float(start[1])),
        end_xy=(float(end[0]), float(end[1])),
        start_radius=float(start_radius),
        end_radius=float(end_radius),
    )


def _keeps_away(shape: Shape, other: Shape) -> bool:
    """Tell whether two shapes never touch, in a frame of any usual format."""
    u = np.linspace(0, 1, 9)
    gap = shape.radius(u) + other.radius(u)
    away = np.abs(shape.xy(u) - other.xy(u))
    return bool((np.hypot(*away.T) > 1.05 * gap).all())


def _random_event(rng: np.random.Generator, shapes: Sequence[Shape]) -> Event:
    index = int(rng.integers(len(shapes)))
    kind = str(rng.choice(EVENTS))
    others = [name for name in COLOURS if name not in {shape.colour for shape in shapes}]
    return Event(
        kind=kind,
        shape=index,
        u=float(rng.choice([rng.uniform(0.27, 0.4), rng.uniform(0.6, 0.73)])),
        colour=str(rng.choice(others)) if kind == "turns" else "",
    )


def _near(
    rng: np.random.Generator, rgb: tuple[int, int, int], spread: float
) -> tuple[float, float, float]:
    red, green, blue = np.clip(np.array(rgb) + rng.uniform(-spread, spread, 3), 0, 255)
    return float(red), float(green), float(blue)


def _apply(
    event: Event, u: NDArray[np.float64], cover: NDArray[np.float32], rgb: NDArray[np.float32]
) -> None:
    """Change how the shape of an event covers the frames, and its colour."""
    cover[~event.visible_at(u)] = 0
    if event.kind == "turns":
        rgb[u >= event.u] = COLOURS[event.colour]


def first_seed(split: Split, run_seed: int, number: int) -> int:
    """Return the seed of clip `number` of a run, in the range of its split."""
    seeds = SPLITS[split]
    seed = seeds.start + run_seed * 2**32 + number
    if seed not in seeds:
        raise ValueError(f"seed {seed} is outside of the {split} split; use a smaller run seed")
    return seed
