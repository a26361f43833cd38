"""Run an engine in a process of its own, alone or as a rank of a group, driven through a pipe.

host --("prefill" | "fill" | "decode", number)--> process --Spent--> host
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from torch import nn

from jobs.bench.measure.shapes import RandomPrompts, add_all
from model.engine.engine import Engine
from model.network.kimi_vl import KimiVL
from model.network.moe import Experts
from parallel.experts.policy import Exchange
from parallel.experts.topology import Topology, even_topologies
from parallel.ranks.ep_engine import ExpertParallelEngine
from parallel.ranks.lockstep import Lockstep
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.rendezvous import JoinedGroup
from parallel.ranks.step_dispatcher import StepDispatcher

_MOST_TOKENS = 1 << 12  # of an answer: more than any measurement decodes
_POLL_S = 1.0
_FILLING_STEPS = 3  # announce, prefill, decode


@dataclass(frozen=True)
class Spent:
    """The time that a process needed for a task."""

    seconds: float
    exchange_s: float  # the part in dispatch and combine, and in waiting for ranks before a step


class Stopwatch:
    """Adds up the seconds that modules spend in their forward passes."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.seconds = 0.0
        for module in modules:
            module.register_forward_pre_hook(self._start)
            module.register_forward_hook(self._stop)

    def _start(self, *_: object) -> None:
        self.seconds -= time.perf_counter()

    def _stop(self, *_: object) -> None:
        self.seconds += time.perf_counter()


class Process:
    """Executes the tasks that come through the pipe.

    `engine` was made before the fork and has the whole network. `spec` is the rank of this process
    in its group, None for an engine alone; `shards` has the experts of each rank by MoE layer.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        num_threads: int,
        prompt_len: int,
        spec: RankSpec | None = None,
        shards: Sequence[nn.ModuleList] = (),
    ) -> None:
        torch.set_num_threads(num_threads)
        self._prompts = RandomPrompts(engine.model.config, seed=spec.rank if spec else 0)
        self._prompt_len = prompt_len
        self._engine = engine
        self._step: Callable[[], Sequence[tuple[str, object]]] = self._engine.step
        self._exchange_s: Callable[[], float] = lambda: 0.0
        if spec is not None:
            self._join(spec, shards[spec.rank])

    def _join(self, spec: RankSpec, shard: nn.ModuleList) -> None:
        model = self._engine.model
        device = torch.device("cpu")
        self._group = JoinedGroup(spec, device).group
        topologies = even_topologies(model.config.text, spec.num_ranks)
        topology = next(iter(topologies.values()))  # the same in every layer
        dispatcher = StepDispatcher(topologies, self._group, device, Exchange())
        layers = model.experts.values()
        for layer, experts in zip(layers, shard, strict=True):
            layer.dispatcher = dispatcher.for_layer(topology)
            setattr(layer, "experts", experts)  # noqa: B010  prepacked ones are of another class
        lockstep = Lockstep(self._group, dispatcher.begin)
        self._step = ExpertParallelEngine(self._engine, lockstep, dispatcher).step
        # A MoE layer exchanges rows while none of its own modules computes.
        whole, computing = Stopwatch(layers), Stopwatch(m for moe in layers for m in moe.children())
        self._exchange_s = lambda: whole.seconds - computing.seconds + lockstep.stats.wait_s

    def serve(self, pipe: Connection) -> None:
        """Execute tasks until there is no more, or the host has ended."""
        tasks = {"prefill": self._prefill, "fill": self._fill, "decode": self._decode}
        host = os.getppid()
        while (asked := _next(pipe, host)) is not None:
            task, number = asked
            started, exchanged_s = time.perf_counter(), self._exchange_s()
            with torch.inference_mode():
                tasks[task](number)
            seconds = time.perf_counter() - started
            pipe.send(Spent(seconds, self._exchange_s() - exchanged_s))

    def _prefill(self, num_prompts: int) -> None:
        """Compute prompts; ranks have equally many, so all end with the same step."""
        self._add(num_prompts, max_tokens=1)
        num_left = num_prompts
        while num_left:
            num_left -= len(self._step())

    def _fill(self, num_prompts: int) -> None:
        """Let `num_prompts` sequences decode, and no others."""
        for number in range(_MOST_TOKENS):
            self._engine.cancel(str(number))
        self._add(num_prompts, max_tokens=_MOST_TOKENS)
        self._decode(_FILLING_STEPS)

    def _decode(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._step()

    def _add(self, num_prompts: int, max_tokens: int) -> None:
        prompts = [self._prompts.text(self._prompt_len) for _ in range(num_prompts)]
        add_all(self._engine, prompts, max_tokens)


def _next(pipe: Connection, host: int) -> tuple[str, int] | None:
    """Wait for the next task; return None if there is none, or if the host has ended.

    Siblings inherit the pipe, so it does not close with the host; hence the check of the parent.
    """
    while not pipe.poll(_POLL_S):
        if os.getppid() != host:
            return None
    return pipe.recv()


def shards_of(model: KimiVL, num_ranks: int) -> list[nn.ModuleList]:
    """Return the experts of each rank in each layer, as views of weights as they are stored."""
    topology = Topology.even(model.config.text.n_routed_experts, num_ranks)
    return [
        nn.ModuleList(_slice(layer.experts, local_experts) for layer in model.experts.values())
        for local_experts in topology.local_experts
    ]


def _slice(experts: Experts, held: Sequence[int]) -> Experts:
    with torch.device("meta"):
        sliced = Experts(len(held), 1, 1)
    here = slice(held[0], held[-1] + 1)
    sliced.gate_up_proj = nn.Parameter(experts.gate_up_proj[here], requires_grad=False)
    sliced.down_proj = nn.Parameter(experts.down_proj[here], requires_grad=False)
    sliced.rows_computed = experts.rows_computed[here].clone()
    return sliced
