"""Ranks of a group whose memory is short, and the worst-case step that they compute together."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist

from model.engine import engine as engine_module
from model.engine.fit.device_fit import fit_device
from model.engine.sequence import Completion, SamplingParams
from model.inputs.processor import Processor
from model.inputs.prompt import PromptError
from model.network.kimi_vl import KimiVL
from parallel.ranks.lockstep import LockstepError
from tests.parallel.rank_threads import run_ranks
from tests.parallel.ranks import test_lockstep
from tests.parallel.ranks.test_lockstep import CONFIG, answer_alone, load_rank
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def work(checkpoint):
    processor = Processor.from_checkpoint(checkpoint)
    small, large = (
        np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
        for side in (56, 140)
    )
    return {
        "large": (processor.prompt(["a ", large]), 5),
        "image": (processor.prompt([small, "what?"]), 9),
        "text": (processor.prompt(["blue"]), 20),
    }


def answer_on_two_ranks(checkpoint, work):
    """Rank 1 answers all; return the outcomes, and why each rank ended."""
    done = {}

    def on_rank(group: dist.ProcessGroup) -> str:
        engine = load_rank(checkpoint, group, "all_to_all")
        for name, (prompt, num_tokens) in work.items() if group.rank() else ():
            engine.add(name, prompt, SamplingParams(max_tokens=num_tokens))
        try:
            while len(done) < len(work):
                done.update(engine.step())
            engine.close()
        except (LockstepError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return "closed"

    return done, run_ranks(2, on_rank, timeout_s=4)


def test_images_that_are_too_large_for_one_rank_fail_alone(checkpoint, work, monkeypatch):
    encode = KimiVL.encode_images

    def small_encode(self, images, grid_hw):
        if len(images) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(self, images, grid_hw)

    small = {name: work[name] for name in ("image", "text")}
    expected = answer_alone(checkpoint, small)
    monkeypatch.setattr(KimiVL, "encode_images", small_encode)
    done, ends = answer_on_two_ranks(checkpoint, work)
    assert isinstance(done["large"], PromptError)
    assert done["large"].code == "out_of_memory"
    found = {name: done[name] for name in small}
    assert all(isinstance(each, Completion) for each in found.values())
    assert {name: each.token_ids for name, each in found.items()} == expected
    assert "closed" in ends


def test_layers_that_run_out_of_memory_end_the_group_with_the_remedies(
    checkpoint, work, monkeypatch
):
    forward = KimiVL.forward

    def small_forward(self, batch, *rest):
        if len(batch.token_ids) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, batch, *rest)

    monkeypatch.setattr(KimiVL, "forward", small_forward)
    done, ends = answer_on_two_ranks(checkpoint, work)
    assert not done
    assert ends[1].startswith("LockstepError: the layers of a step ran out of memory; lower --max-")
    assert ends[1].endswith("CUDA out of memory.")
    assert ends[0] != "closed"


@pytest.mark.parametrize("batch_sizes", [(4, 4), (1, 9)], ids=["alike", "different cards"])
def test_all_ranks_compute_the_worst_step_together_and_it_leaves_no_trace(
    checkpoint, work, monkeypatch, batch_sizes
):
    steps, order = [], []
    forward = KimiVL.forward

    def noted_forward(self, batch, *rest):
        steps.append(len(batch.query_lens))
        return forward(self, batch, *rest)

    def fit_with_worst_step(batch_size, model, config, max_model_len, worst_step):
        if config.cache_gib == CONFIG.cache_gib:  # not for the engine of the worst-case step
            assert worst_step(batch_size) > 0
            order.append("computed")
        return fit_device(model, config, max_model_len, worst_step)

    def on_rank(group: dist.ProcessGroup) -> None:
        fit = partial(fit_with_worst_step, batch_sizes[group.rank()])
        fits[group.rank()] = fit
        dist.barrier(group)
        engine = load_rank(checkpoint, group, "all_to_all")
        stats = engine.stats()
        assert stats["steps"] == stats["tokens"] == stats["own_wait_s"] == 0
        assert not any(tokens.any() for tokens in engine.expert_load().values())
        dist.barrier(group)

    fits = {}

    def choose_fit(model, *rest):
        # Which rank this is, its experts tell: rank 0 holds the first.
        rank = 0 if 0 in next(iter(model.experts.values())).local_experts else 1
        return fits[rank](model, *rest)

    monkeypatch.setattr(test_lockstep, "CONFIG", replace(CONFIG, max_vision_patches=64))
    monkeypatch.setattr(KimiVL, "forward", noted_forward)
    monkeypatch.setattr(engine_module, "fit_device", choose_fit)
    run_ranks(2, on_rank)
    assert sorted(steps) == sorted(batch_sizes)
    assert order == ["computed"] * 2
