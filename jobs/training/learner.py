"""Compute the gradients of lessons by several processes that share the weights.

Each process draws its own share of a batch and computes its gradient on one thread: two such
processes are faster than two threads of one, and do not wait for each other within a step.

Letters: T tokens, V vision tokens.
"""

import multiprocessing
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as torch_multiprocessing
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.training.answer_hints import NOT_GIVEN, AnswerHeads
from jobs.training.balance import LoadBalancer
from jobs.training.curriculum import Stage
from jobs.training.hints import LAYER, HintHeads
from jobs.training.lessons import KINDS, Lesson, Teacher
from model.network.batch import TokenBatch, whole_sequences
from model.network.kimi_vl import KimiVL

HINT_WEIGHT = 0.5  # weight of the hints' loss; the loss of the words has weight 1
ANSWER_HINT_WEIGHT = 0.3
# Weights in the mean over all target tokens, most of which are easy; other kinds have weight 1.
KIND_WEIGHTS = {"q_letter": 4.0, "event": 2.0, "motion": 2.0, "text": 2.0, "q_place": 2.0}


@dataclass(frozen=True)
class Outcome:
    """The measurements of one batch, for the log."""

    conversations: int
    clips: int  # that these showed
    loss: float
    asked: NDArray[np.int64]  # target tokens by kind
    right: NDArray[np.int64]  # target tokens that were predicted, by kind
    hint_loss: float
    hint_motion: float  # accuracy


class Student(nn.Module):
    """The network and the heads that read hints from it during training."""

    def __init__(self, model: KimiVL) -> None:
        super().__init__()
        self.model = model
        self.heads = HintHeads(model.config.text.hidden_size)
        self.answer_heads = AnswerHeads(model.config.text.hidden_size)


