"""`Slot`: the place of one group of a run."""

from dataclasses import dataclass, field

from parallel.groups.group import EngineGroup
from parallel.groups.monitor import GroupMonitor


@dataclass
class Slot:
    """The place of one group; generations come and go in it."""

    group_id: int
    monitor: GroupMonitor | None = None  # None while there is no running generation
    is_given_up: bool = False  # until a node comes: set apart, or no node had room for it
    next_generation: int = 0  # where nothing is left that could be rebuilt
    # Generations that were set apart, which keep their resources: nobody shall get them.
    apart: list[EngineGroup] = field(default_factory=list)

    @property
    def group(self) -> EngineGroup | None:
        """The running generation."""
        return None if self.monitor is None else self.monitor.group

    def clear(self) -> None:
        """Stop watching the generation that ran here."""
        if self.monitor is not None:
            self.monitor.stop()
        self.monitor = None
