"""`AdmissionQueue`: holds requests back until it is worth while to begin them.

A step that decodes takes hardly longer for several sequences than for one. So an engine that begins
each request as soon as it comes, alone, spends many steps on few tokens.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from parallel.ranks.requests import Outcome, Request


@dataclass(frozen=True, kw_only=True)
class AdmissionPolicy:
    """Holds new requests until `min_batch` sequences wait or run, or `max_wait_s` has passed.

    The default holds nothing back. A request that may not wait begins at once, with all others.
    """

    min_batch: int = 1  # sequences: those of held requests, and those that the engine works on
    max_wait_s: float = 0.0  # for the oldest of the held requests


ADMIT_AT_ONCE = AdmissionPolicy()


@dataclass(frozen=True, eq=False)
class Job:
    """A request in a rank, with the future that its caller awaits."""

    key: str  # unique in this rank, unlike the ids of callers
    client_id: str
    request: Request
    future: Future[Outcome] = field(default_factory=Future)

    @property
    def num_sequences(self) -> int:
        """The samples of the request: each is a sequence of the engine."""
        return self.request.params.n


class AdmissionQueue:
    """Jobs that the engine does not have yet, in the order in which they came.

    Only the engine's thread may call it. `num_running` is always the number of sequences of the
    jobs that the engine works on.
    """

    def __init__(self, policy: AdmissionPolicy) -> None:
        self._policy = policy
        self._held: list[Job] = []
        self._deadline_s = 0.0  # monotonic clock: when held jobs are admitted in any case

    def __len__(self) -> int:
        return len(self._held)

    def put(self, job: Job) -> None:
        """Hold a job; the first one starts the clock, and one that may not wait ends it."""
        if not job.request.may_wait:
            self._deadline_s = time.monotonic()
        elif not self._held:
            self._deadline_s = time.monotonic() + self._policy.max_wait_s
        self._held.append(job)

    def remove(self, is_unwanted: Callable[[Job], bool]) -> list[Job]:
        """Remove and return the jobs for which `is_unwanted` is true."""
        removed = [job for job in self._held if is_unwanted(job)]
        self._held = [job for job in self._held if not is_unwanted(job)]
        return removed

    def remove_all(self) -> list[Job]:
        """Remove and return all jobs, whether they are due or not."""
        jobs, self._held = self._held, []
        return jobs

    def remove_due(self, num_running: int) -> list[Job]:
        """Remove and return all jobs if they may begin now, else none."""
        return self.remove_all() if self.wait_s(num_running) == 0 else []

    def wait_s(self, num_running: int) -> float | None:
        """Return the seconds until the held jobs may begin; None if no job is held."""
        if not self._held:
            return None
        if num_running + sum(job.num_sequences for job in self._held) >= self._policy.min_batch:
            return 0.0
        return max(0.0, self._deadline_s - time.monotonic())
