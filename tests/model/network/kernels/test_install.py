"""An engine with all kernels, under Triton's interpreter, gives the tokens of the plain engine."""

import pytest

from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.network.kernels import latent_decode
from model.network.kernels.install import install


def answers(checkpoint, processor, with_kernels, **config):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig(max_model_len=96, **config))
    if with_kernels:
        install(engine.model)
        engine = Engine(engine.model, engine.tokenizer, engine.config)
    done = {}
    for text in ("moves?", "how many?"):  # the second finds the first block of the first
        prompt = processor.prompt(["red circle " * 3 + text])
        engine.add(text, prompt, SamplingParams(max_tokens=3))
        done |= dict(engine.step())
    while engine.has_work:
        done |= dict(engine.step())
    return done


@pytest.mark.slow
def test_an_engine_with_kernels_gives_the_same_tokens(checkpoint, processor, monkeypatch):
    plain = answers(checkpoint, processor, with_kernels=False)
    queries = []
    decode = latent_decode.decode

    def counted(query, *rest):
        queries.append(len(query))
        return decode(query, *rest)

    monkeypatch.setattr(latent_decode, "decode", counted)
    settings = {"runs_ahead": True, "cuda_graphs": False}
    found = answers(checkpoint, processor, with_kernels=True, **settings)
    for text, completion in plain.items():
        assert found[text].token_ids == completion.token_ids
        assert found[text].mean_logprob == pytest.approx(completion.mean_logprob, abs=1e-5)
    # A few new tokens behind a cached past attend to the cache alone, as decodes do.
    assert max(queries) > len(plain)
