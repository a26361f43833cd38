"""Tells on standard error what a run does and waits for, until its first row comes."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

_SLOW_S = 0.5


def announce(text: str) -> None:
    """Write a line, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)


@contextmanager
def announced_if_slow(text: str) -> Iterator[None]:
    """Write a line if the `with` is not over soon.

    What is refused at once is so refused in one line, the one that says why.
    """
    timer = threading.Timer(_SLOW_S, announce, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
