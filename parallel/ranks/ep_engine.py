"""`ExpertParallelEngine`: an engine that is one rank of a group.

It holds its shard of the experts and steps together with the other ranks, also when it has no work
of its own, because the others need its experts. It has the methods of an engine that is alone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist

from model.config import KimiVLConfig
from model.engine.config import EngineConfig
from model.engine.dtype import choose_dtype
from model.engine.engine import Engine, StepTurn
from model.engine.sequence import Completion, SamplingParams
from model.inputs.prompt import Prompt, PromptError
from model.malloc import use_expandable_segments
from parallel.experts.load import ExpertLoad
from parallel.experts.policy import Exchange
from parallel.experts.topology import Topologies, even_topologies
from parallel.ranks.lockstep import Lockstep
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.rendezvous import JoinedGroup
from parallel.ranks.step_dispatcher import StepDispatcher

_IDLE_SLEEP_S = 0.01  # after a step in which no rank had work, before they ask each other again


def load_ep_engine(
    checkpoint: Path, config: EngineConfig, rank_spec: RankSpec, exchange: Exchange
) -> "ExpertParallelEngine":
    """Join the group, load this rank's shard of the checkpoint, and wait for the other ranks.

    Raises CheckpointError: the checkpoint cannot be used; ValueError: its experts cannot be divided
    over the ranks; or DistError: another rank did not come in time.
    """
    device = _own_device(config)
    text = KimiVLConfig.from_checkpoint(checkpoint).text
    if not text.n_routed_experts:
        raise ValueError(f"{checkpoint} has no routed experts to divide; use one rank")
    topologies = rank_spec.topologies or even_topologies(text, rank_spec.num_ranks)
    joined = JoinedGroup(rank_spec, device)
    # A rank that is ready early would wait in its first exchange, and `exchange_timeout_s` is
    # short against the time that the slowest rank may need to load.
    wait = joined.wait_until_all_loaded
    engine = load_shard(checkpoint, config, topologies, joined.group, exchange, wait)
    wait()
    return engine


def _own_device(config: EngineConfig) -> torch.device:
    """Return the device of this process, a GPU with its number: NCCL asks for it."""
    use_expandable_segments(config.device)
    device = torch.device(config.device)
    if device.type == "cuda":
        if device.index is None:  # Ray hides all GPUs but the rank's own
            device = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.set_device(device)
    return device


def load_shard(
    checkpoint: Path,
    config: EngineConfig,
    topologies: Topologies,
    group: dist.ProcessGroup,
    exchange: Exchange,
    wait_until_all_loaded: Callable[[], None],
) -> "ExpertParallelEngine":
    """Load the weights of this rank of a group that it has already joined.

    `wait_until_all_loaded` is called before the worst-case step, which all ranks compute together.
    """
    config = _with_common_dtype(checkpoint, config, group)
    dispatcher = StepDispatcher(topologies, group, torch.device(config.device), exchange)

    @contextmanager
    def worst_turn(num_tokens: int, is_decode: bool) -> Iterator[StepTurn]:
        wait_until_all_loaded()
        # A lockstep of its own, as the step is not one of those that are counted and paced.
        with Lockstep(group, dispatcher.begin).turn(num_tokens, is_decode):
            yield dispatcher.turn

    shards = dispatcher.shards().__getitem__
    engine = Engine.from_checkpoint(checkpoint, config, shards, worst_turn)
    return ExpertParallelEngine.join(engine, group, dispatcher)


def _with_common_dtype(
    checkpoint: Path, config: EngineConfig, group: dist.ProcessGroup
) -> EngineConfig:
    """Let all ranks of a group compute in one dtype: rows travel between them as they are.

    Float32 replaces a stored bfloat16 only if every rank would choose it by itself.
    """
    if config.dtype != "auto" or torch.device(config.device).type != "cpu":
        return config
    widens = choose_dtype(checkpoint, config).dtype == torch.float32
    number = torch.tensor(int(widens))
    dist.all_reduce(number, dist.ReduceOp.MIN, group)
    if number.item():
        return replace(config, dtype="float32")
    return replace(config, dtype="bfloat16") if widens else config


class ExpertParallelEngine:
    """An engine for `parallel.ranks.worker.Rank` that steps in lockstep with other ranks.

    It always has work, because the other ranks may have some.
    """

    has_work = True

    def __init__(self, engine: Engine, lockstep: Lockstep, dispatcher: StepDispatcher) -> None:
        self._engine = engine
        self._lockstep = lockstep
        self._dispatcher = dispatcher

    @classmethod
    def join(cls, engine: Engine, group: dist.ProcessGroup, dispatcher: StepDispatcher) -> Self:
        """Let an engine, whose experts have this dispatcher, step together with its group."""
        dispatcher.filled_size = engine.graph_size
        min_tokens = engine.config.max_step_tokens if engine.replays_graphs else 0
        return cls(engine, Lockstep(group, dispatcher.begin, min_tokens), dispatcher)

    def add(
        self, request_id: str, prompt: Prompt, params: SamplingParams, *, own_step: bool = False
    ) -> None:
        """Queue a prompt; see `Engine.add`."""
        with self._lockstep.announced(PromptError):
            self._engine.add(request_id, prompt, params, own_step=own_step)

    def cancel(self, request_id: str) -> None:
        """Forget a request; see `Engine.cancel`."""
        self._engine.cancel(request_id)

    def step(self) -> Sequence[tuple[str, Completion | PromptError]]:
        """Do one step together with all ranks; sleep shortly if none of them had work.

        Raises LockstepError: another rank stopped or failed.
        """
        num_steps = self._lockstep.stats.num_steps
        with self._lockstep.announced():
            finished = self._engine.step(self._turn, self._lockstep.pace.limit)
        if self._lockstep.stats.num_steps == num_steps and not self._lockstep.pace.limit:
            time.sleep(_IDLE_SLEEP_S)
        return finished

    @contextmanager
    def _turn(self, num_tokens: int, is_decode: bool) -> Iterator[StepTurn]:
        """Run the layers of a step with all ranks; a `model.engine.engine.Turn`."""
        waiting = self._engine.scheduler.num_waiting_tokens
        with self._lockstep.turn(num_tokens, is_decode, waiting):
            yield self._dispatcher.turn

    def stats(self) -> dict[str, float]:
        """Return the numbers of the engine, and how well this rank keeps step with the others."""
        return self._engine.stats() | self._lockstep.stats.numbers()

    def expert_load(self) -> ExpertLoad:
        """Return the tokens that each expert of this rank has computed."""
        return self._engine.expert_load()

    def close(self) -> None:
        """Leave the group, which ends the other ranks too."""
        self._lockstep.stop()
        self._engine.close()
