"""Makes sure that one driver at a time owns an output.

The file `_lock` names the owner (host, process and its start time) and holds a count that the owner
raises every `BEAT_S`. On the owner's machine the kernel's lock on the file, or else the process
table, tells at once whether the owner is alive. On another machine the count is watched: if it
stays the same for `STALE_AFTER_S`, the owner is dead.
"""

import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.output.store import LocalStore, Store

logger = logging.getLogger(__name__)

LOCK = "_lock"
BEAT_S = 5.0
STALE_AFTER_S = 30.0
# After so long, two drivers that started together have both written, and the last write has won.
_SETTLE_S = 1.0
_NUM_READS = 5  # of a lock file without an owner, before it counts as released
_READ_AGAIN_S = 0.05
_STORE_ERRORS = (OSError, pa.ArrowException)


class _KernelLock(Enum):
    """What the kernel answered to the request for its lock on the lock file."""

    TAKEN = auto()  # this process has it
    REFUSED = auto()  # another process has it
    UNSUPPORTED = auto()  # the store or its filesystem has no such locks


@dataclass
class Lock:
    """The ownership of an output; `check` it before any step that only the owner may take."""

    store: Store
    owner: dict[str, Any]  # the content of the lock file; `beat` is raised while the lock is held
    is_exclusive: bool  # the kernel keeps other drivers away, so that none can take over

    def __post_init__(self) -> None:
        self._last_beat_s = _now_s()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    def check(self) -> None:
        """Make sure that no other driver took the output over.

        Raises:
            OSError: another driver did, or may have, since this one could not beat for too long.
        """
        owner = self._read_owner()
        if not owner:
            raise OSError(
                f"{self.store.uri} was taken over by a job that has ended, since this one seemed "
                "dead"
            )
        if owner.get("token") != self.owner["token"]:
            raise OSError(
                f"{self.store.uri} was taken over by process {owner.get('pid')} on "
                f"{owner.get('host')}, since this one seemed dead; let that one finish"
            )
        if not self.is_exclusive and _now_s() - self._last_beat_s > STALE_AFTER_S:
            raise OSError(f"{self.store.uri} could not be written to for {STALE_AFTER_S:g} s")

    def start(self) -> None:
        """Begin to raise the count in the lock file."""
        self._thread.start()

    def stop(self) -> None:
        """Stop raising the count."""
        self._ended.set()
        self._thread.join()

    def _read_owner(self) -> dict[str, Any]:
        """Read who owns the lock.

        A beat writes in place, so for a moment nobody may seem to; then it is read again.
        """
        for _ in range(_NUM_READS - 1):
            if owner := _owner_of(self.store):
                return owner
            time.sleep(_READ_AGAIN_S)
        return _owner_of(self.store)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            # A failure is tried again at the next beat; `check` notices if that goes on too long.
            with suppress(*_STORE_ERRORS):
                if _owner_of(self.store).get("token") != self.owner["token"]:
                    return
                self.owner["beat"] += 1
                _write(self.store, self.owner)
                self._last_beat_s = _now_s()


@contextmanager
def lock_output(store: Store) -> Iterator[Lock]:
    """Own an output until the context ends; it is made if need be.

    Raises:
        ValueError: another driver owns it, or it cannot be written to.
    """
    descriptor, kernel_lock = _open_lock_file(store)
    try:
        _refuse_living_owner(store, kernel_lock)
        owner = {**_me(), "token": secrets.token_hex(8), "beat": 0}
        _claim(store, owner, kernel_lock)
        lock = Lock(store, owner, is_exclusive=kernel_lock is _KernelLock.TAKEN)
        lock.start()
        try:
            yield lock
        finally:
            lock.stop()
            with suppress(*_STORE_ERRORS):
                if _owner_of(store).get("token") == owner["token"]:
                    _write(store, {})
    finally:
        if descriptor is not None:
            os.close(descriptor)  # releases the kernel's lock


