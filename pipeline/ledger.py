"""What an output directory already holds: the lock, the ids of committed rows, left-overs.

An output directory has `part-*.parquet` (committed, whole), `_recipe.json`, `_report.json`, `_lock`
and `_staging/`. One driver at a time owns it; only that driver makes a part visible.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pandas.util import hash_array

STAGING = "_staging"


class IdSet:
    """A set of row ids that holds 64-bit hashes: 8 bytes a row, 0.8 GB for 100 million.

    Among 100 million ids the chance that any two share a hash is 3e-4, so ids that a user chose
    are compared in full where their hashes meet (`source.plan`).
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []  # each sorted and free of the others' hashes

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def contains(self, ids: pa.Array) -> NDArray[np.bool_]:
        """Which of `ids` are in the set."""
        return self._contains(hash_ids(ids))

    def add(self, ids: pa.Array) -> NDArray[np.bool_]:
        """Add `ids`; return which were new. Of equal ids in one call only the first is new."""
        hashes = hash_ids(ids)
        distinct, first = np.unique(hashes, return_index=True)
        fresh = ~self._contains(distinct)
        is_new = np.zeros(len(hashes), dtype=np.bool_)
        is_new[first[fresh]] = True
        if fresh.any():
            self._runs.append(distinct[fresh])
            # Runs of doubling length: each hash is sorted again log2(n) times in all.
            while len(self._runs) > 1 and len(self._runs[-1]) * 2 > len(self._runs[-2]):
                self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]))]
        return is_new

    def _contains(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        found = np.zeros(len(hashes), dtype=np.bool_)
        for run in self._runs:
            place = np.searchsorted(run, hashes)
            found |= run[np.minimum(place, len(run) - 1)] == hashes
        return found


def hash_ids(ids: pa.Array) -> NDArray[np.uint64]:
    """Hash ids, the same in every process and on every machine."""
    values = ids.to_numpy(zero_copy_only=False)
    return hash_array(values, categorize=False)  # pyright: ignore[reportCallIssue]


def committed_parts(output: Path) -> list[Path]:
    """The parts of an output directory, which are all whole."""
    return sorted(output.glob("part-*.parquet"))


def committed_ids(parts: list[Path], schema: pa.Schema) -> IdSet:
    """Read the ids of all committed rows, and nothing else of them.

    Raises:
        ValueError: a part cannot be read or has other columns than `schema`.
    """
    ids = IdSet()
    for part in parts:
        try:
            with pq.ParquetFile(part) as file:
                if not file.schema_arrow.equals(schema):
                    raise ValueError(
                        f"{part} has other columns than this run writes; use another --output, or "
                        "the --columns and --keep-media of the run that wrote it"
                    )
                for batch in file.iter_batches(batch_size=65536, columns=["row_id"]):
                    ids.add(batch.column(0))
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{part} cannot be read ({error}); delete it to caption its rows again"
            ) from error
    return ids


def open_staging(output: Path, run_id: str) -> Path:
    """Make the staging directory of a run and remove those of dead runs.

    Only for the holder of the lock. A writer that outlives its killed driver then fails, because
    its directory is gone.
    """
    shutil.rmtree(output / STAGING, ignore_errors=True)
    staging = output / STAGING / run_id
    staging.mkdir(parents=True)
    return staging


def close_staging(output: Path) -> None:
    """Remove all staged files."""
    shutil.rmtree(output / STAGING, ignore_errors=True)


@contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Own an output directory, made if need be, until the context ends.

    The kernel drops the lock of a dead driver. Where the file system has no locks, the host, the
    process id and its start time in the file decide.

    Raises:
        ValueError: another driver owns it, or it cannot be written to.
    """
    path = output / "_lock"
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(f"cannot write to the output {output}: {error.strerror}") from error
    try:
        _refuse_second_driver(path, descriptor)
        me = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(me).encode(), 0)
        os.fsync(descriptor)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)  # removing the file would let two drivers lock two files
    finally:
        os.close(descriptor)


def _refuse_second_driver(path: Path, descriptor: int) -> None:
    has_lock = _try_lock(descriptor)
    owner = _owner(descriptor)
    here = socket.gethostname()
    is_alive = owner.get("host") == here and owner.get("started") == _started(owner.get("pid"))
    if has_lock is False or (has_lock is None and owner and is_alive):
        raise ValueError(
            f"another job writes to {path.parent} (process {owner.get('pid')} on "
            f"{owner.get('host', here)}); wait for it, or use another --output"
        )
    if owner and owner.get("host") != here:
        raise ValueError(
            f"a job on {owner.get('host')} (process {owner.get('pid')}) writes to {path.parent}, "
            f"or died there; if none runs, delete {path} and start again"
        )


def _try_lock(descriptor: int) -> bool | None:
    """Take the kernel's lock; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return None
    return True


def _owner(descriptor: int) -> dict[str, Any]:
    """Who wrote the lock file; empty when it was released, or never written whole."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _started(pid: int | None) -> str | None:
    """When a process of this host started, in clock ticks; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]  # field 22 of proc(5); the name may hold spaces
