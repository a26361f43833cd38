"""The in-flight journal: which rows are being worked on, so that no row can end every run.

A row is in flight while a stage works on it, and not while it waits between stages or for its
commit. The journal writes it down before the work begins, so a run that is killed leaves its rows
in flight in `_starts.json`, each with the number of killed runs in which it was so. How many are
too many, `pipeline.output.poison` says.

Within a run the journal counts in the same way the processes that die by themselves, such as of too
little memory, since Ray starts such a process again without end.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from pipeline.output.ledger import IdSet, hash_ids
from pipeline.output.store import Store

Stage = Literal["prepare", "generate"]

JOURNAL = "_starts.json"


@dataclass
class InFlightJournal:
    """Keeps `_starts.json` up to date while a run lives; an actor on the driver's node.

    Its methods are coroutines, so that calls of many workers wait side by side in one actor.
    """

    store: Store
    counts_before: Mapping[int, int]  # in how many killed runs, by the hash of a row's id

    def __post_init__(self) -> None:
        # Hashes of the rows in flight, and how many processes died with each in this run.
        self._in_flight: dict[Stage, set[int]] = {"prepare": set(), "generate": set()}
        self._deaths: dict[Stage, Counter[int]] = {"prepare": Counter(), "generate": Counter()}
        self._is_quarantine = self._is_closed = False
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._num_changes = self._num_written = 0

    async def start(self, ids: pa.Array, stage: Stage) -> int:
        """Note that a stage begins to work on rows; when this returns, that survives a crash.

        Returns the most processes of the stage that died in this run while working on any one row.

        Raises:
            RuntimeError: the run has ended.
            OSError: the journal cannot be written.
        """
        hashes = set(hash_ids(ids).tolist())
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._is_quarantine or self._all_in_flight() <= hashes
            )
            # Rows that are in flight already belonged to a task that died; Ray tries it again.
            self._deaths[stage].update(self._in_flight[stage] & hashes)
            self._in_flight[stage] |= hashes
        await self._write_changes()
        return max((self._deaths[stage][each] for each in hashes), default=0)

    async def end(self, ids: pa.Array, stage: Stage) -> None:
        """Note that a stage has finished rows; the file is updated with the next start."""
        async with self._changed:
            self._in_flight[stage].difference_update(hash_ids(ids).tolist())
            self._changed.notify_all()

    async def begin_quarantine(self) -> None:
        """From now on let `start` wait until no other rows are in flight."""
        async with self._changed:
            for hashes in self._in_flight.values():
                hashes.clear()  # all work before has ended, even if its `end` was lost
            self._is_quarantine = True

    async def close(self) -> None:
        """Write no more, so that the driver can write the last state of the file itself."""
        async with self._writing:
            self._is_closed = True

    async def _write_changes(self) -> None:
        """Write the counts; calls that wait for the same write share it."""
        self._num_changes += 1
        own_change = self._num_changes
        async with self._writing:
            if self._is_closed:
                raise RuntimeError("the run has ended")
            if self._num_written < own_change:  # else an earlier call has written this change too
                newest, counts = self._num_changes, self._counts()
                await asyncio.to_thread(write_journal, self.store, counts)
                self._num_written = newest

    def _all_in_flight(self) -> set[int]:
        return set().union(*self._in_flight.values())

    def _counts(self) -> dict[int, int]:
        before = self.counts_before
        return {**before, **{row: 1 + before.get(row, 0) for row in self._all_in_flight()}}


def read_journal(store: Store, done: IdSet) -> dict[int, int]:
    """Read in how many killed runs each row was in flight, by the hash of its id.

    Rows that are done are left out.

    Raises:
        ValueError: the file is damaged.
    """
    content = store.read(JOURNAL)
    try:
        counts = {int(key): int(count) for key, count in json.loads(content or b"{}").items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{JOURNAL} of {store.uri} is damaged ({error}); delete it, and rows that killed "
            "earlier runs are tried again like all others"
        ) from error
    return done.left_in(counts)


def write_journal(store: Store, counts: Mapping[int, int]) -> None:
    """Write the counts; remove the file if there are none."""
    if counts:
        store.write(JOURNAL, json.dumps({str(key): n for key, n in counts.items()}).encode())
    else:
        store.delete(JOURNAL)
