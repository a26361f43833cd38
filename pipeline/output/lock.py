"""One driver at a time owns an output.

`_lock` names the owner: host, process and its start time, and a count that beats. On one machine
the kernel's lock on the file, or else the process table, tells at once whether the owner lives.
Another machine's owner is watched: a count that rests for `STALE_AFTER_S` is a dead owner's.
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
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.output.store import LocalStore, Store

logger = logging.getLogger(__name__)

LOCK = "_lock"
BEAT_S = 5.0
STALE_AFTER_S = 30.0
_SETTLE_S = 1.0  # in which two drivers that start together both have written
_NUM_READS = 5  # of a lock without a name, before it counts as released
_READ_AGAIN_S = 0.05
_STORE_ERRORS = (OSError, pa.ArrowException)


class Lock:
    """What the owner holds; `check` before whatever only the owner may do."""

    def __init__(self, store: Store, owner: dict[str, Any], *, is_shared: bool) -> None:
        self._store = store
        self._owner = owner
        self._is_shared = is_shared  # no kernel guards it
        self._beaten_s = _now_s()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lock", daemon=True)

    def check(self) -> None:
        """Make sure that nobody took the output over.

        Raises:
            OSError: somebody did, or may have, since this driver could not beat for so long.
        """
        owner = self._read_owner()
        if not owner:
            raise OSError(
                f"{self._store.uri} was taken over by a job that has ended, since this one seemed "
                "dead"
            )
        if owner.get("token") != self._owner["token"]:
            raise OSError(
                f"{self._store.uri} was taken over by process {owner.get('pid')} on "
                f"{owner.get('host')}, since this one seemed dead; let that one finish"
            )
        if self._is_shared and _now_s() - self._beaten_s > STALE_AFTER_S:
            raise OSError(f"{self._store.uri} could not be written to for {STALE_AFTER_S:g} s")

    def start(self) -> None:
        """Begin to beat."""
        self._heart.start()

    def stop(self) -> None:
        """Beat no more."""
        self._ended.set()
        self._heart.join()

    def _read_owner(self) -> dict[str, Any]:
        """Who stands in the lock; nobody only if that stays so, since a beat writes in place."""
        for _ in range(_NUM_READS - 1):
            if owner := _parse(self._store.read(LOCK)):
                return owner
            time.sleep(_READ_AGAIN_S)
        return _parse(self._store.read(LOCK))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(*_STORE_ERRORS):  # tried again; `check` knows how long it has failed
                if _parse(self._store.read(LOCK)).get("token") != self._owner["token"]:
                    return
                self._owner["beat"] += 1
                _write(self._store, self._owner)
                self._beaten_s = _now_s()


@contextmanager
def lock_output(store: Store) -> Iterator[Lock]:
    """Own an output, made if need be, until the context ends.

    Raises:
        ValueError: another driver owns it, or it cannot be written to.
    """
    try:
        store.prepare()
        if isinstance(store, LocalStore):
            descriptor = os.open(store.directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        else:
            descriptor = None
        has_lock = None if descriptor is None else _try_kernel(descriptor)
    except _STORE_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"cannot write to the output {store.uri}: {reason}") from error
    try:
        _refuse_living_owner(store, has_lock)
        owner = {**_me(), "token": secrets.token_hex(8), "beat": 0}
        _claim(store, owner, is_shared=has_lock is None)
        lock = Lock(store, owner, is_shared=has_lock is None)
        lock.start()
        try:
            yield lock
        finally:
            lock.stop()
            with suppress(*_STORE_ERRORS):
                if _parse(store.read(LOCK)).get("token") == owner["token"]:
                    _write(store, {})
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _claim(store: Store, owner: dict[str, Any], *, is_shared: bool) -> None:
    """Write our name, see that it stays where no kernel decides between two, and clean up."""
    try:
        _write(store, owner)
        if is_shared:
            time.sleep(_SETTLE_S)
            other = _parse(store.read(LOCK))
            if other.get("token") != owner["token"]:
                raise ValueError(_refusal(store, other))
        store.clean()
    except _STORE_ERRORS as error:
        if isinstance(error, ValueError) and not isinstance(error, pa.ArrowException):
            raise
        raise ValueError(f"cannot write to the output {store.uri}: {error}") from error


def _write(store: Store, owner: dict[str, Any]) -> None:
    content = json.dumps(owner).encode()
    if not isinstance(store, LocalStore):
        store.write(LOCK, content)
        return
    # In place, since a new file would not be the one that the kernel's lock is on.
    descriptor = os.open(store.directory / LOCK, os.O_WRONLY)
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def _refuse_living_owner(store: Store, has_lock: bool | None) -> None:
    owner = _parse(store.read(LOCK))
    if has_lock is False:
        raise ValueError(_refusal(store, owner))
    if not owner:
        return
    if owner.get("machine") == _machine():
        if has_lock is None and owner.get("started") == _started(owner.get("pid")):
            raise ValueError(_refusal(store, owner))
        return
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
        now = _parse(store.read(LOCK))
        if not now:
            return  # it ended well
        if now != owner:
            raise ValueError(_refusal(store, now))


def _refusal(store: Store, owner: dict[str, Any]) -> str:
    return (
        f"another job writes to {store.uri} (process {owner.get('pid')} on "
        f"{owner.get('host', 'this host')}); wait for it, or use another --output"
    )


def _try_kernel(descriptor: int) -> bool | None:
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


def _now_s() -> float:
    """Seconds that go on while the machine is suspended, as they do for those who watch it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _parse(content: bytes | None) -> dict[str, Any]:
    """Who wrote the lock file; empty when it was released, or never written whole."""
    try:
        owner = json.loads(content or b"{}")
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _me() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": pid,
        "started": _started(pid),
    }


def _machine() -> str:
    """One boot of one kernel and one space of process ids: where a pid means something."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def _started(pid: int | None) -> str | None:
    """When a process of this machine started, in clock ticks; None when there is no such one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]  # field 22 of proc(5); the name may hold spaces
