"""Find or start the Ray that a job runs on, and leave no process of it behind (`connect`).

| where the job runs | Ray |
|---|---|
| inside `ray job submit`, or with RAY_ADDRESS set | that cluster |
| on a machine where `ray start` runs | that cluster |
| anywhere else | a private Ray that ends with the job |

Each known way to fail ends in a message that says what to do. Ray's environment variables are read
here and nowhere else.
"""

import ctypes
import itertools
import json
import logging
import os
import secrets
import select
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import ray
from ray import _raylet
from ray.exceptions import AuthenticationError

from jobs.cli.processes import command_line
from pipeline.cluster.processes import descendants

ROOT = Path(__file__).resolve().parents[2]  # folder of the packages, which workers import

_ANSWER_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 5.0  # for the workers of a private Ray to end by themselves
_FATAL = 3  # of `RayLogLevel` in src/ray/util/logging.h
_NUM_TRIES = 2  # to connect to a cluster; each takes up to 40 s

# With each of these, Ray unpickles data in a Parquet file, which can run code of that file.
_UNSAFE_SETTINGS = (
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
)

_HOW_TO_AGREE = """\
The running Ray refuses this process because it asks for a token, which Ray does by itself wherever
`ray start` finds the file ~/.ray/auth_token. Give the token in this shell and run again:
    export RAY_AUTH_MODE=token    # reads RAY_AUTH_TOKEN, or ~/.ray/auth_token as on the head
or, on a machine that nobody else can reach, do without tokens, in every shell:
    export RAY_AUTH_MODE=disabled && ray stop && ray start --head"""


@contextmanager
def connect() -> Iterator[None]:
    """Connect this process to Ray during a `with`.

    Ctrl-C and SIGTERM leave the `with` like an exception and end the process with 130 or 143, after
    Ray was shut down. If this process is connected already, that Ray is used and stays.

    Raises:
        ValueError: an environment variable has a value that is not allowed.
        ConnectionError: the cluster that the environment names cannot be used.
    """
    refuse_unsafe_settings(os.environ)
    if ray.is_initialized():
        yield
        return
    address = find_address(os.environ)
    others = set(_workers())  # workers of another Ray that this process started
    try:
        if address is None:
            _start_local()
        else:
            _connect_to(address)
        _hush()
        with ended_by_signals():  # after Ray, which brings handlers of its own
            yield
    finally:
        with _ended(set(_workers()) - others):
            ray.shutdown()


def _workers() -> Iterator[int]:
    """Yield the worker processes of a private Ray, which are descendants of this process."""
    return (pid for pid in descendants(os.getpid()) if command_line(pid).startswith(b"ray::"))


@contextmanager
def _ended(processes: Set[int]) -> Iterator[None]:
    """Kill the processes that still exist some seconds after the `with`.

    A worker of Ray 2.60 may hang while it exits, and nothing ends it once its Ray is gone.
    """
    handles: list[int] = []
    for pid in processes:
        with suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    try:
        yield
    finally:
        deadline = time.monotonic() + _END_TIMEOUT_S
        for handle in handles:
            poll = select.poll()
            poll.register(handle, select.POLLIN)  # readable once the process has ended
            if not poll.poll(1e3 * max(0.0, deadline - time.monotonic())):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)


def is_in_copy() -> bool:
    """Tell whether this process runs in Ray's copy of a submitted working directory."""
    parts = Path.cwd().parts
    return ("runtime_resources", "working_dir_files") in itertools.pairwise(parts)


def refuse_relative(path: str, flag: str) -> None:
    """Refuse a relative path where it would point into Ray's copy of the working directory.

    Raises:
        ValueError: the path is relative and this process runs in such a copy; it names `flag`.
    """
    if is_in_copy() and "://" not in path and not Path(path).is_absolute():
        raise ValueError(
            f"{flag} {path} is relative, but Ray runs this job in {Path.cwd()}, a copy of the "
            "submitted working directory that it deletes; give an absolute path or a URI"
        )


def refuse_unsafe_settings(environment: Mapping[str, str]) -> None:
    """Refuse to start if reading a Parquet file could run code that the file contains.

    Raises:
        ValueError: an environment variable allows that; the message names it.
    """
    for name in _UNSAFE_SETTINGS:
        if environment.get(name, "").lower() not in ("", "0", "false"):
            raise ValueError(
                f"{name}={environment[name]} lets a Parquet file run code on this machine; "
                f"unset {name}"
            )


