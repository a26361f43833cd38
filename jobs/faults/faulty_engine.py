"""Blows to ranks, from inside their processes: what a drill does to a run.

A fault falls at a step of a rank, in a generation of its group, so that each falls once, however
often the group is built anew.
"""

import os
import random
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.engine.config import EngineConfig
from model.engine.sequence import Completion, SamplingParams
from model.inputs.prompt import Prompt, PromptError
from parallel.experts.load import ExpertLoad
from parallel.experts.policy import Exchange
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.worker import Engine
from pipeline.cluster.deployment import load_engine

Kind = Literal["kill", "stop"]
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(frozen=True)
class Fault:
    """What happens to one rank."""

    kind: Kind
    group: int
    rank: int  # in its group
    generation: int
    step: int  # with work, of that process


def make_blows(asked: Sequence[tuple[Kind, int, int]], num_ranks: int) -> list[Fault]:
    """Blows in the order asked for, each with the generation in which its group will then be.

    Args:
        asked: (kind, rank counted over all groups, step).
        num_ranks: of each group.
    """
    faults: list[Fault] = []
    for kind, number, step in asked:
        group = number // num_ranks
        generation = sum(fault.group == group for fault in faults)
        faults.append(Fault(kind, group, number % num_ranks, generation, step))
    return faults


def random_blows(
    num_blows: int, *, num_groups: int, num_ranks: int, last_step: int, seed: int
) -> list[Fault]:
    """Kills and stops in turn, at random ranks and steps, the groups in turn."""
    chance = random.Random(seed)
    asked: list[tuple[Kind, int, int]] = []
    for number in range(num_blows):
        kind: Kind = "stop" if number % 2 else "kill"
        group = number % num_groups
        rank = group * num_ranks + chance.randrange(num_ranks)
        asked.append((kind, rank, chance.randint(1, max(1, last_step))))
    return make_blows(asked, num_ranks)


def load_hurt_engine(
    faults: Sequence[Fault],
    checkpoint: Path,
    config: EngineConfig,
    exchange: Exchange,
    seat: RankSpec | None,
) -> Engine:
    """As `load_engine`; the faults that are meant for this process will fall."""
    engine = load_engine(checkpoint, config, exchange, seat)
    if seat is None:
        return engine
    for fault in faults:
        generation = f"group-{fault.group}-generation-{fault.generation}"
        if (seat.generation, seat.rank) == (generation, fault.rank):
            return FaultyEngine(engine, fault)
    return engine


class FaultyEngine:
    """An engine whose process ends, or stops, before one of its steps."""

    def __init__(self, engine: Engine, fault: Fault) -> None:
        self._engine = engine
        self._blow = fault

    @property
    def has_work(self) -> bool:
        """As `Engine.has_work`."""
        return self._engine.has_work

    def add(self, request_id: str, prompt: Prompt, params: SamplingParams) -> None:
        """As `Engine.add`."""
        self._engine.add(request_id, prompt, params)

    def cancel(self, request_id: str) -> None:
        """As `Engine.cancel`."""
        self._engine.cancel(request_id)

    def stats(self) -> Mapping[str, float]:
        """As `Engine.stats`."""
        return self._engine.stats()

    def expert_load(self) -> ExpertLoad:
        """As `Engine.expert_load`."""
        return self._engine.expert_load()

    def close(self) -> None:
        """As `Engine.close`."""
        self._engine.close()

    def step(self) -> Sequence[tuple[str, Completion | PromptError]]:
        """As `Engine.step`, unless it is time."""
        if self._engine.stats()["steps"] >= self._blow.step:
            os.kill(os.getpid(), _SIGNALS[self._blow.kind])
        return self._engine.step()
