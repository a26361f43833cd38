"""Run an engine in a process of its own, alone or as a rank of a group, driven through a pipe.

host --("prefill" | "fill" | "decode", number)--> process --Spent--> host
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

from jobs.bench.measure.shapes import RandomPrompts, add_all
from model.engine.engine import Engine
from model.network.kimi_vl import KimiVL
from model.network.moe import Dispatch, Dispatcher, Experts, MoE
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


class TimedDispatcher:
    """A dispatcher that measures its time."""

    def __init__(self, inner: Dispatcher) -> None:
        self._inner = inner
        self.seconds = 0.0

    def dispatch(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Dispatch:
        """Dispatch like `model.network.moe.Dispatcher.dispatch`."""
        with self.timed():
            dispatch = self._inner.dispatch(x, expert_ids, weights)
        return TimedDispatch(dispatch, self)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of a `with`."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


class TimedDispatch:
    """A dispatch that adds its time to that of its dispatcher."""

    def __init__(self, inner: Dispatch, dispatcher: TimedDispatcher) -> None:
        self._inner = inner
        self._dispatcher = dispatcher

    @property
    def rows(self) -> Tensor:
        """The received rows; this is the first access that waits for them."""
        with self._dispatcher.timed():
            return self._inner.rows

    @property
    def rows_per_expert(self) -> Tensor:
        """Rows of each expert; not timed, because `rows` has waited."""
        return self._inner.rows_per_expert

    def combine(self, y: Tensor) -> Tensor:
        """Send the results back and combine them."""
        with self._dispatcher.timed():
            return self._inner.combine(y)


class Process:
    """Executes the tasks that come through the pipe.

    Args:
        engine: made before the fork, with the whole network; this process owns it from now on.
        num_threads: threads of torch.
        prompt_len: tokens of each prompt.
        spec: the rank in its group; None for an engine alone.
        shards: for each rank, its experts in each MoE layer.
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
        timed = TimedDispatcher(dispatcher.for_layer(topology))
        for layer, experts in zip(moe_layers(model), shard, strict=True):
            layer.dispatcher = timed
            layer.rows_computed = layer.rows_computed[: topology.num_local_experts].clone()
            setattr(layer, "experts", experts)  # noqa: B010  prepacked ones are of another class
        lockstep = Lockstep(self._group, dispatcher.begin)
        self._step = ExpertParallelEngine(self._engine, lockstep).step
        self._exchange_s = lambda: timed.seconds + lockstep.stats.wait_s

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


def moe_layers(model: KimiVL) -> list[MoE]:
    """Return the MoE layers in their order."""
    return [module for module in model.modules() if isinstance(module, MoE)]


def shards_of(model: KimiVL, num_ranks: int) -> list[nn.ModuleList]:
    """Return the experts of each rank in each layer, as views of weights as they are stored."""
    topology = Topology.even(model.config.text.n_routed_experts, num_ranks)
    return [
        nn.ModuleList(_slice(layer.experts, local_experts) for layer in moe_layers(model))
        for local_experts in topology.local_experts
    ]


def _slice(experts: Experts, held: Sequence[int]) -> Experts:
    with torch.device("meta"):
        sliced = Experts(len(held), 1, 1)
    here = slice(held[0], held[-1] + 1)
    sliced.gate_up_proj = nn.Parameter(experts.gate_up_proj[here], requires_grad=False)
    sliced.down_proj = nn.Parameter(experts.down_proj[here], requires_grad=False)
    return sliced
