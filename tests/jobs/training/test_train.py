from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.demo.language import (
    LETTERS,
    VIDEO_PROMPTS,
    caption,
    describe_in_words,
    image_questions,
    questions,
)
from jobs.demo.scenes import (
    COLOURS,
    EVENTS,
    MOTIONS,
    SHAPES,
    Difficulty,
    draw,
    first_seed,
    frame_times,
    random_scene,
)
from jobs.training.answer_hints import ANSWERS, NOT_AN_OPTION, NOT_GIVEN, asked_about
from jobs.training.balance import LoadBalancer
from jobs.training.curriculum import STAGES, Stage
from jobs.training.export import export, write_empty_checkpoint
from jobs.training.hints import NAMES, hints_of
from jobs.training.learner import Learner, Student, backward
from jobs.training.lessons import KINDS, Teacher
from jobs.training.logbook import LogBook
from jobs.training.optimizer import orthogonal
from jobs.training.train import SNAPSHOT, Progress, TrainConfig, initialise, train
from jobs.training.turns import asked_attributes, turns_about
from model.config import KimiVLConfig
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.network.kimi_vl import KimiVL
from model.network.moe import Router

STAGE = Stage(
    goals={},
    until=10**9,
    conversations=4,
    sizes=((56, 56), (84, 56)),
    num_frames=(1, 2),
    difficulty=Difficulty(),
)
ONE = TrainConfig(steps=4, num_processes=1, warmup_steps=1, decay_steps=2, log_steps=2)


@pytest.fixture(scope="module")
def empty_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("empty")
    write_empty_checkpoint(directory)
    return directory


@pytest.fixture
def model(empty_checkpoint: Path) -> KimiVL:
    torch.manual_seed(0)
    model = KimiVL(KimiVLConfig.from_checkpoint(empty_checkpoint))
    initialise(model)
    return model


@pytest.fixture
def student(model: KimiVL) -> Student:
    return Student(model)


@pytest.fixture(autouse=True)
def _keep_threads() -> object:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_gives_the_same_weights(
    tmp_path: Path, empty_checkpoint: Path
) -> None:
    whole = train(tmp_path / "whole", ONE, [STAGE], empty_checkpoint)
    for _ in range(3):  # each stops after a step
        train(tmp_path / "parts", ONE, [STAGE], empty_checkpoint, max_s=0)
    parts = train(tmp_path / "parts", ONE, [STAGE], empty_checkpoint)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name
    assert (tmp_path / "parts" / SNAPSHOT).exists()
    assert len((tmp_path / "whole" / "log.jsonl").read_text().splitlines()) == 2


def test_steps_that_are_learned_again_stand_in_the_log_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in (2, 4, 6)))
    LogBook(path, log_steps=2, last_step=5)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'


def test_lessons_ask_exactly_what_inference_will_ask(empty_checkpoint: Path) -> None:
    teacher = Teacher(empty_checkpoint)
    stage = replace(STAGE, caption=1.0, num_questions=0, timestamps=0.0, num_frames=(2,))
    stage = replace(stage, sizes=((56, 56),))
    lesson = teacher.lesson(stage, 1, 5)
    (ids,), (targets,) = lesson.token_ids, lesson.targets
    frame = np.zeros((56, 56, 3), np.uint8)
    prompts = [
        teacher.processor.prompt([frame, frame, text]).token_ids.tolist() for text in VIDEO_PROMPTS
    ]
    assert ids[: targets[0]].tolist() in prompts
    assert len(lesson.patches) == lesson.grid_hw.prod(1).sum() == 32
    answer = teacher.processor.tokenizer.decode(ids[targets[:-1]].tolist())
    assert answer == caption(random_scene(5, STAGE.difficulty))
    assert ids[targets[-1]] in teacher.processor.config.stop_token_ids


