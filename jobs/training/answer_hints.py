"""Auxiliary losses about questions: the meant answer, and the content and letter of each option.

To answer a multiple-choice question by its letter, the network must find the answer, then the
option with the same content, then the letter before it. It does not learn these three steps from
letters alone, because none helps until all work. During training, linear heads therefore read from
the layer before the last: at the position that predicts an answer, which answer is meant; and at
the end of each option, its answer and its letter. One head reads the answer at both kinds of
positions, so that equal answers look alike to the last layer.

First of all the network must know which colour or shape a question asks about. It learns that from
answers alone if a question names both, and guesses if it names one of them. A stage may therefore
train another head to read this from an early layer, at the position that predicts the answer.

Letters: A positions, D hidden size.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.demo.language import LETTERS, NUMBERS, PLACES, VERBS
from jobs.demo.scenes import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, WORDS

# Every possible answer, once; the same word is the same answer to any question.
ANSWERS = tuple(
    dict.fromkeys(
        (
            *(*BACKGROUNDS, *NUMBERS, *DIRECTIONS, *VERBS.values(), *PLACES, *COLOURS, *SHAPES),
            *("nothing", *WORDS, *(str(number) for number in range(10, 100))),
            *("appears", "disappears", *(f"turns {colour}" for colour in COLOURS)),
            *("early", "late"),
        )
    )
)
_FIELDS = ("places", "answers", "letters", "colours", "shapes")  # of AnswerHints
NOT_AN_OPTION = NOT_GIVEN = -100  # the `ignore_index` of `F.cross_entropy`


@dataclass(frozen=True, kw_only=True)
class AnswerHints:
    """The hints at some positions of one conversation, or of a batch."""

    places: NDArray[np.int64]  # [A] positions in the conversation, or in the batch
    answers: NDArray[np.int64]  # [A] indices into ANSWERS
    letters: NDArray[np.int64]  # [A] indices into LETTERS, or NOT_AN_OPTION
    colours: NDArray[np.int64]  # [A] colour in the question from 1 on, 0 for none, or NOT_GIVEN
    shapes: NDArray[np.int64]  # [A] likewise

    @staticmethod
    def of_places(hints: Sequence[tuple[int, int, int, int, int]]) -> "AnswerHints":
        """Make hints from (position, answer, letter, colour, shape) of each position."""
        columns = np.array(hints, np.int64).reshape(-1, len(_FIELDS)).T
        return AnswerHints(**dict(zip(_FIELDS, columns, strict=True)))

    @staticmethod
    def joined(several: "Sequence[AnswerHints]", starts: Sequence[int]) -> "AnswerHints":
        """Concatenate hints; the positions of each are shifted by where it starts."""
        moved = [
            replace(hints, places=hints.places + start)
            for hints, start in zip(several, starts, strict=True)
        ]
        joined = {name: np.concatenate([getattr(each, name) for each in moved]) for name in _FIELDS}
        return AnswerHints(**joined)


def asked_about(question: str) -> tuple[int, int]:
    """Return the colour and shape in the first line of a question, counted from 1; 0 for none."""
    words = re.findall("[a-z]+", question.partition("\n")[0])
    colour = next((1 + number for number, name in enumerate(COLOURS) if name in words), 0)
    shape = next((1 + number for number, name in enumerate(SHAPES) if name in words), 0)
    return colour, shape


class AnswerHeads(nn.Module):
    """Linear heads that read answers and letters from hidden states."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.of_answer = nn.Linear(hidden_size, len(ANSWERS))
        self.of_letter = nn.Linear(hidden_size, len(LETTERS))
        self.of_colour = nn.Linear(hidden_size, 1 + len(COLOURS))
        self.of_shape = nn.Linear(hidden_size, 1 + len(SHAPES))

    def forward(self, hidden: Tensor, hints: AnswerHints) -> Tensor:
        """Return the loss of reading answers and letters from `hidden` [A, D]."""
        hidden = F.layer_norm(hidden, hidden.shape[-1:])
        letters = torch.from_numpy(hints.letters)
        is_option = letters != NOT_AN_OPTION
        answers = self.of_answer(hidden)
        targets = torch.from_numpy(hints.answers)
        # Two means, because options are many and easy.
        loss = F.cross_entropy(answers[~is_option], targets[~is_option])
        if is_option.any():
            loss = loss + F.cross_entropy(answers[is_option], targets[is_option])
            loss = loss + F.cross_entropy(self.of_letter(hidden[is_option]), letters[is_option])
        return loss

    def asked(self, early: Tensor, hints: AnswerHints) -> Tensor:
        """Return the loss of reading from `early` [A, D] what is asked; some must be given."""
        early = F.layer_norm(early, early.shape[-1:])
        colours, shapes = torch.from_numpy(hints.colours), torch.from_numpy(hints.shapes)
        return F.cross_entropy(self.of_colour(early), colours) + F.cross_entropy(
            self.of_shape(early), shapes
        )
