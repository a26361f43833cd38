"""The loop of a rank, on an engine that only counts."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.engine.sequence import Completion, SamplingParams
from model.inputs.prompt import Prompt, PromptError
from parallel.ranks.admission import AdmissionPolicy
from parallel.ranks.requests import Failure, Request
from parallel.ranks.worker import ENGINE_THREAD, DeadEngineError, Rank


class CountingEngine:
    """Generates one token for each request per step; a step waits for `gate`."""

    def __init__(self, gate: threading.Event, break_at_step: int | None = None) -> None:
        self.gate = gate
        self.break_at_step = break_at_step
        self.left: dict[str, int] = {}
        self.asked: dict[str, int] = {}
        self.batch_sizes: list[int] = []
        self.own_steps: list[int] = []  # tokens of the requests that asked for them
        self.has_broken_experts = False

    @property
    def has_work(self):
        return bool(self.left)

    def add(self, request_id, prompt, params, *, own_step=False):
        if prompt.token_ids[0] < 0:
            raise PromptError("bad_prompt", f"token id {prompt.token_ids[0]}")
        if own_step:
            self.own_steps.append(params.max_tokens)
        self.left[request_id] = self.asked[request_id] = params.max_tokens

    def cancel(self, request_id):
        self.left.pop(request_id, None)

    def stats(self):
        return {"left": len(self.left)}

    def expert_load(self):
        if self.has_broken_experts:
            raise MemoryError("no memory on the device")
        return {1: np.array([len(self.batch_sizes)])}

    def close(self):
        self.left.clear()

    def step(self):
        assert self.gate.wait(10)
        self.batch_sizes.append(len(self.left))
        if len(self.batch_sizes) == self.break_at_step:
            raise MemoryError("no memory on the device")
        self.left = {key: num - 1 for key, num in self.left.items()}
        finished = [key for key, num in self.left.items() if num == 0]
        for key in finished:
            del self.left[key]
        return [(key, completion(self.asked[key])) for key in finished]


def completion(num_tokens: int) -> Completion:
    return Completion(
        text=str(num_tokens),
        token_ids=(7,) * num_tokens,
        finish_reason="length",
        num_prompt_tokens=1,
        num_generated_tokens=num_tokens,
        mean_logprob=-0.5,
        min_logprob=-1.0,
    )


def request(num_tokens: int, token_id: int = 1, num_samples: int = 1) -> Request:
    prompt = Prompt(
        token_ids=np.array([token_id], np.int32),
        patches=np.zeros((0, 3, 14, 14), np.uint8),
        grid_hw=np.zeros((0, 2), np.int32),
    )
    temperature = 0.0 if num_samples == 1 else 1.0
    params = SamplingParams(max_tokens=num_tokens, n=num_samples, temperature=temperature)
    return Request(request_id="row", prompt=prompt, params=params)


def on_rank(
    use: Callable[[Rank, CountingEngine], Awaitable[None]],
    *,
    gate_is_open: bool = True,
    break_at_step: int | None = None,
    admission: AdmissionPolicy | None = None,
) -> None:
    """Call `use(rank, engine)` in an event loop, and close the rank whatever happens."""
    gate = threading.Event()
    engine = CountingEngine(gate, break_at_step)
    if gate_is_open:
        gate.set()

    async def main() -> None:
        rank = Rank(lambda: engine, admission or AdmissionPolicy())
        try:
            await rank.ready()
            await asyncio.wait_for(use(rank, engine), 10)
        finally:
            gate.set()
            await rank.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_many_callers_share_the_steps_and_each_gets_its_own_answers_in_order():
    async def use(rank, engine):
        calls = [
            rank.generate(f"client {n % 3}", [request(n + 1), request(50 - n)]) for n in range(40)
        ]
        answers = await asyncio.gather(*calls)
        assert [[int(a.text) for a in pair] for pair in answers] == [
            [n + 1, 50 - n] for n in range(40)
        ]
        assert max(engine.batch_sizes) > 40
        assert len(engine.batch_sizes) < sum(n + 51 for n in range(40)) / 10

    on_rank(use)


def test_the_engine_hears_which_requests_want_steps_for_themselves():
    async def use(rank, engine):
        wanted = replace(request(2), own_step=True)
        await rank.generate("client", [request(1), wanted, request(3)])
        assert engine.own_steps == [2]

    on_rank(use)


def test_requests_are_held_until_enough_are_unanswered():
    async def use(rank, engine):
        calls = [asyncio.ensure_future(rank.generate("client", [request(n)])) for n in (1, 1, 30)]
        await until(lambda: len(engine.left) == 3)  # and the step waits at the gate
        calls.append(asyncio.ensure_future(rank.generate("client", [request(4)])))
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(*calls[:3])
        calls += [asyncio.ensure_future(rank.generate("client", [request(n)])) for n in (5, 6)]
        answers = await asyncio.gather(*calls)
        assert [answer.text for (answer,) in answers] == ["1", "1", "30", "4", "5", "6"]
        assert engine.batch_sizes == [3, *[1] * 29, 3, 3, 3, 3, 2, 1]

    on_rank(use, gate_is_open=False, admission=AdmissionPolicy(min_batch=3, max_wait_s=60.0))


def test_a_request_begins_at_once_where_enough_are_running():
    async def use(rank, engine):
        calls = [asyncio.ensure_future(rank.generate("client", [request(n)])) for n in (2, 30)]
        await until(lambda: len(engine.left) == 2)  # and the step waits at the gate
        calls.append(asyncio.ensure_future(rank.generate("client", [request(4)])))
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(*calls)
        assert engine.batch_sizes == [2, 3, 2, 2, 2, *[1] * 25]

    on_rank(use, gate_is_open=False, admission=AdmissionPolicy(min_batch=2, max_wait_s=60.0))


def test_each_sample_of_a_request_counts_for_the_batch():
    async def use(rank, engine):
        await rank.generate("client", [request(1, num_samples=2)])
        assert engine.batch_sizes == [1]

    on_rank(use, admission=AdmissionPolicy(min_batch=2, max_wait_s=60.0))


def test_a_lone_request_begins_after_the_longest_wait():
    async def use(rank, engine):
        await rank.generate("client", [request(2)])
        assert engine.batch_sizes == [1, 1]

    on_rank(use, admission=AdmissionPolicy(min_batch=2, max_wait_s=0.05))


def test_a_call_that_is_cancelled_while_it_is_held_never_gets_to_the_engine():
    async def use(rank, engine):
        call = asyncio.ensure_future(rank.generate("client", [request(1000)]))
        await until(lambda: rank._waiting)
        call.cancel()
        await until(lambda: not rank._waiting)
        await rank.generate("client", [request(1)] * 2)
        assert engine.batch_sizes == [2]

    on_rank(use, admission=AdmissionPolicy(min_batch=2, max_wait_s=60.0))


def test_closing_fails_what_is_held():
    async def use(rank, engine):
        call = asyncio.ensure_future(rank.generate("client", [request(1)]))
        await until(lambda: rank._waiting)
        await rank.close()
        with pytest.raises(DeadEngineError, match="the rank was closed"):
            await call

    on_rank(use, admission=AdmissionPolicy(min_batch=2, max_wait_s=60.0))


def test_a_bad_prompt_fails_alone():
    async def use(rank, engine):
        answers = await rank.generate("client", [request(2), request(2, token_id=-5), request(3)])
        assert [answers[0].text, answers[2].text] == ["2", "3"]
        assert answers[1] == Failure(code="bad_prompt", message="token id -5")

    on_rank(use)


def test_no_requests_have_no_answers():
    async def use(rank, engine):
        assert await rank.generate("client", []) == []

    on_rank(use)


def test_an_exception_of_the_engine_fails_everybody_and_the_rank_stays_dead():
    async def use(rank, engine):
        calls = [rank.generate("client", [request(5)]) for _ in range(3)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [DeadEngineError] * 3
        assert "MemoryError: no memory on the device" in str(answers[0])
        with pytest.raises(DeadEngineError, match="no memory"):
            await rank.generate("client", [request(1)])

    on_rank(use, break_at_step=3)


def test_the_threads_of_an_engine_are_told_from_others_by_their_name():
    names = []

    def note_name():
        thread = threading.get_native_id()
        names.append(Path(f"/proc/self/task/{thread}/comm").read_text().strip())

    def factory():
        note_name()
        helper = threading.Thread(target=note_name)
        helper.start()
        helper.join()
        return CountingEngine(threading.Event())

    async def load():
        rank = Rank(factory)
        await rank.ready()
        await rank.close()

    note_name()
    asyncio.run(load())
    own, engine, helper = names
    assert engine == helper == ENGINE_THREAD != own


def test_what_the_factory_raises_comes_out_of_ready():
    def factory():
        raise ValueError("config.json has topk=7")

    async def main():
        rank = Rank(factory)
        with pytest.raises(ValueError, match="topk=7"):
            await rank.ready()
        with pytest.raises(DeadEngineError, match="ValueError: config"):
            await rank.generate("client", [request(1)])
        await rank.close()

    asyncio.run(main())


def test_a_cancelled_call_takes_its_requests_out_of_the_engine():
    async def use(rank, engine):
        call = asyncio.ensure_future(rank.generate("client", [request(1000)] * 2))
        other = asyncio.ensure_future(rank.generate("client", [request(3)]))
        await until(lambda: len(engine.left) == 3)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        engine.gate.set()
        assert (await other)[0].text == "3"
        assert len(engine.batch_sizes) < 10
        assert not engine.left

    on_rank(use, gate_is_open=False)


def test_a_call_that_is_cancelled_before_the_engine_saw_it_never_gets_there():
    async def use(rank, engine):
        blocking = asyncio.ensure_future(rank.generate("client", [request(3)]))
        await until(lambda: len(engine.left) == 1)  # and the step waits at the gate
        call = asyncio.ensure_future(rank.generate("client", [request(1000)]))
        await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.sleep(0)
        engine.gate.set()
        await blocking
        assert max(engine.batch_sizes) == 1

    on_rank(use, gate_is_open=False)


def test_the_time_of_a_rank_is_stepping_with_requests_or_not():
    async def use(rank, engine):
        await asyncio.sleep(0.05)  # idle
        call = asyncio.ensure_future(rank.generate("client", [request(2)]))
        await until(lambda: len(engine.left) == 1)  # and the step waits at the gate
        await asyncio.sleep(0.05)
        during = (await rank.health()).stats
        engine.gate.set()
        await call
        await until(lambda: rank._busy_since is None)
        after = (await rank.health()).stats
        await asyncio.sleep(0.02)
        later = (await rank.health()).stats

        assert during["stepping_s"] >= 0.045
        assert during["ready_s"] - during["stepping_s"] >= 0.045
        assert during["stepping_s"] <= after["stepping_s"] == later["stepping_s"]
        assert later["ready_s"] >= after["ready_s"] + 0.019
        assert later["left"] == 0
        assert 20e6 < during["peak_bytes"] <= later["peak_bytes"] < 10e9

    on_rank(use, gate_is_open=False)


def test_the_requests_of_a_dead_client_are_cancelled_and_no_others():
    async def use(rank, engine):
        orphan = asyncio.ensure_future(rank.generate("dead", [request(1000)]))
        other = asyncio.ensure_future(rank.generate("alive", [request(3)]))
        await until(lambda: len(engine.left) == 2)
        await rank.cancel_client("dead")
        engine.gate.set()
        assert (await other)[0].text == "3"
        with pytest.raises(asyncio.CancelledError):
            await orphan
        assert not engine.left

    on_rank(use, gate_is_open=False)


def test_the_load_of_the_experts_is_read_between_steps():
    async def use(rank, engine):
        assert (await rank.expert_load())[1] == 0
        call = asyncio.ensure_future(rank.generate("client", [request(3)]))
        await until(lambda: bool(engine.left))
        asked = asyncio.ensure_future(rank.expert_load())
        given_up = asyncio.ensure_future(rank.expert_load())
        await asyncio.sleep(0.01)
        assert not asked.done()  # the step waits at the gate
        given_up.cancel()
        engine.gate.set()
        assert 1 <= (await asked)[1] <= 3
        await call
        assert (await rank.expert_load())[1] == 3

    on_rank(use, gate_is_open=False)


def test_a_load_that_cannot_be_read_ends_the_rank():
    async def use(rank, engine):
        engine.has_broken_experts = True
        for _ in range(2):
            with pytest.raises(DeadEngineError, match="no memory on the device"):
                await rank.expert_load()

    on_rank(use)


def test_closing_fails_what_is_in_flight_and_ends_the_thread():
    async def use(rank, engine):
        call = asyncio.ensure_future(rank.generate("client", [request(10**6)]))
        await until(lambda: len(engine.left) == 1)
        num_threads = threading.active_count()
        await rank.close()
        with pytest.raises(DeadEngineError, match="the rank was closed"):
            await call
        with pytest.raises(DeadEngineError, match="the rank was closed"):
            await rank.generate("client", [request(1)])
        await until(lambda: threading.active_count() < num_threads)

    on_rank(use)