def test_targets_are_the_answers_and_nothing_else(empty_checkpoint: Path) -> None:
    teacher = Teacher(empty_checkpoint)
    lesson = teacher.lesson(replace(STAGE, num_questions=3), 8, 100)
    im_end = teacher.processor.tokenizer.special("<|im_end|>")
    middle = teacher.processor.tokenizer.special("<|im_middle|>")
    for ids, targets, kinds in zip(lesson.token_ids, lesson.targets, lesson.kinds, strict=True):
        assert len(targets) == len(kinds)
        assert kinds.max() < len(KINDS)
        first_of_turns = [at for at in targets if at - 1 not in targets]
        assert all(ids[at - 1] == middle for at in first_of_turns)
        assert (ids[targets] == im_end).sum() == len(first_of_turns)


def test_the_bias_rises_for_experts_with_little_work(model: KimiVL, empty_checkpoint: Path) -> None:
    balancer = LoadBalancer(model)
    backward(Student(model), Teacher(empty_checkpoint).lesson(STAGE, 4, 0))
    loads = {router: load.clone() for router, load in balancer.loads.items()}
    least, most = balancer.extremes()
    assert 0 <= least < 1 < most
    balancer.step(0.01)
    for router, load in loads.items():
        assert isinstance(router, Router)
        expected = 0.01 * (load.mean() - load).sign()
        assert torch.allclose(router.e_score_correction_bias, expected)


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(model: KimiVL, empty_checkpoint: Path) -> None:
    seed = first_seed("train", 0, 0)
    student = Student(model)
    with Learner(student, empty_checkpoint, 2) as learner:
        learner.learn(STAGE, seed)
    together = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    student.zero_grad()
    teacher = Teacher(empty_checkpoint)
    for start in (0, 2):
        backward(student, teacher.lesson(STAGE, 2, seed + start))
    apart = [p.grad / 2 for p in model.parameters() if p.grad is not None]
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_an_exported_checkpoint_loads_and_answers(
    model: KimiVL, empty_checkpoint: Path, tmp_path: Path
) -> None:
    export(model, empty_checkpoint, tmp_path)
    engine = Engine.from_checkpoint(tmp_path, EngineConfig(cache_gib=0.1))
    prompt = Teacher(tmp_path).processor.prompt([np.zeros((56, 84, 3), np.uint8), "What?"])
    engine.add("a", prompt, SamplingParams(max_tokens=2))
    finished = []
    while engine.has_work:
        finished += engine.step()
    assert len(finished) == 1


def test_a_stage_ends_when_its_goals_are_reached_or_its_steps_are_done() -> None:
    first = replace(STAGE, goals={"motion": 0.9, "shape": 0.8}, until=50)
    stages = [first, replace(STAGE, until=70), STAGE]
    progress = Progress(steps=10, accuracy={"motion": 0.95, "shape": 0.7})
    assert progress.enter_stage(stages) is first
    progress.accuracy["shape"] = 0.85
    assert progress.enter_stage(stages) is stages[1]
    assert progress.accuracy == {}
    progress.steps = 69
    assert progress.enter_stage(stages) is stages[1]
    progress.steps = 70
    assert progress.enter_stage(stages) is stages[2]
    progress.steps = 10**6
    assert progress.enter_stage(stages) is stages[2]
    late = Progress(steps=50, accuracy={"motion": 0.1})
    assert late.enter_stage(stages) is stages[1]


@pytest.mark.slow
def test_the_length_of_a_run_matters_only_when_its_rates_fall(
    tmp_path: Path, empty_checkpoint: Path
) -> None:
    whole = train(tmp_path / "whole", ONE, [STAGE], empty_checkpoint)
    longer = replace(ONE, steps=ONE.steps + 5)
    train(tmp_path / "parts", longer, [STAGE], empty_checkpoint, max_s=0)
    parts = train(tmp_path / "parts", ONE, [STAGE], empty_checkpoint)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name


