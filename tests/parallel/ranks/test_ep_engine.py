"""How a rank joins its group, without a group and without a GPU."""

import os
from types import SimpleNamespace

import pytest
import torch

from model.engine.config import EngineConfig
from model.engine.dtype import AS_STORED, DtypeChoice
from parallel.experts.policy import Exchange
from parallel.ranks import ep_engine as module
from parallel.ranks.ep_engine import load_ep_engine
from parallel.ranks.rank_spec import Address, RankSpec
from tests.parallel.rank_threads import run_ranks
from tests.tiny import tiny_checkpoint

RANK_SPEC = RankSpec(
    address=Address("127.0.0.1", 1),
    generation="test",
    rank=1,
    num_ranks=2,
    join_timeout_s=1,
    exchange_timeout_s=1,
)


@pytest.mark.parametrize(
    ("asked", "joined", "made_current"),
    [
        pytest.param("cpu", "cpu", [], id="CPU"),
        pytest.param("cuda", "cuda:3", ["cuda:3"], id="the current GPU"),
        pytest.param("cuda:1", "cuda:1", ["cuda:1"], id="a GPU by its number"),
    ],
)
def test_a_rank_joins_with_the_number_of_its_gpu(
    tmp_path, monkeypatch, unset_allocator, asked, joined, made_current
):
    tiny_checkpoint(tmp_path)
    current, used, at_first_use = [], [], []

    def current_device():
        at_first_use.append(os.environ.get("PYTORCH_ALLOC_CONF"))
        return 3

    def join(rank_spec, device):
        used.append(device)
        return SimpleNamespace(group=None, wait_until_all_loaded=lambda: None)

    def set_device(device):
        assert device.index is not None  # as torch, which raises otherwise
        at_first_use.append(os.environ.get("PYTORCH_ALLOC_CONF"))
        current.append(device)

    monkeypatch.setattr(torch.cuda, "current_device", current_device)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(module, "JoinedGroup", join)
    monkeypatch.setattr(module, "load_shard", lambda *_: "the engine")
    engine = load_ep_engine(tmp_path, EngineConfig(device=asked), RANK_SPEC, Exchange())
    assert engine == "the engine"
    assert [str(device) for device in used] == [joined]
    assert [str(device) for device in current] == made_current
    assert set(at_first_use) == ({"expandable_segments:True"} if asked != "cpu" else set())


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        pytest.param(["float32", "float32"], ["float32", "float32"], id="all choose float32"),
        pytest.param(["float32", "bfloat16"], ["bfloat16", "auto"], id="one lacks memory"),
        pytest.param([None, "float32"], ["auto", "bfloat16"], id="one has bfloat16 products"),
    ],
)
def test_ranks_of_a_group_compute_in_one_dtype(tmp_path, monkeypatch, choices, expected):
    def choose(_, config):
        name = choices[config.num_threads - 1]
        return AS_STORED if name is None else DtypeChoice(getattr(torch, name))

    def agree(group):
        config = EngineConfig(num_threads=group.rank() + 1)
        return module._with_common_dtype(tmp_path, config, group).dtype

    monkeypatch.setattr(module, "choose_dtype", choose)
    # "auto" is the stored dtype, bfloat16, on a rank that would not choose float32.
    assert run_ranks(2, agree) == expected
