"""What each rank reads and holds: its experts and all other weights, for every number of ranks."""

import pytest
import torch

from model.network import weights
from model.network.moe import ExpertShard, LocalDispatcher
from model.network.weights import IGNORED, load_model, stored_tensors
from parallel.experts.topology import Topology
from tests.tiny import tiny_checkpoint

NUM_EXPERTS = 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    config = tiny_checkpoint(directory)
    assert config.text.n_routed_experts == NUM_EXPERTS
    return directory


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_ranks_read_the_shared_part_and_each_expert_once(checkpoint, monkeypatch, num_ranks):
    read: list[str] = []
    original = weights._read

    def note(stored, names):
        for name, tensor in original(stored, names):
            read.append(name)
            yield name, tensor

    monkeypatch.setattr(weights, "_read", note)
    topology = Topology.even(NUM_EXPERTS, num_ranks)
    stored = stored_tensors(checkpoint)
    of_experts = {name for name in stored if ".mlp.experts." in name}
    whole = sum(p.nbytes for p in load_model(checkpoint).parameters())
    in_experts = sum(_nbytes(stored[name]) for name in of_experts)
    seen: list[str] = []
    for local_experts in topology.local_experts:
        read.clear()
        shard = ExpertShard(local_experts, LocalDispatcher())
        model = load_model(checkpoint, shards=lambda _, shard=shard: shard)
        assert len(set(read)) == len(read)
        shared = {name for name in stored if not IGNORED.fullmatch(name)} - of_experts
        assert shared <= set(read)
        assert sum(_nbytes(stored[name]) for name in read) == whole - in_experts * (
            1 - 1 / num_ranks
        )
        assert sum(p.nbytes for p in model.parameters()) == whole - in_experts * (1 - 1 / num_ranks)
        seen += [name for name in read if name in of_experts]
    assert sorted(seen) == sorted(of_experts)


def _nbytes(tensor: weights.StoredTensor) -> int:
    assert tensor.dtype == "F32"
    return 4 * int(torch.tensor(tensor.shape).prod())
