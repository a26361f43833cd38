import numpy as np
import pytest

from jobs.demo.language import (
    NUMBERS,
    PLACES,
    VERBS,
    caption,
    image_caption,
    questions,
    read_caption,
)
from jobs.demo.scenes import (
    COLOURS,
    DIRECTIONS,
    EVENTS,
    MOTIONS,
    SPLITS,
    Difficulty,
    Scene,
    draw,
    first_seed,
    frame_times,
    random_scene,
)

SOME_OF_ALL = Difficulty(num_shapes=(0.4, 0.3, 0.3))
SCENES = [random_scene(seed, SOME_OF_ALL) for seed in range(150)]
EVENTFUL = [random_scene(seed, Difficulty(event=1.0, text=0.0)) for seed in range(60)]


def centre_of(frame: np.ndarray, scene: Scene) -> np.ndarray:
    """Mean place (x, y) of the pixels that are not background, as fractions of the frame."""
    difference = np.abs(frame.astype(float) - scene.background_rgb).max(-1)
    y, x = np.nonzero(difference > 60)
    return np.array([x.mean() / frame.shape[1], y.mean() / frame.shape[0]])


def test_a_seed_gives_the_same_scene_and_picture() -> None:
    assert random_scene(7) == random_scene(7)
    assert random_scene(7) != random_scene(8)
    scene, u = random_scene(7), frame_times(3)
    assert np.array_equal(draw(scene, u, 112, 84), draw(scene, u, 112, 84))


def test_no_seed_belongs_to_two_splits() -> None:
    seen: set[int] = set()
    for seeds in SPLITS.values():
        assert not seen & {seeds.start, seeds.stop - 1}
        assert all(start not in seeds for start in seen)
        seen |= {seeds.start, seeds.stop - 1}
    assert first_seed("train", 5, 10) in SPLITS["train"]
    with pytest.raises(ValueError, match="outside of the train split"):
        first_seed("train", 2**20, 0)


def test_every_motion_colour_and_event_occurs() -> None:
    assert {shape.motion for scene in SCENES for shape in scene.shapes} == set(MOTIONS)
    assert {shape.colour for scene in SCENES for shape in scene.shapes} == set(COLOURS)
    assert {scene.event.kind for scene in EVENTFUL if scene.event} == set(EVENTS)
    assert {len(scene.shapes) for scene in SCENES} == {1, 2, 3}


def test_a_drawn_shape_moves_where_its_label_says() -> None:
    alone = Difficulty(num_shapes=(1.0, 0.0, 0.0), event=0.0, text=0.0)
    for seed in range(60):
        scene = random_scene(seed, alone)
        (shape,) = scene.shapes
        first, last = draw(scene, np.array([0.0, 1.0]), 200, 200)
        moved = centre_of(last, scene) - centre_of(first, scene)
        direction = np.array(DIRECTIONS.get(shape.motion, (0, 0)))
        assert np.array_equal(np.where(abs(moved) > 0.1, np.sign(moved), 0), direction)


def test_a_drawn_shape_grows_or_shrinks_as_its_label_says() -> None:
    alone = Difficulty(num_shapes=(1.0, 0.0, 0.0), event=0.0, text=0.0)
    for seed in range(60):
        scene = random_scene(seed, alone)
        frames = draw(scene, np.array([0.0, 1.0]), 200, 200).astype(float)
        sizes = (np.abs(frames - scene.background_rgb).max(-1) > 60).sum((1, 2))
        growth = sizes[1] / sizes[0]
        expected = {"growing": growth > 2, "shrinking": growth < 0.5}
        assert expected.get(scene.shapes[0].motion, 0.85 < growth < 1.15)


def test_shapes_stay_in_the_frame_and_apart() -> None:
    u = np.linspace(0, 1, 11)
    for scene in SCENES:
        for shape in scene.shapes:
            low, high = shape.xy(u) - shape.radius(u)[:, None], shape.xy(u).T + shape.radius(u)
            assert low.min() >= 0
            assert high.max() <= 1
        for index, shape in enumerate(scene.shapes):
            for other in scene.shapes[:index]:
                distance = np.hypot(*(shape.xy(u) - other.xy(u)).T)
                assert (distance > shape.radius(u) + other.radius(u)).all()


@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_is_seen_from_its_time_on(kind: str) -> None:
    scene = next(s for s in EVENTFUL if s.event and s.event.kind == kind and len(s.shapes) == 1)
    assert scene.event is not None
    times = np.array([scene.event.u - 0.01, scene.event.u + 0.01])
    before, after = draw(scene, times, 112, 84).astype(float)
    is_empty = [np.ptp(frame, axis=(0, 1)).max() == 0 for frame in (before, after)]
    assert is_empty == {"appears": [True, False], "disappears": [False, True]}.get(
        kind, [False, False]
    )
    if kind == "turns":
        assert abs(after - before).max() > 60


def test_text_is_drawn_above_the_shape() -> None:
    scene = next(scene for scene in SCENES if scene.text)
    (frame,) = draw(scene, np.array([0.5]), 224, 168)
    background = np.array(scene.background_rgb).astype(np.uint8)
    assert (frame[:50] != background).any()


def test_a_caption_reads_back_as_the_scene() -> None:
    for scene in [*SCENES, *EVENTFUL]:
        seen = read_caption(caption(scene))
        shapes = tuple((s.size, s.colour, s.shape, s.motion) for s in scene.shapes)
        assert seen.shapes == shapes
        assert (seen.background, seen.text) == (scene.background, scene.text)
        assert bool(seen.event) == (scene.event is not None)
        if scene.event is not None:
            assert scene.event.kind in seen.event
            assert seen.event.endswith(scene.event.when)


def test_an_image_caption_tells_of_no_motion() -> None:
    for scene in SCENES:
        words = image_caption(scene).replace(",", "").split()
        assert not {"moves", "stays", "grows", "shrinks"} & set(words)


def test_questions_have_one_right_answer() -> None:
    rng = np.random.default_rng(0)
    for scene in SCENES:
        for question in questions(scene):
            assert question.answer not in question.wrong
            choice = question.as_choice(rng)
            assert f"\n{choice.answer}. {question.answer}\n" in choice.text


def test_answers_agree_with_the_scene() -> None:
    for scene in SCENES:
        answers = {question.text: question.answer for question in questions(scene)}
        assert answers["How many shapes are there?"] == NUMBERS[len(scene.shapes) - 1]
        for shape in scene.shapes:
            (x, y) = shape.start_xy
            place = answers.get(f"Where is the {shape.name} at the start?", "")
            assert place in ("", PLACES[int(y * 3) * 3 + int(x * 3)])
            doing = answers.get(f"What does the {shape.name} do?", VERBS[shape.motion])
            assert doing == VERBS[shape.motion]
