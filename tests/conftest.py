"""What all tests share: quiet Ray settings, no leaks of random state, no silent skip of a GPU."""

import os

# Before anything imports ray, which reads some of these once.
os.environ.update(
    RAY_AUTH_MODE="disabled",  # else a local Ray writes ~/.ray/auth_token
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_BACKEND_LOG_LEVEL="fatal",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    OMP_NUM_THREADS="1",
)
os.environ.pop("RAY_ADDRESS", None)

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on CPUs; read when triton is imported

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from pipeline.monitor.report import Report
    from tests.s3 import Bucket

    Carry = Callable[..., Report]

ROOT = Path(__file__).resolve().parents[1]
WHY_SKIPPED = {1: "needs a GPU", 2: "needs two GPUs"}  # by the GPUs that a test needs


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip `gpu` tests where there are too few, or fail them where there must be one."""
    marker = item.get_closest_marker("gpu")
    if marker is None:
        return
    needed = marker.kwargs.get("at_least", 1)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found >= needed:
        return
    if not found and os.environ.get("MOONSWEEP_REQUIRE_GPU") == "1":
        pytest.fail("MOONSWEEP_REQUIRE_GPU=1, but torch sees no GPU")
    pytest.skip(WHY_SKIPPED[needed])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes run the tests, keep a file in one, and all that start Ray in one.

    The tests on Ray come first: there is one Ray for all of them, and they take longest.
    """
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    for item in items:
        is_on_ray = item.get_closest_marker("ray") is not None
        item.add_marker(pytest.mark.xdist_group("ray" if is_on_ray else item.nodeid.split("::")[0]))


@pytest.fixture(autouse=True)
def same_random_state_for_every_test() -> Iterator[None]:
    """Undo what a test does to the global random generators."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torch_state)


@pytest.fixture
def unset_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says nothing of torch's memory on GPUs; it is as before afterwards."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that its removal is undone even where it was not set
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A private Ray for the session; more CPUs than there are keep its operators from waiting."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=256 << 20,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """host:port of a local S3 server."""
    from tests.s3 import s3_server

    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_endpoint: str) -> "Bucket":
    """An empty bucket on it."""
    from tests.s3 import new_bucket

    return new_bucket(s3_endpoint)


@pytest.fixture(params=["inline"])
def carry_out(request: pytest.FixtureRequest) -> "Carry":
    """`pipeline.run.run` without Ray; or, by a parameter of a test, on the session's Ray."""
    from pipeline.run import run

    if request.param == "ray":
        request.getfixturevalue("ray_local")
    return partial(run, connect=nullcontext, inline=request.param == "inline", show_progress=False)


ON_RAY = pytest.param("ray", id="on Ray", marks=pytest.mark.ray)
ON_RAY_SLOWLY = pytest.param("ray", id="on Ray", marks=[pytest.mark.ray, pytest.mark.slow])
EVERYWHERE = (pytest.param("inline", id="inline"), ON_RAY)
EVERYWHERE_SLOWLY = (pytest.param("inline", id="inline"), ON_RAY_SLOWLY)