def test_a_scene_told_in_words_has_no_patches_and_its_answers_stand_in_it(
    student: Student, empty_checkpoint: Path
) -> None:
    teacher = Teacher(empty_checkpoint)
    stage = replace(STAGE, sizes=(), num_frames=(), in_words=1.0, questions_in_words=3, choices=1.0)
    lesson = teacher.lesson(stage, 6, 0)
    assert lesson.num_clips == len(lesson.patches) == len(lesson.grid_hw) == 0
    for index, ids in enumerate(lesson.token_ids):
        text = teacher.processor.tokenizer.decode(ids.tolist())
        assert describe_in_words(random_scene(index, STAGE.difficulty)) in text
    outcome = backward(student, lesson)
    assert (outcome.conversations, outcome.clips) == (6, 0)
    assert outcome.asked[KINDS.index("q_letter")] == sum(map(len, lesson.targets)) / 2


def test_told_scenes_are_spread_evenly_over_a_batch(empty_checkpoint: Path) -> None:
    teacher = Teacher(empty_checkpoint)
    lesson = teacher.lesson(replace(STAGE, in_words=0.25), 8, 0)
    assert lesson.num_clips == 6
    assert teacher.lesson(replace(STAGE, in_words=0.25), 4, 0).num_clips == 3


def test_answer_hints_point_at_options_and_at_the_places_of_answers(
    empty_checkpoint: Path,
) -> None:
    teacher = Teacher(empty_checkpoint)
    decode = teacher.processor.tokenizer.decode
    stage = replace(STAGE, in_words=0.5, choices=0.7, num_questions=3, options=(2, 3, 4))
    lesson = teacher.lesson(stage, 12, 50)
    ids, hints = np.concatenate(lesson.token_ids), lesson.answer_hints
    middle = teacher.processor.tokenizer.special("<|im_middle|>")
    num_letters = num_options = 0
    for place, answer, letter in zip(hints.places, hints.answers, hints.letters, strict=True):
        if letter == NOT_AN_OPTION:
            assert ids[place] == middle
            said = decode([int(ids[place + 1])])
            num_letters += said in LETTERS
            assert said in LETTERS or ANSWERS[answer].startswith(said)
        else:
            line = f"\n{LETTERS[letter]}. {ANSWERS[answer]}\n"
            assert decode(ids[place - 9 : place + 1].tolist()).endswith(line)
            num_options += 1
    assert num_options > 2 * num_letters > 0


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        pytest.param("Which shape is orange?", (2, 0), id="a colour"),
        pytest.param("What colour is the cross?", (0, 4), id="a shape"),
        pytest.param("Where is the red circle?\nA. blue square", (1, 1), id="no option"),
        pytest.param("How many shapes are there?", (0, 0), id="neither"),
    ],
)
def test_a_question_names_what_it_asks_about(question: str, asked: tuple[int, int]) -> None:
    assert asked_about(question) == asked


def test_what_is_asked_is_told_at_answers_where_the_stage_wants_it(
    student: Student, empty_checkpoint: Path
) -> None:
    teacher = Teacher(empty_checkpoint)
    not_given = teacher.lesson(STAGE, 6, 0).answer_hints
    lesson = teacher.lesson(replace(STAGE, gives_asked=True), 6, 0)
    given = lesson.answer_hints
    is_answer = given.letters == NOT_AN_OPTION
    assert (not_given.colours == NOT_GIVEN).all()
    assert ((given.colours != NOT_GIVEN) == is_answer).all()
    assert ((given.shapes != NOT_GIVEN) == is_answer).all()
    backward(student, lesson)
    assert student.answer_heads.of_colour.weight.grad is not None


def test_every_question_has_an_answer_that_hints_know() -> None:
    for seed in range(300):
        scene = random_scene(seed, Difficulty(event=0.5, text=0.5))
        for question in [*questions(scene), *image_questions(scene, 0.5)]:
            assert {question.answer, *question.wrong} <= set(ANSWERS)


