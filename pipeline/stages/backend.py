"""`Backend`: where the stages and the engines of a run are, on Ray or in this process."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import pyarrow as pa

from parallel.experts.load import ExpertLoad
from parallel.groups.supervisor import GroupsStatus
from pipeline.cluster.deployment import Deployment
from pipeline.input.plan import RowGroupSplit
from pipeline.monitor.poll import Reporter
from pipeline.monitor.stage_costs import Cost
from pipeline.stages import generate
from pipeline.stages.journal import Journal
from pipeline.stages.sizing import Sizing

Finished = tuple[pa.Table, list[Cost]]  # rows with the columns of the output, and what they cost


class RunningGroups(generate.Groups, Protocol):
    """Groups as their owner sees them."""

    def status(self, *, fresh: bool = False) -> GroupsStatus:
        """What runs and what has failed so far; `fresh` asks the ranks."""
        ...

    def expert_load(self) -> ExpertLoad:
        """Tokens that each expert has computed so far."""
        ...

    def close(self) -> None:
        """Stop them; closing twice is no error."""
        ...


class Backend(Protocol):
    """`stages.ray_backend.RayBackend`, or `stages.inline.InlineBackend`."""

    @property
    def deployment(self) -> Deployment:
        """Where the model runs."""
        ...

    @property
    def sizing(self) -> Sizing:
        """How many rows the stages have at a time."""
        ...

    def start_groups(self) -> RunningGroups:
        """Load the model; returns when the first group is ready.

        Raises:
            ValueError: it cannot be loaded as was asked.
            GroupError: no group could be started; nothing is left behind.
        """
        ...

    def journal(self, before: Mapping[int, int]) -> AbstractContextManager[Journal]:
        """Open the in-flight journal; after the `with` it writes no more.

        Args:
            before: by the hash of an id, how many killed runs had worked on the row.
        """
        ...

    def results(
        self,
        splits: Sequence[RowGroupSplit],
        groups: RunningGroups,
        journal: Journal,
        *,
        one_by_one: bool = False,
    ) -> Iterator[Finished]:
        """Read, prepare and answer rows.

        Args:
            splits: which rows.
            groups: who answers.
            journal: is told of rows before a stage works on them.
            one_by_one: read each row by itself.
        """
        ...

    def reporters(self) -> Sequence[Reporter]:
        """Who is told how the run goes, beside the display."""
        ...

    def spilled_bytes(self) -> int | None:
        """What was spilled to disk since the backend was opened; None where nobody knows."""
        ...
