"""Hints about questions: which answer is meant, and what each option says, told while learning.

To answer a choice by its letter, the network has to find the answer, then the option that says the
same, then the letter before it. From letters alone these three are not learned: until all work,
none helps. While it trains, linear heads therefore read from the layer before the last, at the
place from which an answer is predicted, which answer is meant, and at the end of each option which
answer it is and which letter it has. One head reads the answer at both kinds of places, so that
equal answers look alike to the last layer.

Before any of that it has to know of which colour or shape it is asked; from answers alone it learns
that where a question names both, and guesses where it names one of them. A stage may have that told
as well, from an early layer at the place from which an answer is predicted.

Letters: A places, D hidden size.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.demo.language import LETTERS, NUMBERS, PLACES, VERBS
from jobs.demo.scenes import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, WORDS

# Every answer to a question, once; the same word is the same answer to whatever question.
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
NOT_AN_OPTION = NOT_TOLD = -100  # as in `F.cross_entropy`


@dataclass(frozen=True, kw_only=True)
class AnswerHints:
    """Of the places of one conversation, or of a batch."""

    places: NDArray[np.int64]  # [A] tokens of the conversation, or rows of the batch
    answers: NDArray[np.int64]  # [A] in ANSWERS
    letters: NDArray[np.int64]  # [A] in LETTERS, or NOT_AN_OPTION
    colours: NDArray[np.int64]  # [A] of which the question asks, 0 for none, or NOT_TOLD
    shapes: NDArray[np.int64]  # [A] likewise

    @staticmethod
    def of_places(told: Sequence[tuple[int, int, int, int, int]]) -> "AnswerHints":
        """(place, answer, letter, colour, shape) of each place."""
        places, answers, letters, colours, shapes = np.array(told, np.int64).reshape(-1, 5).T
        return AnswerHints(
            places=places, answers=answers, letters=letters, colours=colours, shapes=shapes
        )

    @staticmethod
    def joined(parts: "Sequence[AnswerHints]", starts: Sequence[int]) -> "AnswerHints":
        """One after the other, the places of each part behind where it starts."""
        places = [part.places + start for part, start in zip(parts, starts, strict=True)]
        return AnswerHints(
            places=np.concatenate(places),
            answers=np.concatenate([part.answers for part in parts]),
            letters=np.concatenate([part.letters for part in parts]),
            colours=np.concatenate([part.colours for part in parts]),
            shapes=np.concatenate([part.shapes for part in parts]),
        )


def asked_about(question: str) -> tuple[int, int]:
    """The colour and the shape that a question's first line names, counted from 1; 0 for none."""
    words = re.findall("[a-z]+", question.partition("\n")[0])
    colour = next((1 + number for number, name in enumerate(COLOURS) if name in words), 0)
    shape = next((1 + number for number, name in enumerate(SHAPES) if name in words), 0)
    return colour, shape


class AnswerHeads(nn.Module):
    """What reads answers and letters from the network; linear."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.of_answer = nn.Linear(hidden_size, len(ANSWERS))
        self.of_letter = nn.Linear(hidden_size, len(LETTERS))
        self.of_colour = nn.Linear(hidden_size, 1 + len(COLOURS))
        self.of_shape = nn.Linear(hidden_size, 1 + len(SHAPES))

    def forward(self, hidden: Tensor, hints: AnswerHints) -> Tensor:
        """The loss of both readings from `hidden` [A, D] of the hints' places."""
        hidden = F.layer_norm(hidden, hidden.shape[-1:])
        letters = torch.from_numpy(hints.letters)
        is_option = letters != NOT_AN_OPTION
        answers = self.of_answer(hidden)
        told = torch.from_numpy(hints.answers)
        # Apart, because options are many and easy.
        loss = F.cross_entropy(answers[~is_option], told[~is_option])
        if is_option.any():
            loss = loss + F.cross_entropy(answers[is_option], told[is_option])
            loss = loss + F.cross_entropy(self.of_letter(hidden[is_option]), letters[is_option])
        return loss

    def asked(self, early: Tensor, hints: AnswerHints) -> Tensor:
        """The loss of reading from `early` [A, D] what is asked about; some of it must be told."""
        early = F.layer_norm(early, early.shape[-1:])
        colours, shapes = torch.from_numpy(hints.colours), torch.from_numpy(hints.shapes)
        return F.cross_entropy(self.of_colour(early), colours) + F.cross_entropy(
            self.of_shape(early), shapes
        )
