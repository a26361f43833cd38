"""`ExpertParallelEngine`: an engine as one rank of a group, with the methods of an engine alone.

It holds its share of the experts, steps in lock-step with the others, and steps also when it has
nothing to do, because the others need its experts.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist

from model.config import KimiVLConfig
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.sequence import Completion, SamplingParams
from model.inputs.prompt import Prompt, PromptError
from parallel.experts.load import ExpertLoad
from parallel.experts.policy import Exchange
from parallel.experts.shards import Topologies, even_topologies, num_held, shards_of
from parallel.ranks.lockstep import Lockstep
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.rendezvous import JoinedGroup
from parallel.ranks.step_dispatcher import StepDispatcher

_NAP_S = 0.01  # between two looks whether any rank has work, when none had


def load_ep_engine(
    checkpoint: Path, config: EngineConfig, seat: RankSpec, exchange: Exchange
) -> "ExpertParallelEngine":
    """Join the group, load this rank's share of the checkpoint, and wait for the other ranks.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ValueError: its experts cannot be divided over the ranks.
        DistError: another rank did not come in time.
    """
    device = _own_device(config)
    text = KimiVLConfig.from_checkpoint(checkpoint).text
    if not text.n_routed_experts:
        raise ValueError(f"{checkpoint} has no routed experts to divide; use one rank")
    topologies = seat.topologies or even_topologies(text, seat.num_ranks)
    membership = JoinedGroup(seat, device)
    member = load_shard(checkpoint, config, topologies, membership.group, exchange)
    membership.wait_until_all_loaded()
    return member


def _own_device(config: EngineConfig) -> torch.device:
    """The device of this process; a GPU with its number, which NCCL asks for."""
    device = torch.device(config.device)
    if device.type == "cuda":
        if device.index is None:  # Ray shows a rank its own GPU alone
            device = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.set_device(device)
    return device


def load_shard(
    checkpoint: Path,
    config: EngineConfig,
    topologies: Topologies,
    group: dist.ProcessGroup,
    exchange: Exchange,
) -> "ExpertParallelEngine":
    """Load what this rank of a joined group holds."""
    device = torch.device(config.device)
    dispatcher = StepDispatcher(num_held(topologies), group, device, exchange)
    shares = shards_of(topologies, group.rank(), dispatcher, device)
    engine = Engine.from_checkpoint(checkpoint, config, shares.__getitem__)
    return ExpertParallelEngine(engine, Lockstep(group, dispatcher.begin))


class ExpertParallelEngine:
    """As `parallel.ranks.worker.Engine`; always has work, since the others may."""

    has_work = True

    def __init__(self, engine: Engine, lockstep: Lockstep) -> None:
        self._engine = engine
        self._lockstep = lockstep

    def add(self, request_id: str, prompt: Prompt, params: SamplingParams) -> None:
        """As `Engine.add`."""
        with self._lockstep.announced(PromptError):
            self._engine.add(request_id, prompt, params)

    def cancel(self, request_id: str) -> None:
        """As `Engine.cancel`."""
        self._engine.cancel(request_id)

    def step(self) -> Sequence[tuple[str, Completion | PromptError]]:
        """One step with all ranks; a nap if none of them had anything to do.

        Raises:
            LockstepError: another rank stopped or failed.
        """
        num_steps = self._lockstep.stats.num_steps
        with self._lockstep.announced():
            finished = self._engine.step(self._turn, self._lockstep.pace.limit)
        if self._lockstep.stats.num_steps == num_steps and not self._lockstep.pace.limit:
            time.sleep(_NAP_S)
        return finished

    def _turn(self, num_tokens: int, is_decode: bool) -> AbstractContextManager[bool]:
        """As `model.engine.engine.Turn`."""
        waiting = self._engine.scheduler.num_waiting_tokens
        return self._lockstep.turn(num_tokens, is_decode, waiting)

    def stats(self) -> dict[str, float]:
        """Those of the engine, and how well this rank keeps together with the others."""
        return self._engine.stats() | self._lockstep.stats.numbers()

    def expert_load(self) -> ExpertLoad:
        """As `Engine.expert_load`, of the experts that this rank holds."""
        return self._engine.expert_load()

    def close(self) -> None:
        """Leave the group, which ends it."""
        self._lockstep.stop()
        self._engine.close()