def _open_lock_file(store: Store) -> tuple[int | None, _KernelLock]:
    """Open the lock file of a directory and ask for the kernel's lock on it."""
    try:
        store.prepare()
        if not isinstance(store, LocalStore):
            return None, _KernelLock.UNSUPPORTED
        descriptor = os.open(store.directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        return descriptor, _take_kernel_lock(descriptor)
    except _STORE_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"cannot write to the output {store.uri}: {reason}") from error


def _claim(store: Store, owner: dict[str, Any], kernel_lock: _KernelLock) -> None:
    """Write the owner's name and remove what a killed owner left.

    Without the kernel's lock two drivers may write at the same time. The last write wins, and the
    other driver is refused.
    """
    try:
        _write(store, owner)
        if kernel_lock is _KernelLock.UNSUPPORTED:
            time.sleep(_SETTLE_S)
            other = _owner_of(store)
            if other.get("token") != owner["token"]:
                raise ValueError(_refusal(store, other))
        store.clean()
    except _STORE_ERRORS as error:
        raise ValueError(f"cannot write to the output {store.uri}: {error}") from error


def _write(store: Store, owner: dict[str, Any]) -> None:
    content = json.dumps(owner).encode()
    if not isinstance(store, LocalStore):
        store.write(LOCK, content)
        return
    # In place, since the kernel's lock is on this file, not on the name.
    descriptor = os.open(store.directory / LOCK, os.O_WRONLY)
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def _refuse_living_owner(store: Store, kernel_lock: _KernelLock) -> None:
    """Raise a `ValueError` if the owner in the lock file is alive, by the surest sign of it."""
    owner = _owner_of(store)
    if kernel_lock is _KernelLock.REFUSED:
        raise ValueError(_refusal(store, owner))
    if not owner:
        return
    if owner.get("machine") != _machine():
        _refuse_beating_owner(store, owner)
        return
    # If this process has the kernel's lock, no other one of this machine can be the owner.
    is_alive = owner.get("started") == _started(owner.get("pid"))
    if kernel_lock is _KernelLock.UNSUPPORTED and is_alive:
        raise ValueError(_refusal(store, owner))


def _refuse_beating_owner(store: Store, owner: dict[str, Any]) -> None:
    """Watch the count of an owner on another machine; return when it has rested for long enough.

    A `ValueError` says that the owner raised it, or that another driver became the owner.
    """
    logger.warning(
        "%s was last written by process %s on %s; watching for %g s whether it lives",
        store.uri,
        owner.get("pid"),
        owner.get("host"),
        STALE_AFTER_S,
    )
    deadline = time.monotonic() + STALE_AFTER_S
    while time.monotonic() < deadline:
        time.sleep(min(1.0, STALE_AFTER_S / 10))
        now = _owner_of(store)
        if not now:
            return  # the owner has ended and released the lock
        if now != owner:
            raise ValueError(_refusal(store, now))


def _refusal(store: Store, owner: dict[str, Any]) -> str:
    return (
        f"another job writes to {store.uri} (process {owner.get('pid')} on "
        f"{owner.get('host', 'this host')}); wait for it, or use another --output"
    )


def _take_kernel_lock(descriptor: int) -> _KernelLock:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _KernelLock.REFUSED
    except OSError as error:
        # Such as some network filesystems and FUSE mounts.
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return _KernelLock.UNSUPPORTED
    return _KernelLock.TAKEN


def _now_s() -> float:
    """Return seconds that also pass while this machine is suspended.

    Drivers on other machines count them too when they decide whether this one is dead.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _owner_of(store: Store) -> dict[str, Any]:
    """Read the owner in a lock file; empty if it was released, or never written whole."""
    content = store.read(LOCK)
    try:
        owner = json.loads(content or b"{}")
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _me() -> dict[str, Any]:
    host, pid = socket.gethostname(), os.getpid()
    return {"host": host, "machine": _machine(), "pid": pid, "started": _started(pid)}


def _machine() -> str:
    """Identify one boot of one kernel and one pid namespace, within which a pid is unique."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def _started(pid: int | None) -> str | None:
    """Return when a process of this machine started, in clock ticks; None if it does not exist."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]  # field 22 of proc(5); the name may hold spaces
