"""`Reader`: the untrusted file as FFmpeg and the parsers of this room see it."""

import io
from typing import BinaryIO


class Reader:
    """The file as FFmpeg sees it: it has no name to guess from, and cannot be written or closed."""

    def __init__(self, source: bytes | BinaryIO) -> None:
        self._file = io.BytesIO(source) if isinstance(source, bytes) else source
        self.seek, self.tell = self._file.seek, self._file.tell

    def read(self, num_bytes: int) -> bytes:
        """Read at most `num_bytes` bytes."""
        # PyAV copies what it is given without a check, and a faulty file could give more.
        return self._file.read(num_bytes)[:num_bytes]

    def read_at(self, position: int, num_bytes: int) -> bytes:
        """Read at most `num_bytes` bytes from a position on."""
        self.seek(position)
        return self.read(num_bytes)
