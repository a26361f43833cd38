"""`RankTimes`: how much of its life a rank spends in steps, and how much it waits for requests."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class RankTimes:
    """Times since the engine was loaded. The engine's thread writes them, any thread may read."""

    ready_at: float | None = None  # monotonic clock; None until the engine is loaded
    stepping_s: float = 0.0  # in finished steps with requests of this rank
    stepping_since: float | None = None  # monotonic clock: when such a step began, if one runs now

    def numbers(self) -> dict[str, float]:
        """Return `ready_s`, the seconds since loading, and the part `stepping_s` of them.

        In the rest, the rank waited for requests.
        """
        now = time.monotonic()
        since = self.stepping_since
        running_s = 0.0 if since is None else now - since
        return {
            "ready_s": 0.0 if self.ready_at is None else now - self.ready_at,
            "stepping_s": self.stepping_s + running_s,
        }

    @contextmanager
    def step(self, *, has_requests: bool) -> Iterator[None]:
        """Time one step; steps without requests of this rank count as waiting."""
        began = time.monotonic()
        self.stepping_since = began if has_requests else None
        yield
        if has_requests:
            # A reader between these two lines misses this step; the next reading has it.
            self.stepping_since = None
            self.stepping_s += time.monotonic() - began