class Learner:
    """Computes the gradient of a batch for `student`, with `num_processes` - 1 further processes.

    Use it as a context manager; the helper processes end with it, and also when this process dies.
    The weights are moved into shared memory, so change them only in place and between calls.
    """

    def __init__(self, student: Student, checkpoint: Path, num_processes: int) -> None:
        self.student = student.share_memory()
        self.balancer = LoadBalancer(student)
        self._teacher = Teacher(checkpoint)
        self._num_processes = num_processes
        self._checkpoint = checkpoint
        self._helpers: list[_Helper] = []
        self._stack = ExitStack()

    def __enter__(self) -> "Learner":
        for _ in range(self._num_processes - 1):
            self._helpers.append(_Helper(self.student, self._checkpoint))
            self._stack.callback(self._helpers[-1].close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def learn(self, stage: Stage, first_seed: int) -> Outcome:
        """Put the mean gradient of the batch into the parameters' `grad`."""
        shares = _divided(stage.conversations, first_seed, self._num_processes)
        for helper, (number, seed) in zip(self._helpers, shares[1:], strict=True):
            helper.start(stage, number, seed)
        number, seed = shares[0]
        self.student.zero_grad(set_to_none=True)
        outcomes = [backward(self.student, self._teacher.lesson(stage, number, seed))]
        outcomes += [helper.join(self.student, self.balancer) for helper in self._helpers]
        for parameter in trained(self.student):
            parameter.grad = _gradient(parameter)
            parameter.grad /= len(outcomes)
        total: dict[str, Any] = {
            name: sum(vars(each)[name] for each in outcomes) for name in vars(outcomes[0])
        }
        means = {name: total[name] / len(outcomes) for name in ("loss", "hint_loss", "hint_motion")}
        return Outcome(**total | means)


class _Helper:
    """Another process that computes gradients into shared memory."""

    def __init__(self, student: Student, checkpoint: Path) -> None:
        self._gradients = [torch.zeros_like(p).share_memory_() for p in trained(student)]
        self._loads = [torch.zeros_like(load) for load in LoadBalancer(student).loads.values()]
        context = torch_multiprocessing.get_context("spawn")
        self._connection, theirs = multiprocessing.Pipe()
        loads = [load.share_memory_() for load in self._loads]
        self._process = context.Process(
            target=_help, args=(theirs, student, checkpoint, self._gradients, loads), daemon=True
        )
        self._process.start()
        theirs.close()

    def start(self, stage: Stage, number: int, seed: int) -> None:
        """Start its share of a batch."""
        self._connection.send((stage, number, seed))

    @torch.no_grad()
    def join(self, student: Student, balancer: LoadBalancer) -> Outcome:
        """Wait for its share, and add its gradients and counts to those of this process."""
        outcome = self._connection.recv()
        for parameter, gradient in zip(trained(student), self._gradients, strict=True):
            parameter.grad = _gradient(parameter) + gradient
        for load, counted in zip(balancer.loads.values(), self._loads, strict=True):
            load.add_(counted)
        return outcome

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def _help(
    connection: Connection,
    student: Student,
    checkpoint: Path,
    gradients: Sequence[Tensor],
    loads: Sequence[Tensor],
) -> None:
    """Compute gradients in a helper process, until the other end of the connection is closed."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    teacher = Teacher(checkpoint)
    balancer = LoadBalancer(student)
    while True:
        try:
            stage, number, seed = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        student.zero_grad(set_to_none=True)
        outcome = backward(student, teacher.lesson(stage, number, seed))
        with torch.no_grad():
            for parameter, gradient in zip(trained(student), gradients, strict=True):
                gradient.copy_(_gradient(parameter))
            for load, counted in zip(balancer.loads.values(), loads, strict=True):
                counted.copy_(load)
                load.zero_()
        connection.send(outcome)


def trained(model: nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that have gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return the gradient of a parameter; a head without hints in this batch has none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def backward(student: Student, lesson: Lesson) -> Outcome:
    """Add the gradient of the mean loss of the target tokens and of the hints."""
    model = student.model
    token_ids = [ids.tolist() for ids in lesson.token_ids]
    batch = whole_sequences(token_ids, model.config.media_token_id)
    hidden, hint_loss, hint_motion = _read(student, batch, lesson)
    starts = np.cumsum([0, *batch.query_lens[:-1]])
    places = [first + at for first, at in zip(starts, lesson.targets, strict=True)]
    rows = torch.from_numpy(np.concatenate(places))
    logits = model.logits(hidden[rows - 1])
    targets = batch.token_ids[rows]
    kinds = np.concatenate(lesson.kinds)
    weights = torch.tensor([KIND_WEIGHTS.get(kind, 1.0) for kind in KINDS])[kinds]
    loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
    (loss + hint_loss).backward()
    is_right = (logits.argmax(-1) == targets).numpy()
    return Outcome(
        conversations=len(token_ids),
        clips=lesson.num_clips,
        loss=float(loss.detach()),
        asked=np.bincount(kinds, minlength=len(KINDS)),
        right=np.bincount(kinds[is_right], minlength=len(KINDS)),
        hint_loss=float(hint_loss.detach()),
        hint_motion=float(hint_motion),
    )


def _read(student: Student, batch: TokenBatch, lesson: Lesson) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states [T, D], the weighted loss of all hints, and the accuracy of motion."""
    model = student.model
    features: Tensor | None = None
    if len(lesson.patches):
        grids = [(int(height), int(width)) for height, width in lesson.grid_hw]
        features = model.encode_images(torch.from_numpy(lesson.patches), grids)
    outputs: list[Tensor] = []  # of each layer

    def keep(_layer: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output)

    hooks = [layer.register_forward_hook(keep) for layer in model.language_model.model.layers]
    hidden = model(batch, None, features)
    for hook in hooks:
        hook.remove()
    asked = lesson.answer_hints
    loss, motion = torch.zeros(()), torch.zeros(())
    if len(asked.places):
        rows = outputs[-2][torch.from_numpy(asked.places)]
        loss = loss + ANSWER_HINT_WEIGHT * student.answer_heads(rows, asked)
        if (asked.colours != NOT_GIVEN).any():
            early = outputs[LAYER][torch.from_numpy(asked.places)]
            loss = loss + ANSWER_HINT_WEIGHT * student.answer_heads.asked(early, asked)
    if features is not None:
        assert batch.media_rows is not None
        seen, motion = student.heads(features, outputs[LAYER][batch.media_rows], lesson.hints)
        loss = loss + HINT_WEIGHT * seen
    return hidden, loss, motion


def _divided(number: int, first_seed: int, num_shares: int) -> list[tuple[int, int]]:
    """Divide a batch: return (conversations, first seed) of each process."""
    ends = [number * share // num_shares for share in range(num_shares + 1)]
    return [(end - start, first_seed + start) for start, end in pairwise(ends)]
