"""Weights through two buffers, on a machine without a GPU: copies that end as late as they may."""

from collections.abc import Callable
from io import FileIO

import pytest
import torch
from torch import Tensor

from model.config import KimiVLConfig
from model.json_values import CheckpointError
from model.network import weights
from model.network.moe import ExpertShard, LocalDispatcher
from model.network.weights import (
    destinations,
    empty_model,
    load_model,
    read_staged,
    stored_tensors,
    weight_slots,
)
from model.staging import StagedReader
from tests.tiny import tiny_checkpoint

CPU = torch.device("cpu")


class LateCopies:
    """Copies that read their source only when somebody waits for them."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, destination: Tensor, source: Tensor) -> Callable[[], object]:
        assert destination.shape == source.shape
        self.sizes.append(source.nbytes)
        return lambda: destination.copy_(source)


def reader(buffer_bytes: int) -> tuple[StagedReader, LateCopies]:
    copies = LateCopies()
    allocate = lambda size: torch.full((size,), 255, dtype=torch.uint8)  # noqa: E731
    return StagedReader(allocate, copies, buffer_bytes), copies


@pytest.mark.parametrize("num_numbers", [0, 1, 32, 33, 200])
def test_a_tensor_comes_whole_also_if_it_is_larger_than_the_buffers(tmp_path, num_numbers):
    before, own = torch.randn(7), torch.randn(num_numbers)
    (tmp_path / "file").write_bytes(before.numpy().tobytes() + own.numpy().tobytes())
    staged, copies = reader(buffer_bytes=128)
    found, other = torch.empty(num_numbers), torch.empty(7)
    with FileIO(tmp_path / "file") as file:
        staged.read(file, 28, torch.float32, found)
        staged.read(file, 0, torch.float32, other)
    staged.finish()
    assert torch.equal(found, own)
    assert torch.equal(other, before)
    assert max(copies.sizes) <= 128
    assert sum(copies.sizes) == 4 * (num_numbers + 7)


def test_a_file_that_ends_too_early_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100))
    staged, _ = reader(buffer_bytes=64)
    with FileIO(tmp_path / "file") as file, pytest.raises(EOFError, match="file ends 24 bytes too"):
        staged.read(file, 4, torch.float32, torch.empty(30))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("buffer_bytes", [64, 1000, 1 << 20])
def test_a_checkpoint_through_buffers_is_the_one_that_cpus_load(tmp_path, dtype, buffer_bytes):
    tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    shard = ExpertShard((7, 2, 5), LocalDispatcher())  # of stacks, in an order of their own
    expected = load_model(tmp_path, dtype=dtype, shards=lambda _: shard)
    config = KimiVLConfig.from_checkpoint(tmp_path)
    model = empty_model(config, dtype, CPU, lambda _: shard)
    staged, copies = reader(buffer_bytes)
    with torch.no_grad():
        slots = weight_slots(model, destinations(config))
        read_staged(stored_tensors(tmp_path), slots, staged)
    for (name, one), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other), name
    # Each number of the held weights was read once, and no other.
    assert sum(copies.sizes) == sum(2 * slot.numel() for slot in slots.values())


def test_files_are_read_from_their_start_to_their_end(tmp_path, monkeypatch):
    config = tiny_checkpoint(tmp_path)
    read = []

    class Noting(StagedReader):
        def read(self, file, offset, dtype, destination):
            read.append((file.name, offset))

    slots = weight_slots(load_model(tmp_path), destinations(config))
    read_staged(stored_tensors(tmp_path), slots, Noting(torch.empty, LateCopies(), 1))
    assert len(read) == len(slots)
    assert read == sorted(read)
    assert len({file for file, _ in read}) == 2


def test_a_file_that_was_cut_is_named(tmp_path):
    config = tiny_checkpoint(tmp_path)
    stored = stored_tensors(tmp_path)
    slots = weight_slots(load_model(tmp_path), destinations(config))
    slots = {name: torch.empty_like(slot) for name, slot in slots.items()}
    file = sorted(tmp_path.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{file.name} cannot be read: .* 1 bytes too early"):
        read_staged(stored, slots, reader(1 << 20)[0])


def test_a_gpu_gets_its_weights_through_buffers(tmp_path, monkeypatch):
    tiny_checkpoint(tmp_path)
    staged = []
    monkeypatch.setattr(weights, "StagedReader", lambda: "pinned")
    monkeypatch.setattr(weights, "read_staged", lambda *given: staged.append(given[2]))
    on_cpu = weights.empty_model
    monkeypatch.setattr(
        weights, "empty_model", lambda config, dtype, _, shards: on_cpu(config, dtype, CPU, shards)
    )
    load_model(tmp_path, device=torch.device("cuda"))
    assert staged == ["pinned"]
