"""Image features for the media pads of a step, each distinct image encoded once.

Letters: P patches, V vision tokens (V = P / 4), D hidden size.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.engine.scheduler import Chunk
from model.network.kimi_vl import KimiVL
from model.network.vision import Grid


@dataclass(frozen=True)
class _Shown:
    """An image of which the pads `first` to `last` stand in a chunk."""

    digest: bytes
    patches: NDArray[np.uint8]  # [P, 3, patch, patch], a view of the prompt's
    grid: tuple[int, int]
    first: int
    last: int


class ImageFeatures:
    """Encodes what a step shows, and keeps what it encoded for the prompts to come.

    Args:
        model: encodes.
        max_patches: of one vision call; a larger image has a call of its own.
        max_bytes: of the features that are kept; the least recently used go.
    """

    def __init__(self, model: KimiVL, max_patches: int, max_bytes: int) -> None:
        self._model = model
        self._max_patches = max_patches
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()  # [v, D] of each image

    def of(self, chunks: Sequence[Chunk]) -> Tensor | None:
        """Features [V, D] for the media pads of the chunks, in order; None where there are none."""
        shown = [image for chunk in chunks for image in _shown(chunk, self._model)]
        if not shown:
            return None
        features = self._encode({image.digest: image for image in shown})
        return torch.cat([features[image.digest][image.first : image.last] for image in shown])

    def _encode(self, images: dict[bytes, _Shown]) -> dict[bytes, Tensor]:
        """Features of distinct images, from earlier steps or new."""
        found = {digest: self._kept[digest] for digest in images if digest in self._kept}
        for digest in found:
            self._kept.move_to_end(digest)
        new = [image for digest, image in images.items() if digest not in found]
        waiting = iter(new)
        for grids in within_budget([image.grid for image in new], self._max_patches):
            call = list(islice(waiting, len(grids)))
            patches = torch.from_numpy(np.concatenate([image.patches for image in call]))
            features = self._model.encode_images(patches.to(self._model.device), grids)
            sizes = [height * width // 4 for height, width in grids]
            for image, own in zip(call, features.split(sizes), strict=True):
                found[image.digest] = self._keep(image.digest, own.clone())
        return found

    def _keep(self, digest: bytes, features: Tensor) -> Tensor:
        self._kept[digest] = features
        self._num_bytes += features.nbytes
        while self._num_bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._num_bytes -= oldest.nbytes
        return features


def _shown(chunk: Chunk, model: KimiVL) -> Iterator[_Shown]:
    """The images whose pads stand in a chunk, in order."""
    prompt, digests = chunk.sequence.prompt, chunk.sequence.image_digests
    if chunk.start >= len(prompt.token_ids):
        return  # a generated token is text, whatever its id
    is_pad = prompt.token_ids == model.config.media_token_id
    start = int(is_pad[: chunk.start].sum())  # in pads of the prompt, as `end`
    end = int(is_pad[: chunk.end].sum())
    ends = prompt.grid_hw.prod(axis=1, dtype=np.int64).cumsum().tolist()  # in patches
    for digest, (height, width), last_patch in zip(
        digests, prompt.grid_hw.tolist(), ends, strict=True
    ):
        first_patch = last_patch - height * width
        first, last = max(start, first_patch // 4), min(end, last_patch // 4)
        if first < last:
            yield _Shown(
                digest,
                prompt.patches[first_patch:last_patch],
                (height, width),
                first - first_patch // 4,
                last - first_patch // 4,
            )


def within_budget(grids: Sequence[Grid], max_patches: int) -> Iterator[list[Grid]]:
    """Cut a list of images into calls of at most `max_patches`, or of one image."""
    call: list[Grid] = []
    num_patches = 0
    for height, width in grids:
        if call and num_patches + height * width > max_patches:
            yield call
            call, num_patches = [], 0
        call.append((height, width))
        num_patches += height * width
    if call:
        yield call
