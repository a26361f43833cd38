"""Auxiliary losses about frames: which shape each cell shows, used during training only.

A caption says little about many pixels, so from captions alone a small network needs many thousands
of clips until it sees motion. During training, linear heads therefore read from each cell (the
28 x 28 pixels of one vision token) which shape is there and where, and, after the first layers of
the decoder, how far it has moved. The heads are not part of the checkpoint.

Letters: V vision tokens, N frames, D hidden size.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.demo.scenes import COLOURS, EVENTS, MOTIONS, SHAPES, TEXT_BAND, WORDS, Scene

CELL_PX = 28
LAYER = 1  # decoder layer after which motion is read
_IGNORED = -100  # the `ignore_index` of `F.cross_entropy`
_CLASSES = {
    "shape": 1 + len(SHAPES),
    "colour": 1 + len(COLOURS),
    "motion": len(MOTIONS),
    "word": 2 + len(WORDS),  # none, a number, or one of the words
    "tens": 10,
    "ones": 10,
    "place": 9,  # of the shape, in a grid of 3 x 3
    "event": 1 + 2 * len(EVENTS),  # none so far, or one of them, early or late
}
NAMES = tuple(_CLASSES)
_OF_FEATURES = ("shape", "colour", "word", "tens", "ones", "place")
_OF_HIDDEN = ("shape", "colour", "motion", "word", "event")
_EVENT = NAMES.index("event")
_SEEN_ENOUGH = 0.35  # share of a clip that must have been seen before motion is asked for


@dataclass(frozen=True, kw_only=True)
class Hints:
    """The hints for all cells of one clip or batch."""

    classes: NDArray[np.int16]  # [V, classes], in the order of NAMES
    places: NDArray[np.float32]  # [V, 6] x, y, radius, and their change since the shape appeared
    is_shape: NDArray[np.bool_]  # [V] whether the cell shows a shape, and `places` is valid

    @staticmethod
    def joined(parts: "list[Hints]") -> "Hints":
        """Concatenate hints."""
        names = ("classes", "places", "is_shape")
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return Hints(**arrays)


def hints_of(scene: Scene, u: NDArray[np.float64], width_px: int, height_px: int) -> Hints:
    """Compute the hints for the frames at times `u` [N], frame by frame and row by row."""
    columns, rows = -(-width_px // CELL_PX), -(-height_px // CELL_PX)  # padded
    x = (np.arange(columns) + 0.5) * CELL_PX
    y = (np.arange(rows) + 0.5) * CELL_PX
    classes = np.full((len(u), rows, columns, len(NAMES)), _IGNORED, np.int16)
    classes[..., [0, 1, _EVENT]] = 0
    places = np.zeros((len(u), rows, columns, 6), np.float32)
    nearest = np.full((len(u), rows, columns), np.inf)
    for index, shape in enumerate(scene.shapes):
        xy, radius = shape.xy(u), shape.radius(u)
        reach = CELL_PX / 2 + 0.6 * radius * min(width_px, height_px)
        dx = abs(xy[:, :1] * width_px - x)[:, None, :]
        dy = abs(xy[:, 1:] * height_px - y)[:, :, None]
        visible = scene.visible(index, u)
        distance = np.maximum(dx, dy) / reach[:, None, None]
        is_here = (distance < 1) & (distance < nearest) & visible[:, None, None]
        nearest = np.where(is_here, distance, nearest)
        now = np.column_stack((xy, 2 * radius))  # [N, 3]
        first = int(np.flatnonzero(visible)[0]) if visible.any() else 0
        labels = np.full((len(u), len(NAMES)), _IGNORED, np.int16)
        labels[:, 0] = 1 + SHAPES.index(shape.shape)
        labels[:, 1] = _colours(scene, index, u)
        labels[u - u[first] > _SEEN_ENOUGH, 2] = MOTIONS.index(shape.motion)
        thirds = (xy * 3).astype(int)
        labels[:, NAMES.index("place")] = thirds[:, 1] * 3 + thirds[:, 0]
        labels[:, _EVENT] = _events(scene, index, u)
        frame, row, column = is_here.nonzero()
        classes[frame, row, column] = labels[frame]
        places[frame, row, column] = np.column_stack((now - 0.5, 3 * (now - now[first])))[frame]
    _hint_lost(classes, scene, u)
    _hint_text(classes, scene, TEXT_BAND * height_px)
    return Hints(
        classes=classes.reshape(-1, len(NAMES)),
        places=places.reshape(-1, 6),
        is_shape=np.isfinite(nearest).ravel(),
    )


def no_hints() -> Hints:
    """Return hints for no cells."""
    return Hints(
        classes=np.zeros((0, len(NAMES)), np.int16),
        places=np.zeros((0, 6), np.float32),
        is_shape=np.zeros(0, bool),
    )


def _colours(scene: Scene, index: int, u: NDArray[np.float64]) -> NDArray[np.int16]:
    names, event = list(COLOURS), scene.event
    colours = np.full(len(u), 1 + names.index(scene.shapes[index].colour), np.int16)
    if event is not None and event.shape == index and event.kind == "turns":
        colours[u >= event.u] = 1 + names.index(event.colour)
    return colours


def _events(scene: Scene, index: int, u: NDArray[np.float64]) -> NDArray[np.int16]:
    """Return what has happened to shape `index` by the times `u`."""
    event = scene.event
    if event is None or event.shape != index:
        return np.zeros(len(u), np.int16)
    number = 1 + 2 * EVENTS.index(event.kind) + (event.when == "late")
    return np.where(u >= event.u, number, 0).astype(np.int16)


def _hint_lost(classes: NDArray[np.int16], scene: Scene, u: NDArray[np.float64]) -> None:
    """Mark the cells where a shape was last seen with the event that it has disappeared."""
    event = scene.event
    if event is None or event.kind != "disappears":
        return
    number = int(_events(scene, event.shape, np.ones(1))[0])
    colour = 1 + list(COLOURS).index(scene.shapes[event.shape].colour)
    before = np.flatnonzero(u < event.u)
    if len(before):
        was_here = classes[before[-1], ..., 1] == colour
        lost = classes[u >= event.u]
        lost[:, was_here, _EVENT] = number
        classes[u >= event.u] = lost


def _hint_text(classes: NDArray[np.int16], scene: Scene, band_px: float) -> None:
    """Mark the cells across the middle of the text band with the whole text."""
    row = classes[:, int(band_px / 2 / CELL_PX)]
    word = 0 if not scene.text else 1 if scene.text.isdigit() else 2 + WORDS.index(scene.text)
    row[..., 3] = word
    if word == 1:
        row[..., 4:6] = [int(digit) for digit in scene.text]


class HintHeads(nn.Module):
    """Linear heads that read hints from features and hidden states."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.of_features = nn.ModuleDict(
            {name: nn.Linear(hidden_size, _CLASSES[name]) for name in _OF_FEATURES}
        )
        self.of_hidden = nn.ModuleDict(
            {name: nn.Linear(hidden_size, _CLASSES[name]) for name in _OF_HIDDEN}
        )
        self.place_of_features = nn.Linear(hidden_size, 3)
        self.place_of_hidden = nn.Linear(hidden_size, 6)

    def forward(self, features: Tensor, hidden: Tensor, hints: Hints) -> tuple[Tensor, Tensor]:
        """Return the loss of both readings, and the accuracy of motion.

        `features` [V, D] is the output of the projector for the cells of the hints, and `hidden`
        [V, D] that of decoder layer LAYER.
        """
        features, hidden = (F.layer_norm(x, x.shape[-1:]) for x in (features, hidden))
        classes = torch.from_numpy(hints.classes).long()
        is_shape = torch.from_numpy(hints.is_shape)
        places = torch.from_numpy(hints.places)[is_shape]
        loss = F.mse_loss(self.place_of_features(features[is_shape]), places[:, :3]) * 8
        loss = loss + F.mse_loss(self.place_of_hidden(hidden[is_shape]), places) * 4
        for heads, x in ((self.of_features, features), (self.of_hidden, hidden)):
            for name, head in heads.items():
                targets = classes[:, NAMES.index(name)]
                asked = targets != _IGNORED
                if asked.any():
                    loss = loss + 0.5 * _balanced(head(x[asked]), targets[asked], name)
        asked = classes[:, 2] != _IGNORED
        motion = self.of_hidden["motion"](hidden[asked]).argmax(-1) == classes[asked, 2]
        return loss, motion.float().sum() / max(1, len(motion))


def _balanced(logits: Tensor, targets: Tensor, name: str) -> Tensor:
    """Return a cross-entropy in which the many cells that show nothing count less."""
    weight = torch.ones(logits.shape[-1])
    if name in ("shape", "colour", "word", "event"):
        weight[0] = 0.2
    return F.cross_entropy(logits, targets, weight)