def find_address(environment: Mapping[str, str]) -> str | None:
    """Return the address of the cluster to use, or None to start a private Ray.

    Raises:
        ValueError: RAY_ADDRESS is a kind of address that cannot run a job.
        ConnectionError: nothing answers at RAY_ADDRESS.
    """
    named = environment.get("RAY_ADDRESS", "")
    if named == "local":
        return None
    if "://" in named:
        raise ValueError(
            f"RAY_ADDRESS={named} is not the address of a cluster's head; for a job on a remote "
            "cluster use `ray job submit --address http://host:8265`, on a node of the cluster "
            "RAY_ADDRESS=host:6379"
        )
    if named == "auto":
        return named
    if not named:
        started = _address_of_ray_start(environment)
        return "auto" if started and _reason_for_silence(started) is None else None
    if (reason := _reason_for_silence(named)) is not None:
        raise ConnectionError(
            f"nothing answers at RAY_ADDRESS={named} ({reason}); start it with `ray start --head`, "
            "or unset RAY_ADDRESS to run on a private Ray"
        )
    return named


def _address_of_ray_start(environment: Mapping[str, str]) -> str | None:
    """Return the address that the last `ray start` here stored; that Ray may have ended."""
    # As `get_default_ray_temp_dir` in ray/_common/utils.py.
    temp = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp"
    try:
        return (Path(temp) / "ray" / "ray_current_cluster").read_text().strip() or None
    except OSError:
        return None


def _reason_for_silence(address: str) -> str | None:
    """Return why nothing answers at host:port, or None if something does.

    Ray itself would try for minutes.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_TIMEOUT_S).close()
    except ValueError:
        raise ValueError(f"RAY_ADDRESS={address} must be host:port, or auto, or local") from None
    except OSError as error:
        return str(error)
    return None


def _start_local() -> None:
    """Start a Ray that only this process and its children can use."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning
    # Ray would lower the priority of all workers, engines too, and no process can raise it again;
    # only the workers that prepare rows should run at a lower one (`pipeline.cluster.processes`).
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A token of our own: Ray would store one in ~/.ray/auth_token, and once that file exists, the
    # next `ray start` asks for tokens that the next `ray job submit` does not send.
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Workers take the path from Ray's own processes and not from a runtime environment, for which
    # Ray could not use the workers that it starts in advance.
    with _set("PYTHONPATH", _python_path(os.environ), replace=True):
        # Ray chooses the size of the object store: it considers containers and a small /dev/shm.
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def _hush() -> None:
    """Keep the core of Ray from writing errors of its own to this terminal.

    For each stage it says that an actor "has constructor arguments in the object store" and could
    not be started again if they were lost. The driver holds them, so they are not, and what does
    fail is raised as an exception too. RAY_BACKEND_LOG_LEVEL would silence the log files of the
    whole cluster with it, and says so on the terminal; this threshold is of this process alone.
    """
    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        return  # somebody wants to see them
    with suppress(ValueError):  # another version of Ray may not have it; then the lines are there
        threshold = ctypes.c_int.in_dll(
            ctypes.CDLL(_raylet.__file__), "_ZN3ray6RayLog19severity_threshold_E"
        )
        threshold.value = _FATAL


def _connect_to(address: str) -> None:
    with _set("RAY_gcs_server_port_wait_time_s", str(_NUM_TRIES)):
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=_runtime_env(os.environ),
            )
        except (ConnectionError, AuthenticationError) as error:
            if "AuthToken" in f"{error} {error.__cause__}":
                raise ConnectionError(_HOW_TO_AGREE) from error
            raise ConnectionError(
                f"no connection to RAY_ADDRESS={address} ({error}); start Ray with `ray start "
                "--head`, or unset RAY_ADDRESS to run on a private one"
            ) from error


def _runtime_env(environment: Mapping[str, str]) -> dict[str, Any]:
    """Let workers import this repository; set no `working_dir`, which `ray job submit` sets."""
    submitted = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    env_vars = (submitted.get("runtime_env") or {}).get("env_vars") or {}
    if "PYTHONPATH" in env_vars:
        return {}  # Ray refuses to merge two values, so the submitter's value is kept
    return {"env_vars": {"PYTHONPATH": _python_path(environment)}}


def _python_path(environment: Mapping[str, str]) -> str:
    """Put this repository before the paths that the user gave."""
    return os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])


@contextmanager
def _set(name: str, value: str, *, replace: bool = False) -> Iterator[None]:
    """Set an environment variable during a `with`; one that is set already only to `replace` it."""
    earlier = os.environ.get(name)
    if earlier is not None and not replace:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        if earlier is None:
            del os.environ[name]
        else:
            os.environ[name] = earlier


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into `SystemExit`, so that every `finally` runs."""
    received: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        received.append(signum)
        raise SystemExit

    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except SystemExit:
        if received:  # Ray replaces the exit code by its own while it waits
            raise SystemExit(128 + received[0]) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, earlier)
