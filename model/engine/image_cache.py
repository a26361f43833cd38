"""`ImageFeatures`: features for the media pads of a step; each distinct image is encoded once.

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
from model.engine.transfer import to_device
from model.network.kimi_vl import KimiVL
from model.network.vision import Grid


@dataclass(frozen=True)
class _ImageInChunk:
    """An image whose pads from `first` to `last` stand in a chunk."""

    digest: bytes
    patches: NDArray[np.uint8]  # [P, 3, patch, patch], a view of those of the prompt
    grid: tuple[int, int]
    first: int
    last: int


class ImageFeatures:
    """Encodes the images of steps, and caches their features for later prompts.

    A vision call has at most `max_patches`; a larger image has a call of its own. When the cache is
    larger than `max_bytes`, features that were unused for longest are dropped.
    """

    def __init__(self, model: KimiVL, max_patches: int, max_bytes: int) -> None:
        self._model = model
        self._max_patches = max_patches
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._cached: OrderedDict[bytes, Tensor] = OrderedDict()  # [v, D] of each image

    def for_chunks(self, chunks: Sequence[Chunk]) -> Tensor | None:
        """Return features [V, D] for the media pads of the chunks; None if there are no pads."""
        images = [image for chunk in chunks for image in _images_of(chunk, self._model)]
        if not images:
            return None
        features = self._encode({image.digest: image for image in images})
        rows = [features[image.digest][image.first : image.last] for image in images]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _encode(self, images: dict[bytes, _ImageInChunk]) -> dict[bytes, Tensor]:
        """Return the features of distinct images, cached or newly encoded."""
        found = {digest: self._cached[digest] for digest in images if digest in self._cached}
        for digest in found:
            self._cached.move_to_end(digest)
        new = [image for digest, image in images.items() if digest not in found]
        waiting = iter(new)
        for grids in within_budget([image.grid for image in new], self._max_patches):
            call = list(islice(waiting, len(grids)))
            pixels = np.concatenate([image.patches for image in call])
            patches = to_device(pixels, self._model.device)
            features = self._model.encode_images(patches, grids)
            sizes = [height * width // 4 for height, width in grids]
            for image, own in zip(call, features.split(sizes), strict=True):
                # A clone: a view would keep the features of the whole call alive.
                found[image.digest] = self._keep(image.digest, own.clone())
        return found

    def _keep(self, digest: bytes, features: Tensor) -> Tensor:
        self._cached[digest] = features
        self._num_bytes += features.nbytes
        while self._num_bytes > self._max_bytes:
            _, oldest = self._cached.popitem(last=False)
            self._num_bytes -= oldest.nbytes
        return features


def _images_of(chunk: Chunk, model: KimiVL) -> Iterator[_ImageInChunk]:
    """List the images whose pads stand in a chunk, in order."""
    prompt = chunk.sequence.prompt
    if chunk.start >= len(prompt.token_ids):
        return  # a generated token is text, whatever its id
    is_pad = prompt.token_ids == model.config.media_token_id
    start = int(is_pad[: chunk.start].sum())  # counted in pads of the prompt, as `end`
    end = int(is_pad[: chunk.end].sum())
    ends = prompt.grid_hw.prod(axis=1, dtype=np.int64).cumsum().tolist()  # in patches
    for digest, (height, width), last_patch in zip(
        prompt.image_digests, prompt.grid_hw.tolist(), ends, strict=True
    ):
        first_patch = last_patch - height * width
        first, last = max(start, first_patch // 4), min(end, last_patch // 4)
        if first < last:
            yield _ImageInChunk(
                digest,
                prompt.patches[first_patch:last_patch],
                (height, width),
                first - first_patch // 4,
                last - first_patch // 4,
            )


def within_budget(grids: Sequence[Grid], max_patches: int) -> Iterator[list[Grid]]:
    """Divide images into calls of at most `max_patches`; a larger image is a call of its own."""
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
