"""`StagedReader`: brings tensors of files to a GPU through two pinned buffers, in turns.

    file --read--> buffer A --copy, in the background--> GPU
    file --read--> buffer B ...                                  while A is copied

A copy from ordinary memory would wait for each page of the file and then for the driver, which
copies the page into pinned memory of its own. Here the file is read straight into pinned memory, in
large pieces, while the piece before is on its way. So the weights never lie in ordinary memory, and
the peak of main memory are the buffers. This has not run on a GPU; tests replace the two things
that need one, pinned memory and the copy.
"""

from collections.abc import Callable
from io import FileIO

import torch
from torch import Tensor

_BUFFER_BYTES = 64 << 20  # of each buffer; a stored matrix of an expert has 5.8 MB

# (device tensor, pinned tensor of the same shape) -> waits until the copy into the first has ended.
StartCopy = Callable[[Tensor, Tensor], Callable[[], object]]


def pinned_bytes(num_bytes: int) -> Tensor:
    """Allocate page-locked memory, which a GPU can read in the background."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def start_copy(destination: Tensor, source: Tensor) -> Callable[[], object]:
    """Copy pinned memory to a GPU in the background, and convert it there; return the wait."""
    # A copy that converts would do it on the host first, in ordinary memory.
    destination.copy_(source.to(destination.device, non_blocking=True))
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(destination.device))
    return copied.synchronize


class StagedReader:
    """Reads tensors from open files into tensors on a GPU; call `finish` before they are used."""

    def __init__(
        self,
        allocate: Callable[[int], Tensor] = pinned_bytes,
        copy: StartCopy = start_copy,
        buffer_bytes: int = _BUFFER_BYTES,
    ) -> None:
        self._buffers = [allocate(buffer_bytes) for _ in range(2)]
        self._waits: list[Callable[[], object]] = [lambda: None, lambda: None]
        self._copy = copy
        self._turn = 0

    def read(self, file: FileIO, offset: int, dtype: torch.dtype, destination: Tensor) -> None:
        """Read a tensor of `dtype` that begins at byte `offset` into a contiguous destination.

        A tensor larger than a buffer comes in pieces; the dtype of the destination may differ.
        Raises EOFError: the file ends before the tensor.
        """
        file.seek(offset)
        at_once = len(self._buffers[0]) // dtype.itemsize
        for piece in destination.view(-1).split(at_once):
            self._turn = 1 - self._turn
            self._waits[self._turn]()  # the last copy out of this buffer
            staged = self._buffers[self._turn][: piece.numel() * dtype.itemsize]
            _read_all(file, staged)
            self._waits[self._turn] = self._copy(piece, staged.view(dtype))

    def finish(self) -> None:
        """Wait until all that was read has arrived."""
        for wait in self._waits:
            wait()


def _read_all(file: FileIO, target: Tensor) -> None:
    """Fill `target` [n] uint8 from a file without a buffer of its own, which may read less."""
    left = target.numpy().data
    while left:
        count = file.readinto(left)
        if not count:
            raise EOFError(f"{file.name} ends {len(left)} bytes too early")
        left = left[count:]