def test_hints_say_what_is_drawn_in_a_cell_or_right_beside_it() -> None:
    colours, num_checked = np.array(list(COLOURS.values())), 0
    for seed in range(40):
        scene = random_scene(seed, Difficulty(num_shapes=(0.5, 0.3, 0.2), event=0.5))
        u = frame_times(4)
        frames = draw(scene, u, 140, 100)
        hints = hints_of(scene, u, 140, 100)
        classes = hints.classes.reshape(4, 4, 5, -1)  # 100 pixels are padded to four cells
        shown = [SHAPES.index(shape.shape) + 1 for shape in scene.shapes]
        for frame, row, column in np.argwhere(classes[..., 0] > 0):
            label = classes[frame, row, column]
            assert label[0] in shown
            assert label[2] < 0 or MOTIONS[label[2]] in [shape.motion for shape in scene.shapes]
            top, left = max(0, 28 * row - 6), max(0, 28 * column - 6)  # or right beside it
            box = frames[frame, top : 28 * row + 34, left : 28 * column + 34]
            distances = np.abs(box.astype(int) - colours[label[1] - 1]).max(-1)
            assert distances.min() < 20, (seed, frame, row, column)
            num_checked += 1
        empty = classes[..., 0] == 0
        assert not hints.is_shape.reshape(4, 4, 5)[empty].any()
        if not scene.text:
            assert (classes[:, 0, :, NAMES.index("word")] == 0).all()
    assert num_checked > 300


def test_hints_tell_an_event_from_its_time_on_where_its_shape_is_or_was() -> None:
    u = frame_times(8)
    seen = set[str]()
    for seed in range(60):
        scene = random_scene(seed, Difficulty(num_shapes=(1.0, 0.0, 0.0), event=1.0, text=0.0))
        event = scene.event
        assert event is not None
        classes = hints_of(scene, u, 112, 84).classes.reshape(8, -1, len(NAMES))
        events = classes[..., NAMES.index("event")]
        number = 1 + 2 * EVENTS.index(event.kind) + (event.when == "late")
        assert not events[u < event.u].any()
        assert set(events[u >= event.u].ravel().tolist()) == {0, number}
        here = classes[..., NAMES.index("colour")] > 0
        assert (here & (events > 0)).any() == (event.kind != "disappears")
        seen.add(event.kind)
    assert seen == set(EVENTS)


def test_hints_of_a_moving_shape_point_where_it_goes() -> None:
    for seed in range(200):
        scene = random_scene(seed, Difficulty(num_shapes=(1.0, 0.0, 0.0), event=0.0, text=0.0))
        hints = hints_of(scene, frame_times(4), 112, 84)
        last = hints.places.reshape(4, -1, 6)[-1]
        change = last[hints.is_shape.reshape(4, -1)[-1]][:, 3:]
        expected = np.sign(np.subtract(scene.shapes[0].end_xy, scene.shapes[0].start_xy))
        assert len(change)
        assert (np.sign(change[:, :2].round(4)) == expected).all()
        growth = {"growing": 1, "shrinking": -1}.get(scene.shapes[0].motion, 0)
        assert (np.sign(change[:, 2].round(4)) == growth).all()


def test_orthogonal_brings_all_singular_values_near_one() -> None:
    stack = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(stack))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_stage_can_ask_which_of_several_shapes_has_what() -> None:
    stage = replace(STAGES[-1], caption=0.0, attributes=1.0, choices=0.0)
    for seed in range(20):
        scene = random_scene(seed, Difficulty(num_shapes=(0.0, 1.0, 0.0), event=0.0))
        kinds = [turn.kind for turn in turns_about(scene, None, stage, np.random.default_rng(seed))]
        num_asked = len(asked_attributes(questions(scene), scene))
        assert set(kinds[:num_asked]) <= {"q_shape", "q_colour"}
        assert set(kinds[num_asked:]).isdisjoint({"q_shape", "q_colour"})
    alone = random_scene(1, Difficulty(num_shapes=(1.0, 0.0, 0.0)))
    assert asked_attributes(questions(alone), alone) == []
