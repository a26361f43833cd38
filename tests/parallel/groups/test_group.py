"""Groups as real processes: started, killed, rebuilt, closed."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group_table

from model.engine.sequence import Completion, SamplingParams
from model.inputs.prompt import Prompt
from parallel.groups import client
from parallel.groups.client import Groups
from parallel.groups.errors import DeadGroupError, GroupError
from parallel.groups.spec import GroupSpec
from parallel.ranks.requests import Request
from tests.conftest import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

DEADLY = 666  # a token id that kills the process of the engine


class SlowEngine:
    """Answers each request after some steps, with the id of its process."""

    def __init__(self) -> None:
        self.left = {}

    @property
    def has_work(self):
        return bool(self.left)

    def add(self, request_id, prompt, params, *, own_step=False):
        if prompt.token_ids[0] == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left[request_id] = params.max_tokens

    def cancel(self, request_id):
        self.left.pop(request_id, None)

    def stats(self):
        return {"left": len(self.left)}

    def expert_load(self):
        return {}

    def close(self):
        self.left.clear()

    def step(self):
        time.sleep(0.01)
        self.left = {key: num - 1 for key, num in self.left.items()}
        finished = [key for key, num in self.left.items() if num == 0]
        for key in finished:
            del self.left[key]
        return [(key, completion(str(os.getpid()))) for key in finished]


def completion(text: str) -> Completion:
    return Completion(
        text=text,
        token_ids=(1,),
        finish_reason="stop",
        num_prompt_tokens=1,
        num_generated_tokens=1,
        mean_logprob=0.0,
        min_logprob=0.0,
    )


def request(num_tokens: int, token_id: int = 1) -> Request:
    prompt = Prompt(
        token_ids=np.array([token_id], np.int32),
        patches=np.zeros((4, 3, 14, 14), np.uint8),
        grid_hw=np.array([[2, 2]], np.int32),
    )
    return Request(request_id="row", prompt=prompt, params=SamplingParams(max_tokens=num_tokens))


def spec(factory: Callable[[], Any] = SlowEngine, **changes) -> GroupSpec:
    return GroupSpec(engine_factory=lambda _: factory(), **{"num_cpus_per_rank": 0.5, **changes})


async def answer(groups: Groups, num_tokens: int = 1, token_id: int = 1) -> int:
    """Return the id of the process that answered, leasing again after each death."""
    while True:
        async with groups.lease(num_tokens) as lease:
            ((outcome,),) = await lease.generate([[request(num_tokens, token_id)]])
        if isinstance(outcome, DeadGroupError):
            continue
        assert isinstance(outcome, Completion)
        return int(outcome.text)


def num_placement_groups() -> int:
    return sum(group["state"] != "REMOVED" for group in placement_group_table().values())


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def eventually(condition) -> bool:
    deadline = time.monotonic() + 20
    while not (done := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return done


def test_a_killed_rank_is_replaced_and_nothing_is_left_after_close():
    groups = Groups.start(spec(), num_groups=2, max_group_failures=5)

    async def use():
        while (await asyncio.to_thread(groups.status)).num_ready < 2:
            await asyncio.sleep(0.05)
        pids = set(await asyncio.gather(answer(groups, 50), answer(groups, 50)))
        assert len(pids) == 2  # the load is shared
        slow = [asyncio.ensure_future(answer(groups, 100)) for _ in range(6)]
        await asyncio.sleep(0.3)
        killed = pids.pop()
        os.kill(killed, signal.SIGKILL)
        assert killed not in await asyncio.gather(*slow)
        return pids

    try:
        pids = asyncio.run(use())
        assert eventually(lambda: groups.status().num_ready == 2)
        (failure,) = groups.status().failures
        assert "group" in failure
        assert num_placement_groups() == 2
    finally:
        groups.close()
    groups.close()
    assert num_placement_groups() == 0
    assert eventually(lambda: not any(is_running(pid) for pid in pids))


@pytest.mark.slow
def test_a_request_that_kills_every_rank_ends_in_an_error_that_says_so():
    groups = Groups.start(spec(failures_at_once=1), num_groups=1, max_group_failures=0)
    try:
        with pytest.raises(
            GroupError, match=r"failed 4 times, more than the allowed 3 at once.*\(on .*, [0-9.]+\)"
        ):
            asyncio.run(answer(groups, token_id=DEADLY))
    finally:
        groups.close()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        pytest.param(
            spec(num_cpus_per_rank=1000, resources_timeout_s=1),
            r"group 0 needs 1000 CPU on one node.*the cluster has 4 CPU",
            id="no room",
        ),
        pytest.param(spec(lambda: int("topk")), r"ValueError: .*topk", id="an engine that fails"),
        pytest.param(
            spec(lambda: time.sleep(60), start_timeout_s=1), r"in 1 s", id="an engine that hangs"
        ),
        pytest.param(
            spec(lambda: os.kill(os.getpid(), signal.SIGKILL)), "did not start", id="a death"
        ),
    ],
)
def test_groups_that_cannot_start_say_why_and_leave_nothing(wanted, message):
    with pytest.raises(GroupError, match=message):
        Groups.start(wanted, num_groups=1, max_group_failures=5)
    assert num_placement_groups() == 0


def test_a_rank_dies_with_its_supervisor():
    groups = Groups.start(spec(), num_groups=1, max_group_failures=5)
    pid = asyncio.run(answer(groups))
    ray.kill(groups._supervisor)
    with pytest.raises(GroupError, match="supervisor of the groups is gone"):
        asyncio.run(answer(groups))
    assert eventually(lambda: not is_running(pid))


@pytest.mark.slow
def test_closing_tells_when_the_supervisor_does_not_answer(monkeypatch, caplog):
    groups = Groups.start(spec(), num_groups=1, max_group_failures=5)
    pid = asyncio.run(answer(groups))
    monkeypatch.setattr(client, "_CLOSE_TIMEOUT_S", 0.0)
    groups.close()
    assert "did not close them in 0 s" in caplog.text
    assert eventually(lambda: not is_running(pid))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "exit_code"),
    [
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGINT, 128 + signal.SIGINT, id="Ctrl-C"),
    ],
)
def test_nothing_outlives_a_driver_that_is_killed_or_stopped(how, exit_code):
    num_before = num_placement_groups()
    address = ray.get_runtime_context().gcs_address
    program = f"""if True:
        import asyncio, os
        from contextlib import closing
        from jobs.cli.ray_cluster import connect
        from tests.parallel.groups.test_group import *
        os.environ['RAY_ADDRESS'] = {address!r}
        # Shells let what they start in the background, such as a run of tests, ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with connect():
            with closing(Groups.start(spec(), num_groups=1, max_group_failures=5)) as groups:
                print('rank', asyncio.run(answer(groups)), flush=True)
                os.kill(os.getpid(), {int(how)})
                time.sleep(10)
        """
    driver = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert driver.returncode == exit_code, driver.stderr
    (_, pid) = next(line.split() for line in driver.stdout.splitlines() if "rank" in line)
    assert eventually(lambda: not is_running(int(pid)))
    assert eventually(lambda: num_placement_groups() == num_before)
