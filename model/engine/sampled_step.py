"""`SampledStep`: the tokens that a step has sampled, on their way from the device to the host.

The next step can be planned and begun before they arrive: its sequences have a pending token.
Until then the host works while the device computes.

Letters: n sequences that sample a token.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.engine.sampling import sample
from model.engine.sequence import Sequence as Generation
from model.engine.transfer import Download, to_device


class SampledToken(NamedTuple):
    """The next token of a sequence."""

    sequence: Generation
    token_id: int
    logprob: float
    choice_logprobs: tuple[float, ...]  # of the choices, if this is the first token


class SampledStep:
    """Samples one token for each of `sequences`, given their logits [n, vocabulary] float32.

    `draws` and `num_free` are those of `sample`. The tokens are pending until `known` is called.
    """

    def __init__(
        self, sequences: Sequence[Generation], logits: Tensor, draws: Tensor, num_free: int
    ) -> None:
        self.needs_tokens = any(each.needs_its_tokens for each in sequences)
        penalties = {
            row: (each.params.repetition_penalty, each.token_ids(0, each.num_tokens))
            for row, each in enumerate(sequences)
            if each.params.repetition_penalty != 1.0
        }
        allowed_bits = {
            row: each.constraint.allowed_bits()
            for row, each in enumerate(sequences)
            if each.constraint is not None
        }
        self.token_ids, logprobs = sample(logits, draws, num_free, penalties, allowed_bits)
        numbers = [self.token_ids.double(), logprobs.double()]
        self._owners: list[tuple[Generation, int, int]] = []  # sequence, restarts, choices
        for row, each in enumerate(sequences):
            choice_ids = [] if each.num_sampled else each.choice_ids
            if choice_ids:
                ids = to_device(np.array(choice_ids, np.int64), logits.device)
                numbers.append(logits[row].log_softmax(-1).index_select(0, ids).double())
            self._owners.append((each, each.num_restarts, len(choice_ids)))
            each.num_pending += 1
            each.pending_row = row
        self._download = Download(torch.cat(numbers))

    def known(self) -> Iterator[SampledToken]:
        """Yield the tokens once they are here; those of sequences that ended meanwhile are void."""
        numbers = self._download.wait().tolist()
        num = len(self._owners)
        token_ids, logprobs, choices = numbers[:num], numbers[num : 2 * num], numbers[2 * num :]
        for owner, token_id, logprob in zip(self._owners, token_ids, logprobs, strict=True):
            sequence, restarts, num_choices = owner
            mine, choices = choices[:num_choices], choices[num_choices:]
            if restarts == sequence.num_restarts:
                sequence.num_pending -= 1
                yield SampledToken(sequence, int(token_id), logprob, tuple(mine))
