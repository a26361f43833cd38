"""`StepParts`: divides a step that the memory of the device does not suffice for, and goes on.

    step --out of memory--> two halves --out of memory--> four quarters ... --> one sequence fails

The parts are computed one after another and give what the whole step would have given. A sequence
whose tokens do not fit although they are alone fails by itself, and the engine lives. The steps
that follow are divided alike, since their memory would not suffice either. Every 32 steps without
a failure they are divided into half as many parts: what took the memory may be gone, and a failed
try costs less than one of 32 steps.
"""

from collections.abc import Callable, Sequence

import torch

from model.engine.scheduler import Chunk
from model.engine.sequence import Completion
from model.inputs.prompt import PromptError

# A finished request: its id, and its completion or why it failed.
Finished = tuple[str, Completion | PromptError]

LEAST_TOKENS = 512  # of one sequence, which are not divided further
STEPS_UNTIL_FEWER = 32


class StepParts:
    """Computes the chunks of steps, in as many parts as it takes.

    `in_order` sorts chunks so that each stands behind those whose blocks it shares.
    """

    def __init__(self, in_order: Callable[[Sequence[Chunk]], list[Chunk]]) -> None:
        self.num_failures = 0  # how often the memory did not suffice
        self._in_order = in_order
        self._num_parts = 1  # of every step
        self._num_good_steps = 0  # since this number changed

    def compute(
        self,
        chunks: Sequence[Chunk],
        compute: Callable[[Sequence[Chunk]], list[Finished]],
        give_up: Callable[[Chunk, str], list[Finished]],
    ) -> list[Finished]:
        """Compute the chunks of a step, as planned.

        `compute` computes some of them and may raise torch.OutOfMemoryError; then it has changed
        nothing that it does not do again. `give_up` fails the sequence of a chunk, for a reason,
        and takes its blocks and those of all that share them.
        """
        finished: list[Finished] = []
        num_parts, has_given_up = self._num_parts, False
        parts: list[tuple[Sequence[Chunk], int]] = [
            (part, num_parts) for part in self._divided(chunks, num_parts)
        ]
        while parts:
            part, level = parts.pop(0)
            if part and not (part := _with_blocks(part)):
                continue  # an earlier part has shown that these sequences have ended
            reason, results = _try(compute, part)
            finished += results
            if reason is None:
                continue
            self.num_failures += 1
            halves = self._divided(part, 2)
            if len(halves) > 1 and (_num_sequences(part) > 1 or _num_tokens(part) > LEAST_TOKENS):
                parts[:0] = [(half, 2 * level) for half in halves]
                num_parts = max(num_parts, 2 * level)
            else:
                has_given_up = True
                finished += give_up(part[0], reason)
        self._note(self._num_parts if has_given_up else num_parts)
        return finished

    def _divided(self, chunks: Sequence[Chunk], num_parts: int) -> list[Sequence[Chunk]]:
        """Divide chunks, each behind those whose blocks it shares; a whole step needs no order."""
        return [chunks] if num_parts == 1 else [*divided(self._in_order(chunks), num_parts)]

    def _note(self, num_parts: int) -> None:
        """Take note of how many parts a step took.

        A step in which a sequence failed does not count: it was that sequence which was too large.
        """
        self._num_good_steps += 1
        if num_parts > self._num_parts:
            self._num_parts, self._num_good_steps = num_parts, 0
        elif self._num_good_steps >= STEPS_UNTIL_FEWER:
            self._num_parts, self._num_good_steps = max(1, num_parts // 2), 0


def divided(chunks: Sequence[Chunk], num_parts: int) -> list[list[Chunk]]:
    """Divide chunks into at most `num_parts` parts of equally many tokens, in their order.

    Long chunks are cut, so the parts of a prompt may lie in several parts. Without chunks there is
    one part, which has none.
    """
    most = max(1, -(-_num_tokens(chunks) // num_parts))
    parts: list[list[Chunk]] = [[]]
    room = most
    for chunk in chunks:
        start = chunk.start
        while start < chunk.end:
            if room == 0:
                parts.append([])
                room = most
            end = min(chunk.end, start + room)
            parts[-1].append(Chunk(chunk.sequence, start, end))
            room -= end - start
            start = end
    return parts


def _try(
    compute: Callable[[Sequence[Chunk]], list[Finished]], part: Sequence[Chunk]
) -> tuple[str | None, list[Finished]]:
    """Compute a part; return why that failed, or None and what finished."""
    try:
        return None, compute(part)
    except torch.OutOfMemoryError as error:
        if not part:
            raise
        reason = str(error).partition("\n")[0]
    # Only here has the exception let go of the tensors in the frames that it came through.
    torch.cuda.empty_cache()
    return reason, []


def _with_blocks(part: Sequence[Chunk]) -> list[Chunk]:
    """Leave out the chunks of sequences that have no blocks any more."""
    return [chunk for chunk in part if chunk.sequence.blocks]


def _num_tokens(part: Sequence[Chunk]) -> int:
    return sum(chunk.end - chunk.start for chunk in part)


def _num_sequences(part: Sequence[Chunk]) -> int:
    return len({id(chunk.sequence) for chunk in part})
