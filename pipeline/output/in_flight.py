"""Which rows are being worked on, written down before they are, so that no row can end every run.

A run that is killed leaves the rows that a stage was working on in `_starts.json`, with how often
that has happened; rows that wait between the stages, or for their commit, are not among them. How
often is too often, `pipeline.output.poison` says. The journal also counts the deaths of processes
within a run, since Ray starts a process that dies, such as of too little memory, again without end.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa

from pipeline.output.ledger import IdSet, hash_ids
from pipeline.output.store import Store

Stage = Literal["prepare", "generate"]

STARTS = "_starts.json"


class InFlightJournal:
    """Keeps `_starts.json` true while a run lives; an actor on the driver's node.

    Args:
        store: the output.
        before: the counts that earlier runs left, by the hash of the row's id.
    """

    def __init__(self, store: Store, before: Mapping[int, int]) -> None:
        self._store = store
        self._before = dict(before)
        self._working: dict[Stage, set[int]] = {"prepare": set(), "generate": set()}  # row hashes
        self._deaths: dict[Stage, Counter[int]] = {"prepare": Counter(), "generate": Counter()}
        self._is_alone = self._is_closed = False
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._num_changes = self._num_written = 0

    async def start(self, ids: pa.Array, stage: Stage) -> int:
        """Count rows of which a stage has work; when this returns the counts outlive a crash.

        Returns:
            How many processes of the stage have died in this run that worked on one of the rows,
            at most.

        Raises:
            RuntimeError: the run has ended.
            OSError: the counts cannot be written.
        """
        hashes = set(hash_ids(ids).tolist())
        async with self._changed:
            # Rows that are there already were those of a task that died; Ray tries it again.
            await self._changed.wait_for(lambda: not self._is_alone or self._rows() <= hashes)
            self._deaths[stage].update(self._working[stage] & hashes)
            self._working[stage] |= hashes
        self._num_changes += 1
        mine = self._num_changes
        async with self._writing:
            if self._is_closed:
                raise RuntimeError("the run has ended")
            if self._num_written < mine:  # else it was written with one that came before
                newest, counts = self._num_changes, self._counts()
                await asyncio.to_thread(write_journal, self._store, counts)
                self._num_written = newest
        return max((self._deaths[stage][each] for each in hashes), default=0)

    async def end(self, ids: pa.Array, stage: Stage) -> None:
        """Forget rows that a stage is through with; the file learns it with the next start."""
        async with self._changed:
            self._working[stage].difference_update(hash_ids(ids).tolist())
            self._changed.notify_all()

    async def work_alone(self) -> None:
        """From now on let `start` wait until no other rows are being worked on."""
        async with self._changed:
            for working in self._working.values():
                working.clear()  # all that came before has ended
            self._is_alone = True

    async def close(self) -> None:
        """Write no more."""
        async with self._writing:
            self._is_closed = True

    def _rows(self) -> set[int]:
        return set().union(*self._working.values())

    def _counts(self) -> dict[int, int]:
        return self._before | {row: 1 + self._before.get(row, 0) for row in self._rows()}


def read_journal(store: Store, done: IdSet) -> dict[int, int]:
    """What killed runs left, without the rows that are done after all.

    Raises:
        ValueError: the file is damaged.
    """
    content = store.read(STARTS)
    try:
        counts = {int(key): int(count) for key, count in json.loads(content or b"{}").items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{STARTS} of {store.uri} is damaged ({error}); delete it, and rows that killed "
            "earlier runs are tried again like all others"
        ) from error
    is_done = done.contains_hashes(np.array(list(counts), np.uint64))
    return {
        key: count for (key, count), end in zip(counts.items(), is_done, strict=True) if not end
    }


def write_journal(store: Store, counts: Mapping[int, int]) -> None:
    """Write the counts; none need no file."""
    if counts:
        store.write(STARTS, json.dumps({str(key): n for key, n in counts.items()}).encode())
    else:
        store.delete(STARTS)
