"""`Scheduler`: which tokens of which sequences one step computes.

    waiting --admit: blocks for all its tokens--> running --chunks of its prompt, decodes--> done
       ^---------- preempt: a decode finds no free block --------------|

Every step first decodes all running sequences that can be decoded. The rest of the token budget
goes to prompts: first to those begun before, then to new ones. After a preemption a sequence
computes all its tokens again, generated ones too, so the tokens that follow are the same.

A sequence with `own_step` is computed in steps that hold nothing else, so that the rest of a batch
cannot change how its sums are rounded.

A sequence may be planned while its last token is pending: the device knows it, the host does not.
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
    """The tokens from `start` to `end` of a sequence, which this step computes."""

    sequence: Sequence
    start: int
    end: int

    @property
    def is_decode(self) -> bool:
        """Whether it is one token with a context before it."""
        return self.end - self.start == 1 and self.start > 0

    @property
    def is_last(self) -> bool:
        """Whether the next token of the sequence follows from it."""
        return self.end == self.sequence.num_tokens


class Scheduler:
    """Plans steps of at most `max_step_tokens`, decodes included. It owns no tensor.

    Even if decodes use all of the budget, one token of a prompt is planned. New prompts wait for up
    to `gather_steps` steps until together they fill a step, so that the other steps only decode:
    those can be replayed as CUDA graphs.
    """

    def __init__(
        self, pool: BlockPool, max_batch_size: int, max_step_tokens: int, gather_steps: int = 0
    ) -> None:
        self._pool = pool
        self._max_batch_size = max_batch_size
        self._max_step_tokens = max_step_tokens
        self._gather_steps = gather_steps
        self._num_gathering = 0  # steps since the first of the waiting prompts could have begun
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in order of admission
        self._free_rows = list(range(max_batch_size, 0, -1))  # of the block tables on the device
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence is not finished."""
        return bool(self._waiting or self._running)

    @property
    def num_waiting(self) -> int:
        """How many sequences are not admitted yet."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; the caller has refused one that could never fit."""
        assert blocks_for(len(sequence.prompt.token_ids) + 1) <= self._pool.num_blocks
        if sequence.own_step:
            self._waiting.appendleft(sequence)
        else:
            self._waiting.append(sequence)

    def cancel(self, request_id: str) -> None:
        """Forget a request, waiting or running; an unknown one is no error."""
        for sequence in [*self._running, *self._waiting]:
            if sequence.request_id == request_id:
                self.finish(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Remove a sequence and free its blocks."""
        sequence.drop_pending()
        if sequence in self._running:
            self._running.remove(sequence)
            self._release(sequence)
        else:  # it was preempted before its last token was known
            self._waiting.remove(sequence)

    def retry_unshared(self, sequence: Sequence) -> None:
        """Compute a sequence again, without blocks that other sequences computed.

        NaN in a block of the cache spreads to every sequence that attends to it. So a sequence that
        shares blocks may be broken by another one, and is tried once more without them.
        """
        self._pool.unregister(sequence.blocks)
        self.finish(sequence)
        sequence.block_keys = []
        self._waiting.appendleft(sequence)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of waiting prompts with room in the batch; 0 if blocks lack for the first."""
        if not self._waiting or self._known_blocks(self._waiting[0]) is None:
            return 0
        num_places = self._max_batch_size - len(self._running)
        return sum(sequence.num_tokens for sequence in islice(self._waiting, num_places))

    def plan(self, max_new_tokens: float = math.inf) -> list[Chunk]:
        """Plan the chunks of the next step, decodes first. The caller must compute all of them.

        `max_new_tokens` is how many tokens of prompts should begin in this step. The first prompt
        begins unless this is 0, another one only if it brings their tokens closer to this number.
        """
        only = self._own_step(max_new_tokens)
        if only is not None:
            return [only]
        decodes = list(self._decodes())
        prompts: list[Chunk] = []
        budget = max(1, self._max_step_tokens - len(decodes))
        begun = [each for each in self._running if each.num_tokens - each.num_cached > 1]
        is_own_choice = max_new_tokens == math.inf  # and not that of all ranks of a group
        if decodes and not begun and is_own_choice and self._should_gather(budget):
            max_new_tokens = 0
        # Admitted one by one, each after the last has been planned: it may share blocks with it.
        for sequence in chain(begun, self._admissions(max_new_tokens)):
            end = min(sequence.num_tokens, sequence.num_cached + budget)
            prompts.append(self._chunk(sequence, end))
            budget -= end - sequence.num_cached
            if budget == 0:
                break
        return sorted([*decodes, *prompts], key=lambda chunk: not chunk.is_decode)

    def _own_step(self, max_new_tokens: float) -> Chunk | None:
        """Plan the first sequence that wants the step for itself, if one can have it."""
        begun = (each for each in self._running if each.own_step and not _is_ended(each))
        sequence = next(chain(begun, self._admissions(max_new_tokens, own_step=True)), None)
        if sequence is None or not self._has_room(sequence):
            return None
        end = min(sequence.num_tokens, sequence.num_cached + self._max_step_tokens)
        return self._chunk(sequence, end)

    def _should_gather(self, budget: int) -> bool:
        """Say whether waiting prompts should wait for more of them, while others decode."""
        tokens = self.num_waiting_tokens if self._num_gathering < self._gather_steps else budget
        self._num_gathering = self._num_gathering + 1 if 0 < tokens < budget else 0
        return self._num_gathering > 0

    def _decodes(self) -> Iterator[Chunk]:
        """Plan one token for each running sequence that lacks only its last, oldest first."""
        for sequence in list(self._running):
            lacks_one = sequence.num_tokens - sequence.num_cached == 1
            if (
                lacks_one
                and not _is_ended(sequence)
                and sequence in self._running
                and self._has_room(sequence)
            ):
                yield self._chunk(sequence, sequence.num_tokens)

    def _has_room(self, sequence: Sequence) -> bool:
        """Allocate the last token's block, preempting the youngest; False if that is `sequence`."""
        while blocks_for(sequence.num_tokens) > len(sequence.blocks):
            if self._pool.num_available:
                sequence.blocks += self._pool.allocate(1)
            else:
                youngest = self._running.pop()
                self._release(youngest)
                self._waiting.appendleft(youngest)
                self.num_preemptions += 1
                if youngest is sequence:
                    return False
        return True

    def _admissions(self, max_new_tokens: float, *, own_step: bool = False) -> Iterator[Sequence]:
        """Admit waiting sequences of one kind, each with blocks for all its tokens."""
        left = max_new_tokens
        while left > 0 and self._waiting and len(self._running) < self._max_batch_size:
            sequence = self._waiting[0]
            if sequence.own_step != own_step:
                return
            known = self._known_blocks(sequence)
            if known is None or sequence.num_pending:  # preempted, its last token is not here yet
                return
            num_new = sequence.num_tokens - len(known) * BLOCK_SIZE
            if left < max_new_tokens and left < num_new / 2:
                return
            left -= num_new
            self._waiting.popleft()
            self._pool.add_owner(known)
            missing = blocks_for(sequence.num_tokens) - len(known)
            sequence.blocks = [*known, *self._pool.allocate(missing)]
            sequence.num_cached = len(known) * BLOCK_SIZE
            sequence.table_row, sequence.num_blocks_on_device = self._free_rows.pop(), 0
            self._running.append(sequence)
            yield sequence

    def _known_blocks(self, sequence: Sequence) -> list[int] | None:
        """Find the blocks that others have computed; None if the missing ones have no room."""
        # At least one token must be computed: its logits give the next token.
        known = self._pool.find(sequence.block_keys[: (sequence.num_tokens - 1) // BLOCK_SIZE])
        missing = blocks_for(sequence.num_tokens) - len(known)
        # One more block for each running sequence, or the new one might be preempted at once.
        has_room = missing + len(self._running) <= self._pool.num_available_beside(known)
        return known if has_room else None

    def _chunk(self, sequence: Sequence, end: int) -> Chunk:
        """Plan a sequence up to `end`; the next ones of this step may already share its blocks."""
        filled = slice(sequence.num_cached // BLOCK_SIZE, end // BLOCK_SIZE)
        # Blocks with generated tokens have no key, so there may be fewer keys than blocks.
        for block, key in zip(sequence.blocks[filled], sequence.block_keys[filled], strict=False):
            self._pool.register(block, key)
        return Chunk(sequence, sequence.num_cached, end)

    def _release(self, sequence: Sequence) -> None:
        self._pool.release(sequence.blocks)
        self._free_rows.append(sequence.table_row)
        sequence.blocks = []
        sequence.num_cached = 0


def _is_ended(sequence: Sequence) -> bool:
    """Say whether nothing is left to compute of it, once its last token is known."""
    return sequence.num_sampled >= sequence.max_tokens
