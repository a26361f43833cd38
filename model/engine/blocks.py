"""`BlockPool`: which sequences use which block of the cache, and which blocks can be shared.

A full block of a prompt has a key, which stands for its tokens and for everything before them. A
block with a key may belong to several sequences at once. When its last owner leaves, it stays
cached until the room is needed. So prompts with the same beginning (the system text, the frames of
a clip) are prefilled once.

Block 0 is never allocated, because the padding of block tables points at it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from model.config import BLOCK_SIZE
from model.inputs.prompt import Prompt


def blocks_for(num_tokens: int) -> int:
    """Return how many blocks `num_tokens` tokens need."""
    return -(-num_tokens // BLOCK_SIZE)


def block_keys(prompt: Prompt, media_token_id: int) -> list[bytes]:
    """Make a key for each full block of a prompt; it stands for the block and all blocks before.

    The media pads of the prompt stand for its images, in order.
    """
    # All pads are the same token, so each also has the digest of its image.
    content = np.zeros((len(prompt.token_ids), 3), np.int64)  # token, two halves of the digest
    content[:, 0] = prompt.token_ids
    pads_of_image = prompt.grid_hw.prod(axis=1, dtype=np.int64) // 4
    images = np.frombuffer(b"".join(prompt.image_digests), np.int64).reshape(-1, 2)
    content[prompt.token_ids == media_token_id, 1:] = images.repeat(pads_of_image, axis=0)
    keys: list[bytes] = []
    key = b""
    for start in range(0, len(content) - BLOCK_SIZE + 1, BLOCK_SIZE):
        block = content[start : start + BLOCK_SIZE].tobytes()
        key = blake2b(key + block, digest_size=16).digest()
        keys.append(key)
    return keys


class BlockPool:
    """The blocks 1 to `num_blocks` of a cache."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks, 0, -1))
        # Blocks with a key and without an owner, the longest unused first.
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._num_owners = [0] * (num_blocks + 1)
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """How many blocks `allocate` could give."""
        return len(self._free) + len(self._unused)

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """Find the blocks of the longest known beginning of `keys`; this does not make an owner."""
        found: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def num_available_beside(self, blocks: Sequence[int]) -> int:
        """Return how many blocks `allocate` could give after `add_owner(blocks)`."""
        return self.num_available - sum(block in self._unused for block in blocks)

    def add_owner(self, blocks: Sequence[int]) -> None:
        """Give blocks that `find` returned one more owner."""
        for block in blocks:
            self._unused.pop(block, None)
            self._num_owners[block] += 1

    def allocate(self, num_blocks: int) -> list[int]:
        """Give blocks of undefined content to an owner, who has checked that there are enough.

        Free blocks go first, then those that have been unused for the longest time.
        """
        assert num_blocks <= self.num_available
        allocated: list[int] = []
        for _ in range(num_blocks):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._unused.popitem(last=False)
                del self._block_of[self._key_of.pop(block)]
            self._num_owners[block] = 1
            allocated.append(block)
        return allocated

    def register(self, block: int, key: bytes) -> None:
        """Say what a block holds from this step on; the first block of a key stays its block."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def unregister(self, blocks: Sequence[int]) -> None:
        """Let nobody find these blocks any more; their owners keep them."""
        for block in blocks:
            key = self._key_of.pop(block, None)
            if key is not None:
                del self._block_of[key]
            if block in self._unused:
                del self._unused[block]
                self._free.append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """Take one owner from the blocks of a sequence.

        The last blocks of a sequence are released first, and so are the first to be used anew: the
        beginnings of prompts are what others share.
        """
        for block in reversed(blocks):
            self._num_owners[block] -= 1
            assert self._num_owners[block] >= 0
            if self._num_owners[block] == 0:
                if block in self._key_of:
                    self._unused[block] = None
                else:
                    self._free.append(block)
