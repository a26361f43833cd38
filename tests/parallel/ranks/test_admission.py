"""When held requests may begin, without a rank around the queue."""

import time

import numpy as np
import pytest

from model.engine.sequence import SamplingParams
from model.inputs.prompt import Prompt
from parallel.ranks.admission import AdmissionPolicy, AdmissionQueue, Job
from parallel.ranks.requests import Request

PROMPT = Prompt(
    token_ids=np.array([1], np.int32),
    patches=np.zeros((0, 3, 14, 14), np.uint8),
    grid_hw=np.zeros((0, 2), np.int32),
)


def job(key: str, num_samples: int = 1, *, may_wait: bool = True) -> Job:
    params = SamplingParams(n=num_samples, temperature=1.0)
    request = Request(request_id="row", prompt=PROMPT, params=params, may_wait=may_wait)
    return Job(key, "client", request)


def holding(*jobs: Job, min_batch: int, max_wait_s: float = 60.0) -> AdmissionQueue:
    queue = AdmissionQueue(AdmissionPolicy(min_batch=min_batch, max_wait_s=max_wait_s))
    for each in jobs:
        queue.put(each)
    return queue


@pytest.mark.parametrize(
    ("samples", "num_running", "is_due"),
    [
        pytest.param([1, 1], 0, False, id="too few"),
        pytest.param([1, 1, 1], 0, True, id="enough are held"),
        pytest.param([1], 2, True, id="enough with those that run"),
        pytest.param([3], 0, True, id="enough samples of one request"),
    ],
)
def test_jobs_begin_together_once_they_are_a_batch(samples, num_running, is_due):
    jobs = [job(str(number), num_samples) for number, num_samples in enumerate(samples)]
    queue = holding(*jobs, min_batch=3)
    wait_s = queue.wait_s(num_running)
    assert wait_s is not None
    assert (wait_s == 0) == is_due
    assert queue.remove_due(num_running) == (jobs if is_due else [])
    assert len(queue) == (0 if is_due else len(jobs))


def test_the_oldest_job_says_how_long_all_wait():
    queue = holding(job("first"), min_batch=3, max_wait_s=0.05)
    time.sleep(0.03)
    queue.put(job("second"))
    wait_s = queue.wait_s(0)
    assert wait_s is not None
    assert wait_s <= 0.02
    time.sleep(0.03)
    assert [each.key for each in queue.remove_due(0)] == ["first", "second"]


def test_a_job_that_may_not_wait_begins_at_once_with_all_that_are_held():
    queue = holding(job("held"), job("golden", may_wait=False), min_batch=9)
    assert queue.wait_s(0) == 0
    assert [each.key for each in queue.remove_due(0)] == ["held", "golden"]
    queue.put(job("later"))
    assert queue.remove_due(0) == []


def test_an_empty_queue_waits_for_nothing():
    queue = holding(min_batch=1)
    assert queue.wait_s(5) is None
    assert queue.remove_due(5) == []


def test_removed_jobs_do_not_count():
    unwanted, wanted = job("unwanted"), job("wanted")
    queue = holding(unwanted, wanted, min_batch=2)
    assert queue.remove(lambda each: each is unwanted) == [unwanted]
    assert queue.remove_due(0) == []
    assert queue.remove_all() == [wanted]
