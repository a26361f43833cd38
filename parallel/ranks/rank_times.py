"""`RankTimes`: where the time of a rank goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class RankTimes:
    """From the moment when the engine was loaded; written by its thread, read by any."""

    ready_at: float | None = None  # on the monotonic clock
    stepping_s: float = 0.0  # in steps with requests of its own
    stepping_since: float | None = None  # the step that runs now, if it is such a one

    def numbers(self) -> dict[str, float]:
        """`ready_s`, and of it `stepping_s`; the rest it waited for requests."""
        now = time.monotonic()
        since = self.stepping_since
        running_s = 0.0 if since is None else now - since
        return {
            "ready_s": 0.0 if self.ready_at is None else now - self.ready_at,
            "stepping_s": self.stepping_s + running_s,
        }

    @contextmanager
    def step(self, *, has_requests: bool) -> Iterator[None]:
        """Time a step."""
        began = time.monotonic()
        self.stepping_since = began if has_requests else None
        yield
        if has_requests:
            self.stepping_since = None
            self.stepping_s += time.monotonic() - began
