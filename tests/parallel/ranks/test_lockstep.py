"""Ranks as threads that answer together, on the tiny network: how each of them ends and fails."""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import numpy as np
import pytest
import torch
import torch.distributed as dist

from model.config import KimiVLConfig
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.sequence import Completion, SamplingParams
from model.inputs.processor import Processor
from model.inputs.prompt import Prompt, PromptError
from parallel.experts.load import ExpertLoad, add
from parallel.experts.placement import place
from parallel.experts.policy import DispatchChoice, Exchange
from parallel.experts.topology import even_topologies
from parallel.ranks.ep_engine import ExpertParallelEngine, load_shard
from parallel.ranks.lockstep import Lockstep, LockstepError, StepPlan
from tests.parallel.rank_threads import run_ranks
from tests.tiny import tiny_checkpoint

CONFIG = EngineConfig(max_batch_size=3, max_step_tokens=64, cache_gib=0.01)
Work = Mapping[str, tuple[Prompt, int]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def work(checkpoint) -> Work:
    """Prompts of all kinds (short, with an image, of several chunks) and the lengths of answers."""
    processor = Processor.from_checkpoint(checkpoint)
    image = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    return {
        "short": (processor.prompt(["a"]), 2),
        "image": (processor.prompt([image, "what?"]), 9),
        "chunks": (processor.prompt(["red circle " * 30]), 5),
        "long": (processor.prompt(["blue"]), 40),
        "same": (processor.prompt(["blue"]), 3),
        "two": (processor.prompt([image, image, "which?"]), 17),
    }


def answer_alone(checkpoint, work: Work) -> dict[str, tuple[int, ...]]:
    engine = Engine.from_checkpoint(checkpoint, CONFIG)
    for name, (prompt, num_tokens) in work.items():
        engine.add(name, prompt, SamplingParams(max_tokens=num_tokens))
    answers: dict[str, tuple[int, ...]] = {}
    while engine.has_work:
        answers |= tokens_of(engine.step())
    return answers


def tokens_of(finished) -> dict[str, tuple[int, ...]]:
    return {name: done.token_ids for name, done in finished if isinstance(done, Completion)}


def load_rank(
    checkpoint, group: dist.ProcessGroup, choice: DispatchChoice, load: ExpertLoad | None = None
) -> ExpertParallelEngine:
    """Do as `load_ep_engine` on a group of threads; with a load, each rank has one more copy."""
    text = KimiVLConfig.from_checkpoint(checkpoint).text
    topologies = even_topologies(text, group.size())
    if load is not None:
        topologies = place(load, group.size(), num_copies=1)
    return load_shard(checkpoint, CONFIG, topologies, group, Exchange(choice))


def answer_together(
    checkpoint,
    work: Work,
    shares: Sequence[Sequence[str]],
    choice: DispatchChoice = "auto",
    load: ExpertLoad | None = None,
    own_steps: Sequence[str] = (),
) -> dict[str, tuple[int, ...]]:
    """Let each rank answer its part; rank 0 ends the group when all have."""
    answers: dict[str, tuple[int, ...]] = {}
    torch.set_num_threads(1)

    def on_rank(group: dist.ProcessGroup) -> None:
        engine = load_rank(checkpoint, group, choice, load)
        for name in shares[group.rank()]:
            prompt, num_tokens = work[name]
            params = SamplingParams(max_tokens=num_tokens)
            engine.add(name, prompt, params, own_step=name in own_steps)
        while len(answers) < len(work) or group.rank():
            try:
                answers.update(tokens_of(engine.step()))
            except LockstepError as error:
                ends.append(str(error))
                return
        engine.close()

    ends: list[str] = []
    run_ranks(len(shares), on_rank)
    assert ends == ["rank 0 of the group stopped: it was closed"] * (len(shares) - 1)
    return answers


@pytest.mark.parametrize("choice", ["all_to_all", "all_gather"])
@pytest.mark.parametrize(
    "shares",
    [
        pytest.param([["short", "image", "chunks", "long", "same", "two"]], id="one rank"),
        pytest.param([["short", "long", "two"], ["image", "chunks", "same"]], id="two ranks"),
        pytest.param([[], ["short", "image", "chunks", "long", "same", "two"]], id="one idle"),
        pytest.param([["long"], ["short"], ["image", "two"], ["chunks", "same"]], id="four ranks"),
    ],
)
def test_ranks_together_write_what_one_engine_alone_writes(checkpoint, work, shares, choice):
    assert answer_together(checkpoint, work, shares, choice) == answer_alone(checkpoint, work)


@pytest.mark.parametrize("own_steps", [["short", "chunks"], ["same", "image", "two"]])
def test_prompts_with_steps_for_themselves_hold_up_no_rank(checkpoint, work, own_steps):
    shares = [["short", "long", "two"], ["image", "chunks", "same"]]
    answers = answer_together(checkpoint, work, shares, own_steps=own_steps)
    assert answers == answer_alone(checkpoint, work)


@pytest.mark.parametrize("choice", ["all_to_all", "all_gather"])
def test_placed_experts_and_their_copies_write_the_same(checkpoint, work, choice):
    chance = np.random.default_rng(3)
    load = {layer: chance.permutation(np.arange(1, 17) ** 3) for layer in (1, 2)}
    shares = [["long", "two"], ["image", "chunks", "same", "short"]]
    topologies = place(load, 2, num_copies=1)
    assert topologies[1].local_experts != topologies[2].local_experts
    assert [len(experts) for experts in topologies[1].local_experts] == [9, 9]
    answers = answer_together(checkpoint, work, shares, choice, load)
    assert answers == answer_alone(checkpoint, work)


def test_ranks_count_each_token_of_each_expert_once(checkpoint, work):
    loads: list[ExpertLoad] = []
    num_tokens: list[float] = []

    def on_rank(group: dist.ProcessGroup) -> None:
        engine = load_rank(checkpoint, group, "auto", {1: np.arange(16), 2: np.ones(16, int)})
        prompt, length = work["image" if group.rank() else "chunks"]
        engine.add("", prompt, SamplingParams(max_tokens=length))
        for _ in range(30):
            engine.step()
        loads.append(engine.expert_load())
        num_tokens.append(engine.stats()["tokens"])

    run_ranks(2, on_rank)
    load = add(loads)
    assert sorted(load) == [1, 2]
    top_k = KimiVLConfig.from_checkpoint(checkpoint).text.num_experts_per_tok
    assert [tokens.sum() for tokens in load.values()] == [top_k * sum(num_tokens)] * 2


def test_work_that_arrives_after_all_were_idle_is_done(checkpoint, work):
    answers = {}

    def on_rank(group: dist.ProcessGroup) -> None:
        engine = load_rank(checkpoint, group, "auto")
        if group.rank() == 1:
            for _ in range(3):
                assert engine.step() == []
            prompt, num_tokens = work["image"]
            engine.add("image", prompt, SamplingParams(max_tokens=num_tokens))
        while len(answers) < 1 or group.rank():
            try:
                answers.update(tokens_of(engine.step()))
            except LockstepError:
                break
        else:
            engine.close()
        stats = engine.stats()
        assert stats["steps"] >= 9
        assert stats["level"] == 0.5  # one of two ranks had all of it
        assert 0 < stats["wait_share"] < 1
        assert (stats["own_wait_s"] > 0) == (group.rank() == 1)

    run_ranks(2, on_rank)
    assert answers["image"] == answer_alone(checkpoint, {"image": work["image"]})["image"]


def fail_on_rank_1(checkpoint, break_engine: Callable[[ExpertParallelEngine], None]) -> list[str]:
    """Break the engine of rank 1 and return what each rank raises; no rank may hang."""

    def on_rank(group: dist.ProcessGroup) -> str:
        engine = load_rank(checkpoint, group, "all_to_all")
        engine.step()
        if group.rank() == 1:
            break_engine(engine)
        try:
            for _ in range(10):
                engine.step()
        except (LockstepError, RuntimeError, MemoryError) as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    return run_ranks(4, on_rank, timeout_s=10)


def test_what_fails_on_one_rank_alone_reaches_all_ranks(checkpoint):
    def break_plan(engine: ExpertParallelEngine) -> None:
        def plan(max_new_tokens: float = math.inf) -> NoReturn:
            raise MemoryError("no room for the images")

        engine._engine.scheduler.plan = plan

    raised = fail_on_rank_1(checkpoint, break_plan)
    assert raised[1] == "MemoryError: no room for the images"
    message = "LockstepError: rank 1 of the group failed: MemoryError: no room for the images"
    assert [raised[0], *raised[2:]] == [message] * 3


def test_a_bad_prompt_fails_alone_and_ends_nobody(checkpoint, work):
    def on_rank(group: dist.ProcessGroup) -> None:
        engine = load_rank(checkpoint, group, "auto")
        if group.rank() == 1:
            prompt, _ = work["short"]
            bad = Prompt(
                token_ids=prompt.token_ids + 10**6, patches=prompt.patches, grid_hw=prompt.grid_hw
            )
            with pytest.raises(PromptError, match="token ids"):
                engine.add("bad", bad, SamplingParams())
        assert engine.step() == []

    run_ranks(2, on_rank)


def test_ranks_that_end_at_the_same_time_do_not_wait_for_each_other():
    def on_rank(group: dist.ProcessGroup) -> None:
        lockstep = Lockstep(group)
        with lockstep.turn(3, True) as runs:
            assert runs
        lockstep.stop()
        lockstep.stop()

    run_ranks(3, on_rank)


def test_every_rank_knows_the_same_plan():
    plans: list[StepPlan] = []

    def on_rank(group: dist.ProcessGroup) -> None:
        lockstep = Lockstep(group, plans.append)
        with lockstep.turn(group.rank() * 2, group.rank() != 1, 3 - group.rank()) as runs:
            assert runs
        with lockstep.turn(0, True) as runs:
            assert not runs

    run_ranks(3, on_rank)
    assert sorted(plans, key=lambda plan: plan.max_tokens) == [
        *[StepPlan((0, 0, 0), True, (0, 0, 0))] * 3,
        *[StepPlan((0, 2, 4), False, (3, 2, 1))] * 3,
    ]


def test_a_rank_that_waits_for_others_counts_it():
    waits = {}

    def on_rank(group: dist.ProcessGroup) -> None:
        lockstep = Lockstep(group)
        started.wait()
        if group.rank() == 1:
            time.sleep(0.2)
        with lockstep.turn(1, True):
            pass
        waits[group.rank()] = lockstep.stats.wait_s

    started = threading.Barrier(2)
    run_ranks(2, on_rank)
    assert waits[0] > waits[1]


def test_prompts_that_come_at_different_times_are_begun_in_the_same_step(checkpoint, work):
    plans: list[StepPlan] = []

    def on_rank(group: dist.ProcessGroup) -> None:
        engine = load_rank(checkpoint, group, "all_to_all")
        begin = engine._lockstep._on_plan

        def recorded(plan: StepPlan) -> None:
            if group.rank() == 0:
                plans.append(plan)
            begin(plan)

        engine._lockstep._on_plan = recorded
        params = SamplingParams(max_tokens=30)
        engine.add("first", work["long"][0], params)  # so that there is something to do
        for step in range(12):
            if step == 4 + 3 * group.rank():
                engine.add("later", work["chunks"][0], params)
            engine.step()

    run_ranks(2, on_rank)
    assert plans[0].tokens == (0, 0)  # first the others must know
    assert plans[1].tokens == (len(work["long"][0].token_ids),) * 2
    assert [plan.is_decode for plan in plans[2:9]] == [True] * 6 + [False]
    assert plans[5].waiting == (len(work["chunks"][0].token_ids), 0)
    assert plans[8].tokens == (1 + 63,) * 2  # the budget of a step
