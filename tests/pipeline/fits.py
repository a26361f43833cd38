"""A `Fit` that misbehaves; the decoding process imports it from here."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Misbehave:
    """Does something bad once the media are open: each time, or once if `once` names a file."""

    what: str
    once: Path | None = None

    def __call__(self, width_px: int, height_px: int, num_frames: int) -> tuple[int, int]:
        if self.once is not None:
            try:
                self.once.unlink()
            except FileNotFoundError:
                return width_px, height_px
        if self.what == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.what == "exit":
            os._exit(3)
        if self.what == "raise":
            raise ZeroDivisionError
        if self.what == "compute":
            while True:
                pass
        if self.what == "hang":
            time.sleep(60)
        if self.what == "allocate":
            bytearray(3 << 30)
        if self.what == "write":
            with suppress(OSError), Path("/dev/shm/written").open("wb") as file:
                file.write(b"x")
                file.flush()
                return 1, 1
        return width_px, height_px
