"""Copies between host and device that do not make the host wait.

A copy from ordinary memory to a GPU waits until the GPU has read it, and so for everything that the
GPU has still to do. From page-locked (pinned) memory it does not. Torch keeps freed pinned memory
until the copies from it are done, so nothing here has to be kept alive.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to `device` without waiting; on a CPU the tensor shares its memory."""
    tensor = torch.from_numpy(numbers)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """A tensor on its way to the host; it must not be written to until `wait` has returned."""

    def __init__(self, tensor: Tensor) -> None:
        # Torch makes the copy in pinned memory when it must not wait.
        self._copy = tensor.to("cpu", non_blocking=True)
        self._event = None
        if tensor.device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> NDArray[Any]:
        """Return the numbers. This waits for the step that computes them, and for no later one."""
        if self._event is not None:
            self._event.synchronize()
        return np.asarray(self._copy)
