"""Which rows are being worked on, written down before they are, so that no row can end every run.

A run that is killed leaves the rows that it had started and not committed in `_starts.json`, with
how often that has happened. A row that was there too often is tried with nothing else in flight
(`MAX_SHARED_STARTS`), and after that no more (`MAX_STARTS`).
"""

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.ledger import IdSet, hash_ids
from pipeline.storage import Store

STARTS = "_starts.json"
MAX_SHARED_STARTS = 3
MAX_STARTS = 6  # the last three of them alone


class StartLog:
    """Keeps `_starts.json` true while a run lives; an actor on the driver's node.

    Args:
        store: the output.
        before: the counts that earlier runs left, by the hash of the row's id.
    """

    def __init__(self, store: Store, before: Mapping[int, int]) -> None:
        self._store = store
        self._counts = dict(before)
        self._in_flight: set[int] = set()

    def start(self, ids: pa.Array) -> None:
        """Count rows; when this returns the counts outlive a crash."""
        for hash_ in hash_ids(ids).tolist():
            if hash_ not in self._in_flight:  # else a task that Ray tried again
                self._in_flight.add(hash_)
                self._counts[hash_] = self._counts.get(hash_, 0) + 1
        write_starts(self._store, self._counts)

    def finish(self, hashes: NDArray[np.uint64]) -> None:
        """Forget rows that are committed; the file learns it with the next start."""
        for hash_ in hashes.tolist():
            self._in_flight.discard(hash_)
            self._counts.pop(hash_, None)


def read_starts(store: Store, done: IdSet) -> dict[int, int]:
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


def write_starts(store: Store, counts: Mapping[int, int]) -> None:
    """Write the counts; none need no file."""
    if counts:
        store.write(STARTS, json.dumps({str(key): n for key, n in counts.items()}).encode())
    else:
        store.delete(STARTS)
