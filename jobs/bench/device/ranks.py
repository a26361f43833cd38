"""Measure R ranks, one GPU each, that share the experts of one copy: prefill and decode.

All ranks do the same at the same time, each with prompts of its own, so they end with the same
step. The report is that of rank 0; rates are those of all ranks together. Exchanges of rows are no
part of the limits.
"""

from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import torch.distributed as dist

from jobs.bench.device.bench import GIB, Sizes
from jobs.bench.device.bounds import decode_bytes, prefill_flops
from jobs.bench.device.card import Card
from jobs.bench.device.clock import timed_on
from jobs.bench.measure.ranks import run_on_ranks
from jobs.bench.measure.shapes import RandomPrompts, add_all, engine_with, random_model
from jobs.bench.measure.turns import by_key
from jobs.planning.network import Network
from model.config import BLOCK_SIZE, KimiVLConfig
from model.engine.config import EngineConfig
from model.engine.engine import make_fast
from model.inputs.prompt import Prompt
from parallel.experts.policy import Exchange
from parallel.experts.topology import even_topologies
from parallel.ranks.ep_engine import ExpertParallelEngine
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.rendezvous import JoinedGroup
from parallel.ranks.step_dispatcher import StepDispatcher

_WARM_UP = 20  # steps: prompts wait for those of other ranks for up to 8


def measure_ranks(
    config: KimiVLConfig, sizes: Sizes, num_ranks: int, *, is_dry: bool
) -> dict[str, object]:
    """Measure in one process for each rank; a dry run has ranks on the CPU."""
    return run_on_ranks(_measure, num_ranks, config, sizes, is_dry)


def _measure(config: KimiVLConfig, sizes: Sizes, is_dry: bool, spec: RankSpec) -> dict[str, object]:
    device = torch.device("cpu") if is_dry else torch.device("cuda", spec.rank)
    if is_dry:
        torch.set_num_threads(1)
    else:
        torch.cuda.set_device(device)
    rank = MeasuredRank(config, sizes, device, spec)
    prefill = rank.prefill()
    decodes = {number: rank.decode(number) for number in sizes.num_sequences}
    peak_gib = None if is_dry else round(torch.cuda.max_memory_allocated(device) / GIB, 1)
    found = {
        "card": rank.card.name,
        "ranks": spec.num_ranks,
        **rank.card.limits(),
        **prefill,
        **by_key(decodes),
        "ranks_peak_gib": peak_gib,
    }
    dist.barrier(group=rank.group)
    dist.destroy_process_group()
    return found


class MeasuredRank:
    """One rank of the group, with random weights on its device."""

    def __init__(
        self, config: KimiVLConfig, sizes: Sizes, device: torch.device, spec: RankSpec
    ) -> None:
        self.group = JoinedGroup(spec, device).group
        self.card = Card(device)
        self._sizes, self._device, self._num_ranks = sizes, device, spec.num_ranks
        self._network = Network(config)
        self._prompts = RandomPrompts(config, seed=spec.rank)
        topologies = even_topologies(config.text, spec.num_ranks)
        dispatcher = StepDispatcher(topologies, self.group, device, Exchange())
        model = random_model(config, device, dispatcher.shards().__getitem__)
        make_fast(model)
        most = max(*sizes.num_sequences, *sizes.prefill_prompts)
        num_blocks = most * ((sizes.prompt_len + self._num_steps) // BLOCK_SIZE + 2)
        cache_bytes = num_blocks * BLOCK_SIZE * self._network.cache_bytes
        engine = EngineConfig(device=str(device), max_batch_size=most, cache_gib=cache_bytes / GIB)
        self._engine = ExpertParallelEngine.join(engine_with(model, engine), self.group, dispatcher)

    @property
    def _num_steps(self) -> int:
        """Tokens of an answer: a round warms up, and one step counts experts."""
        return 2 * _WARM_UP + (self._sizes.num_rounds + 1) * self._sizes.decode_steps

    def prefill(self) -> dict[str, object]:
        """Measure prompts, as many on each rank as make the largest step."""
        number, length = max(self._sizes.prefill_prompts), self._sizes.prompt_len

        def once() -> float:
            add_all(self._engine, self._new_prompts(number), max_tokens=1)
            return self._seconds(lambda: self._finish(number))

        seconds = median([once() for _ in range(self._sizes.num_rounds + 1)][1:])
        limit_s = prefill_flops(self._network, number, length) / self.card.flops_per_s()
        return {
            "ranks_prefill_tokens_per_s": round(self._num_ranks * number * length / seconds, 1),
            "ranks_prefill_of_limit": round(limit_s / seconds, 3),
        }

    def decode(self, number: int) -> dict[str, object]:
        """Measure `number` sequences on each rank."""
        sizes = self._sizes
        prompts = self._new_prompts(number)
        # The second time only the last block of each prompt is computed; see `Decoding`.
        add_all(self._engine, prompts, max_tokens=1)
        self._finish(number)
        add_all(self._engine, prompts, max_tokens=self._num_steps)
        self._steps(_WARM_UP)
        experts = self._experts_per_layer()
        rounds = [
            self._seconds(lambda: self._steps(sizes.decode_steps))
            for _ in range(sizes.num_rounds + 1)
        ]
        self._finish(number)
        step_s = median(rounds[1:]) / sizes.decode_steps
        context_len = sizes.prompt_len + self._num_steps / 2
        must_read = decode_bytes(self._network, number, context_len, experts)
        limit_s = must_read / self.card.bytes_per_s()
        return {
            "ranks_decode_tokens_per_s": round(self._num_ranks * number / step_s, 1),
            "ranks_decode_of_limit": round(limit_s / step_s, 3),
            "ranks_decode_step_ms": round(1e3 * step_s, 3),
            "ranks_decode_experts_per_layer": round(experts, 1),
        }

    def _new_prompts(self, number: int) -> list[Prompt]:
        return [self._prompts.text(self._sizes.prompt_len) for _ in range(number)]

    def _finish(self, number: int) -> None:
        """Step until so many requests are answered."""
        while number:
            number -= len(self._engine.step())

    def _steps(self, number: int) -> None:
        for _ in range(number):
            if self._engine.step():
                raise RuntimeError("a sequence ended before all were measured")

    def _seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds from the moment when all ranks are there."""
        dist.barrier(group=self.group)
        return timed_on(self._device, work)

    def _experts_per_layer(self) -> float:
        """Return how many of its experts this rank reads in a layer, the mean over layers."""
        before = self._engine.expert_load()
        self._steps(1)
        after = self._engine.expert_load()
        return float(np.mean([(after[layer] > before[layer]).sum() for layer in after]))
