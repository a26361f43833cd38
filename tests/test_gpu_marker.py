"""Where `gpu` tests run, skip or fail; the rule is in conftest.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import pytest_runtest_setup


def marked(marker) -> Any:
    """A test, as far as the rule looks at it."""
    return SimpleNamespace(get_closest_marker={"gpu": marker.mark}.get)


ONE, TWO = marked(pytest.mark.gpu), marked(pytest.mark.gpu(at_least=2))


@pytest.fixture
def found(monkeypatch, request):
    """As many GPUs as the test says."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.delenv("MOONSWEEP_REQUIRE_GPU", raising=False)
    return request.param


@pytest.mark.parametrize(
    ("found", "item", "reason"),
    [
        pytest.param(0, ONE, "needs a GPU", id="one of none"),
        pytest.param(0, TWO, "needs two GPUs", id="two of none"),
        pytest.param(1, TWO, "needs two GPUs", id="two of one"),
    ],
    indirect=["found"],
)
def test_without_enough_gpus_a_test_skips_and_says_why(found, item, reason):
    with pytest.raises(pytest.skip.Exception, match=f"^{reason}$"):
        pytest_runtest_setup(item)


@pytest.mark.parametrize(
    ("found", "item"),
    [
        pytest.param(1, ONE, id="one of one"),
        pytest.param(2, TWO, id="two of two"),
        pytest.param(8, TWO, id="two of eight"),
    ],
    indirect=["found"],
)
def test_with_enough_gpus_a_test_runs(found, item):
    pytest_runtest_setup(item)


@pytest.mark.parametrize("found", [0], indirect=True)
@pytest.mark.parametrize("item", [ONE, TWO], ids=["one", "two"])
def test_where_gpus_are_expected_a_machine_without_one_fails(found, item, monkeypatch):
    monkeypatch.setenv("MOONSWEEP_REQUIRE_GPU", "1")
    with pytest.raises(pytest.fail.Exception, match="torch sees no GPU"):
        pytest_runtest_setup(item)


@pytest.mark.parametrize("found", [1], indirect=True)
def test_where_gpus_are_expected_a_test_for_two_still_skips_on_one(found, monkeypatch):
    monkeypatch.setenv("MOONSWEEP_REQUIRE_GPU", "1")
    with pytest.raises(pytest.skip.Exception, match=r"^needs two GPUs$"):
        pytest_runtest_setup(TWO)
