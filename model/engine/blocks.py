"""`BlockPool`: who owns which block of the cache, and which blocks can be used again as they are.

A block whose tokens, with everything before them, are known by a key may belong to several
sequences at once; when its last owner goes, it is kept until somebody needs the room. So prompts
that begin alike (the system text, the frames of a clip) are prefilled once.

Block 0 is never given away: padded block tables point at it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from model.config import BLOCK_SIZE
from model.inputs.prompt import Prompt


def blocks_for(num_tokens: int) -> int:
    """Blocks that hold `num_tokens` tokens."""
    return -(-num_tokens // BLOCK_SIZE)


def block_keys(prompt: Prompt, media_token_id: int, digests: Sequence[bytes]) -> list[bytes]:
    """A key for each full block of a prompt, which stands for the block and all before it.

    Args:
        prompt: its media pads stand for its images, in order.
        media_token_id: of the pads.
        digests: 16 bytes for each image, as `image_digests`.
    """
    content = np.zeros((len(prompt.token_ids), 3), np.int64)  # token, digest of its image
    content[:, 0] = prompt.token_ids
    pads_of_image = prompt.grid_hw.prod(axis=1, dtype=np.int64) // 4
    images = np.frombuffer(b"".join(digests), np.int64).reshape(-1, 2)
    content[prompt.token_ids == media_token_id, 1:] = images.repeat(pads_of_image, axis=0)
    keys: list[bytes] = []
    key = b""
    for start in range(0, len(content) - BLOCK_SIZE + 1, BLOCK_SIZE):
        block = content[start : start + BLOCK_SIZE].tobytes()
        key = blake2b(key + block, digest_size=16).digest()
        keys.append(key)
    return keys


def image_digests(prompt: Prompt) -> list[bytes]:
    """16 bytes for each image, equal only for equal pixels in an equal grid."""
    ends = prompt.grid_hw.prod(axis=1, dtype=np.int64).cumsum()
    return (
        [
            blake2b(grid.tobytes() + patches.tobytes(), digest_size=16).digest()
            for grid, patches in zip(
                prompt.grid_hw, np.split(prompt.patches, ends[:-1]), strict=True
            )
        ]
        if len(ends)
        else []
    )


class BlockPool:
    """The blocks 1 to `num_blocks` of a cache."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks, 0, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # named, without owner; oldest first
        self._num_owners = [0] * (num_blocks + 1)
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """Blocks that `take` could give."""
        return len(self._free) + len(self._kept)

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks that hold the longest known beginning of `keys`; nobody owns them for it."""
        found: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def num_available_beside(self, blocks: Sequence[int]) -> int:
        """Blocks that `take` could give once `share(blocks)` was called."""
        return self.num_available - sum(block in self._kept for block in blocks)

    def share(self, blocks: Sequence[int]) -> None:
        """Give found blocks another owner."""
        for block in blocks:
            self._kept.pop(block, None)
            self._num_owners[block] += 1

    def take(self, num_blocks: int) -> list[int]:
        """Give blocks of unknown content to an owner, who has checked that there are enough."""
        assert num_blocks <= self.num_available
        taken: list[int] = []
        for _ in range(num_blocks):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._kept.popitem(last=False)
                del self._block_of[self._key_of.pop(block)]
            self._num_owners[block] = 1
            taken.append(block)
        return taken

    def name(self, block: int, key: bytes) -> None:
        """Say what a block holds from this step on; the first block of a key stays the one."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def forget(self, blocks: Sequence[int]) -> None:
        """Let nobody else find these blocks; whoever owns them keeps them."""
        for block in blocks:
            key = self._key_of.pop(block, None)
            if key is not None:
                del self._block_of[key]
            if block in self._kept:
                del self._kept[block]
                self._free.append(block)

    def give_back(self, blocks: Sequence[int]) -> None:
        """End the ownership of a sequence's blocks; its last ones are the first to be used anew."""
        for block in reversed(blocks):
            self._num_owners[block] -= 1
            assert self._num_owners[block] >= 0
            if self._num_owners[block] == 0:
                if block in self._key_of:
                    self._kept[block] = None
                else:
                    self._free.append(block)
