"""What `dtype="auto"` means on processors with and without bfloat16 products."""

import pytest
import torch

from model.engine import dtype
from model.engine.config import EngineConfig
from model.engine.dtype import AS_STORED, choose_dtype
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.inputs.processor import Processor
from model.network import onednn
from model.network.onednn import WidenedLinear
from model.network.weights import stored_tensors
from tests.tiny import tiny_checkpoint


@pytest.fixture
def old_processor(monkeypatch):
    for module in (dtype, onednn):
        monkeypatch.setattr(module, "has_bfloat16_products", lambda: False)


def float32_bytes(checkpoint):
    return 4 * sum(torch.Size(each.shape).numel() for each in stored_tensors(checkpoint).values())


def test_a_processor_with_bfloat16_products_keeps_the_stored_dtype(tmp_path, monkeypatch):
    monkeypatch.setattr(dtype, "has_bfloat16_products", lambda: True)
    assert choose_dtype(tmp_path, EngineConfig()) == AS_STORED  # no file is read


def test_a_processor_without_them_computes_in_float32(tmp_path, old_processor):
    tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    choice = choose_dtype(tmp_path, EngineConfig())
    assert choice.dtype == torch.float32
    assert "float32, because this processor has no instructions for bfloat16" in choice.why


def test_where_memory_is_unknown_it_computes_in_float32_too(tmp_path, monkeypatch, old_processor):
    def unknown():
        raise ValueError("no /proc/meminfo")

    tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    monkeypatch.setattr(dtype, "available_bytes", unknown)
    assert choose_dtype(tmp_path, EngineConfig()).dtype == torch.float32


@pytest.mark.parametrize(
    ("ranks", "free_of_needed", "chosen"),
    [
        pytest.param(1, 2.0, torch.float32, id="half of the free memory is enough"),
        pytest.param(1, 1.9, torch.bfloat16, id="too little"),
        pytest.param(3, 5.9, torch.bfloat16, id="too little for three ranks"),
        pytest.param(3, 6.1, torch.float32, id="enough for three ranks"),
    ],
)
def test_float32_needs_memory(tmp_path, monkeypatch, old_processor, ranks, free_of_needed, chosen):
    tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    free = int(free_of_needed * float32_bytes(tmp_path))
    monkeypatch.setattr(dtype, "available_bytes", lambda: free)
    choice = choose_dtype(tmp_path, EngineConfig(ranks_per_machine=ranks))
    assert choice.dtype == chosen
    assert ("block by block" in choice.why) == (chosen == torch.bfloat16)


@pytest.mark.parametrize("asked", ["bfloat16", "float16", "float32"])
def test_what_is_asked_for_is_what_is_used(tmp_path, old_processor, asked):
    choice = choose_dtype(tmp_path, EngineConfig(dtype=asked))
    assert (choice.dtype, choice.why) == (getattr(torch, asked), "")


def test_other_stored_dtypes_and_gpus_stay_as_they_are(tmp_path, old_processor):
    tiny_checkpoint(tmp_path, dtype=torch.float32)
    assert choose_dtype(tmp_path, EngineConfig()) == AS_STORED
    tiny_checkpoint(tmp_path / "bf16", dtype=torch.bfloat16)
    assert choose_dtype(tmp_path / "bf16", EngineConfig(device="cuda")) == AS_STORED


def test_an_engine_answers_as_in_float32_or_widens_its_weights(
    tmp_path, monkeypatch, old_processor
):
    tiny_checkpoint(tmp_path, dtype=torch.bfloat16)

    def answer(asked):
        engine = Engine.from_checkpoint(tmp_path, EngineConfig(dtype=asked))
        prompt = Processor.from_checkpoint(tmp_path).prompt(["What is in the picture?"])
        engine.add("x", prompt, SamplingParams(max_tokens=8))
        finished = []
        while engine.has_work:
            finished += engine.step()
        return engine.model.dtype, finished[0][1].token_ids

    assert answer("auto") == answer("float32")
    assert answer("auto")[0] == torch.float32
    monkeypatch.setattr(dtype, "available_bytes", lambda: 1000)
    short = Engine.from_checkpoint(tmp_path, EngineConfig())
    assert short.model.dtype == torch.bfloat16
    assert isinstance(short.model.language_model.lm_head, WidenedLinear)
