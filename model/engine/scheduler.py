"""`Scheduler`: which tokens of which sequences one step computes.

    waiting --admit: blocks for all it knows--> running --chunks of its prompt, decodes--> done
       ^---------- preempt: when a decode finds no block, compute it all again ----|

Every step first decodes all running sequences that can be decoded, then spends what is left of the
token budget on prompts: those begun before, then new ones. A sequence computes all it knows again
after a preemption, its generated tokens too, so what follows is the same.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from model.config import BLOCK_SIZE
from model.engine.blocks import BlockPool, blocks_for
from model.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` to `end` of a sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    end: int

    @property
    def is_decode(self) -> bool:
        """Whether it is one token with a context before it."""
        return self.end - self.start == 1 and self.start > 0

    @property
    def is_last(self) -> bool:
        """Whether the sequence's next token follows from it."""
        return self.end == self.sequence.num_tokens


class Scheduler:
    """Plans steps under a token budget; owns no tensor.

    Args:
        pool: the blocks of the cache.
        max_batch_size: sequences that run at the same time.
        max_step_tokens: tokens of one step, decodes included; at least one is always planned.
    """

    def __init__(self, pool: BlockPool, max_batch_size: int, max_step_tokens: int) -> None:
        self._pool = pool
        self._max_batch_size = max_batch_size
        self._max_step_tokens = max_step_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # by admission
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence is not done."""
        return bool(self._waiting or self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that are not admitted yet."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; one that could never fit has been refused before."""
        assert blocks_for(len(sequence.prompt.token_ids) + 1) <= self._pool.num_blocks
        self._waiting.append(sequence)

    def cancel(self, request_id: str) -> None:
        """Forget a request, wherever it is; unknown ones are no error."""
        self._waiting = deque(seq for seq in self._waiting if seq.request_id != request_id)
        for sequence in [seq for seq in self._running if seq.request_id == request_id]:
            self.finish(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Let a running sequence go."""
        self._running.remove(sequence)
        self._release(sequence)

    def start_alone(self, sequence: Sequence) -> None:
        """Compute a running sequence again without what others computed.

        Numbers that break spread to all tokens of a block's attention, so a prompt that shared a
        block with a broken one has to be tried without it.
        """
        self._running.remove(sequence)
        self._pool.forget(sequence.blocks)
        self._release(sequence)
        sequence.block_keys = []
        self._waiting.appendleft(sequence)

    @property
    def num_waiting_tokens(self) -> int:
        """Of waiting prompts for which there are places, if there is memory for the first."""
        if not self._waiting or self._known_blocks(self._waiting[0]) is None:
            return 0
        num_places = self._max_batch_size - len(self._running)
        return sum(sequence.num_tokens for sequence in islice(self._waiting, num_places))

    def plan(self, max_new_tokens: float = math.inf) -> list[Chunk]:
        """The chunks of the next step, decodes first. The caller computes all of them.

        Args:
            max_new_tokens: prompts are begun as long as that brings their tokens closer to this
                number; one at least, unless it is 0.
        """
        decodes = list(self._decodes())
        prompts: list[Chunk] = []
        budget = max(1, self._max_step_tokens - len(decodes))
        planned = {id(chunk.sequence) for chunk in decodes}
        begun = [sequence for sequence in self._running if id(sequence) not in planned]
        # One by one, and none before the last is whole: each may share the blocks of the last.
        for sequence in chain(begun, self._admissions(max_new_tokens)):
            end = min(sequence.num_tokens, sequence.num_cached + budget)
            prompts.append(self._chunk(sequence, end))
            budget -= end - sequence.num_cached
            if budget == 0:
                break
        return sorted([*decodes, *prompts], key=lambda chunk: not chunk.is_decode)

    def _decodes(self) -> Iterator[Chunk]:
        """One token for each running sequence that lacks only its last, oldest first."""
        for sequence in list(self._running):
            lacks_one = sequence.num_tokens - sequence.num_cached == 1
            if lacks_one and sequence in self._running and self._has_room(sequence):
                yield self._chunk(sequence, sequence.num_tokens)

    def _has_room(self, sequence: Sequence) -> bool:
        """Give a sequence the block of its last token; the youngest go back to waiting for it."""
        while blocks_for(sequence.num_tokens) > len(sequence.blocks):
            if self._pool.num_available:
                sequence.blocks += self._pool.take(1)
            else:
                youngest = self._running.pop()
                self._release(youngest)
                self._waiting.appendleft(youngest)
                self.num_preemptions += 1
                if youngest is sequence:
                    return False
        return True

    def _admissions(self, max_new_tokens: float) -> Iterator[Sequence]:
        """Waiting sequences, each with blocks for all that it knows."""
        left = max_new_tokens
        while left > 0 and self._waiting and len(self._running) < self._max_batch_size:
            sequence = self._waiting[0]
            known = self._known_blocks(sequence)
            if known is None:
                return
            num_new = sequence.num_tokens - len(known) * BLOCK_SIZE
            if left < max_new_tokens and left < num_new / 2:
                return
            left -= num_new
            self._waiting.popleft()
            self._pool.share(known)
            missing = blocks_for(sequence.num_tokens) - len(known)
            sequence.blocks = [*known, *self._pool.take(missing)]
            sequence.num_cached = len(known) * BLOCK_SIZE
            self._running.append(sequence)
            yield sequence

    def _known_blocks(self, sequence: Sequence) -> list[int] | None:
        """Blocks that others computed, or None if there is no room for the rest of them."""
        # One token at least must be computed, for the logits that follow it.
        known = self._pool.find(sequence.block_keys[: (sequence.num_tokens - 1) // BLOCK_SIZE])
        missing = blocks_for(sequence.num_tokens) - len(known)
        # One block more for each that runs, lest it be preempted at once.
        has_room = missing + len(self._running) <= self._pool.num_available_beside(known)
        return known if has_room else None

    def _chunk(self, sequence: Sequence, end: int) -> Chunk:
        """Plan up to `end`; who comes later in this step may already use the full blocks."""
        filled = slice(sequence.num_cached // BLOCK_SIZE, end // BLOCK_SIZE)
        for block, key in zip(sequence.blocks[filled], sequence.block_keys[filled], strict=False):
            self._pool.name(block, key)  # blocks of generated tokens have no key
        return Chunk(sequence, sequence.num_cached, end)

    def _release(self, sequence: Sequence) -> None:
        self._pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.num_cached = 0
