"""The network with its kernels, in Triton's interpreter."""

import pytest
import torch

from model.network.batch import whole_sequences
from model.network.kernels import latent_decode
from model.network.kernels.install import install
from model.network.kv_cache import LatentCache
from tests.model.network.test_attention import cached_batch
from tests.tiny import tiny_config, tiny_model


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled, for GPUs, here")
def test_a_chunk_and_decodes_by_kernels_equal_the_whole_sequences(monkeypatch):
    monkeypatch.setattr(latent_decode, "PROGRAMS", 8)  # few, since they run one after another
    config = tiny_config({"num_hidden_layers": 2})
    model = tiny_model(config)
    first, second = list(range(5, 48)), list(range(100, 119))
    expected = model(whole_sequences([first, second]))
    install(model)
    cache = LatentCache(config.text, 8, torch.float32, model.device)
    tables = [[7, 2, 5], [3, 8, 0]]
    chunks = model(cached_batch([first[:40], second[:16]], [0, 0], tables), cache)
    hidden_first, hidden_second = [chunks[:40]], [chunks[40:]]
    for step in range(3):
        tokens = [[first[40 + step]], [second[16 + step]]]
        both = model(cached_batch(tokens, [40 + step, 16 + step], tables), cache)
        hidden_first.append(both[:1])
        hidden_second.append(both[1:])
    actual = torch.cat((*hidden_first, *hidden_second))
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)
