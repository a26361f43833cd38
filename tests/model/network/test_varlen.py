"""Shapes and dtypes fit under fake CUDA tensors; this needs no GPU."""

import pytest
import torch

from jobs.bench.measure.fake_gpu import fake_gpu
from model.network import varlen
from model.network.attend import attend_varlen
from model.network.batch import whole_sequences
from model.network.varlen import Spans


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sequences_side_by_side_on_a_gpu_keep_shape_and_dtype(dtype):
    with fake_gpu():
        x = torch.empty(11, 16, 192, dtype=dtype, device="cuda")
        assert varlen.runs_on(x)
        found = attend_varlen(x, x, x, Spans((4, 4, 3), x.device), 0.1, is_causal=True)
    assert found.output.shape == (11, 16, 192)
    assert found.output.dtype == dtype
    assert found.lse.shape == (11, 16)
    assert found.lse.dtype == torch.float32
    assert found.output.device.type == found.lse.device.type == "cuda"


def test_float32_on_a_gpu_takes_plain_products():
    with fake_gpu():
        x = torch.empty(11, 16, 192, device="cuda")
        assert not varlen.runs_on(x)
        found = attend_varlen(x, x, x, Spans((4, 4, 3), x.device), 0.1, is_causal=True)
    assert found.output.shape == (11, 16, 192)
    assert found.output.device.type == "cuda"


def test_a_cpu_never_takes_the_kernel_of_gpus():
    assert not varlen.runs_on(torch.empty(1, 1, 8, dtype=torch.bfloat16))


@pytest.mark.gpu
def test_the_kernel_equals_plain_products():
    x = torch.randn(11, 4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = attend_varlen(x, x, x, Spans((4, 4, 3), x.device), 0.1, is_causal=True)
    there = x.cuda()
    found = attend_varlen(there, there, there, Spans((4, 4, 3), there.device), 0.1, is_causal=True)
    torch.testing.assert_close(found.output.cpu(), expected.output, rtol=0, atol=0.02)
    torch.testing.assert_close(found.lse.cpu(), expected.lse, rtol=0, atol=0.02)


def test_the_starts_of_sequences_are_made_once():
    spans = Spans((4, 0, 3), torch.device("cpu"))
    assert spans.starts.tolist() == [0, 4, 4, 7]
    assert spans.starts.dtype == torch.int32
    assert spans.starts is spans.starts
    batch = whole_sequences([[5, 6, 7], [8]])
    assert batch.chunks.lens == (3, 1)
    assert batch.chunks is batch.chunks
