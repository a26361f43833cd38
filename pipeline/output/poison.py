"""When a row is poison: all limits on deaths stand here, and what an output says of such a row.

A process that dies while it works on several rows does not say which of them it died of. So a row
is tried together with others until it was there at so many deaths (`shared`), then with nothing
else in flight until so many more (`alone`), and then it gets the error `poison_row`.

| what dies | shared | alone | who counts |
|---|---|---|---|
| a run: its driver or its machine is killed | 3 | 3 | `_starts.json`, over all runs of an output |
| a process that prepares rows | 3 | 3 | `InFlightJournal`, within a run |
| a group of ranks | 3 | 2 | `Generate`, within a batch |
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DeathLimit:
    """How many deaths of one kind a row may be there at."""

    shared: int  # with other rows in flight
    alone: int  # after these, with nothing else in flight

    @property
    def total(self) -> int:
        """The deaths that make a row poison."""
        return self.shared + self.alone

    def is_quarantined(self, num_deaths: int) -> bool:
        """Whether the row must be tried with nothing else in flight."""
        return num_deaths >= self.shared

    def is_poison(self, num_deaths: int) -> bool:
        """Whether the row must not be tried again."""
        return num_deaths >= self.total


RUNS = DeathLimit(shared=3, alone=3)
PREPARERS = DeathLimit(shared=3, alone=3)
GROUPS = DeathLimit(shared=3, alone=2)  # one of the two may have died of something else

KILLED_RUNS = (
    f"{RUNS.total} runs were killed while this row was being worked on, the last {RUNS.alone} of "
    "them with nothing else"
)
KILLED_PREPARERS = (
    f"{PREPARERS.total} processes died while they prepared this row, the last {PREPARERS.alone} of "
    "them with no other"
)
KILLED_GROUPS = (
    f"{GROUPS.shared} groups died with this row in flight, and then {GROUPS.alone} that had "
    "nothing else"
)
