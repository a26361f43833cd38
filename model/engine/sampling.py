"""Sampling: logits -> the next token of each sequence.

The random number for the n-th token of a sequence depends only on its seed and on n. So neighbours
in the batch, restarts and recomputation do not change what is drawn.

Letters: B sequences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.engine.sequence import SamplingParams
from model.engine.sequence import Sequence as Generation
from model.engine.transfer import to_device

# Allowed tokens are first looked for among so many of the likeliest: sorting all of them is slow.
_NUM_BEST = 1024


@dataclass(frozen=True)
class Draws:
    """What decides the random choices of a step, as numbers for the device.

    Which of the two ways to draw is taken for a row depends only on the settings of that row, so
    the rows without a limit on the allowed tokens come first.
    """

    # [6, n] float64 for n of the rows: row, random number in [0, 1), temperature, top_p, top_k (0
    # is no limit), min_p.
    numbers: NDArray[np.float64]
    num_free: int  # the rows without top_p, top_k and min_p

    @classmethod
    def of(cls, sequences: Sequence[Generation]) -> Self:
        """List the draws of the next tokens of `sequences`; greedy ones need none."""
        drawn = [row for row, each in enumerate(sequences) if each.params.temperature > 0]
        free = [row for row in drawn if not _is_limited(sequences[row].params)]
        rows = free + [row for row in drawn if _is_limited(sequences[row].params)]
        numbers = np.empty((6, len(rows)))
        for place, row in enumerate(rows):
            params = sequences[row].params
            number = uniform(params.seed, sequences[row].num_sampled)
            limits = (params.top_p, params.top_k, params.min_p)
            numbers[:, place] = (row, number, params.temperature, *limits)
        return cls(numbers, len(free))


def sample(
    logits: Tensor,
    draws: Tensor,
    num_free: int,
    penalties: Mapping[int, tuple[float, NDArray[np.integer]]] | None = None,
    allowed_bits: Mapping[int, NDArray[np.uint8]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose one token for each sequence, given logits [B, vocabulary] float32.

    `draws` are the numbers of a `Draws` on the device. `penalties` are, for rows with a repetition
    penalty, the penalty and the ids that the sequence has seen; `allowed_bits` are for rows with a
    constraint. Returns token ids [B] int64, and their log-probabilities [B] in nats under the
    model: at temperature 1, with all tokens allowed, without a penalty. Nothing here waits for the
    device but a draw whose allowed tokens go beyond the likeliest 1024.
    """
    adjusted = _penalise(logits, penalties) if penalties else logits
    if allowed_bits:
        adjusted = _forbid(adjusted, allowed_bits)
    token_ids = adjusted.argmax(-1)
    if draws.shape[1]:
        rows = draws[0].long()
        drawn = _draw(adjusted.index_select(0, rows), draws, num_free)
        token_ids.index_copy_(0, rows, drawn)
    chosen = logits.gather(1, token_ids[:, None])[:, 0]
    return token_ids, chosen - logits.logsumexp(-1)


def uniform(seed: int, index: int) -> float:
    """Return the `index`-th random number in [0, 1) of a seed, without drawing those before it."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=index)).random())


def _penalise(logits: Tensor, penalties: Mapping[int, tuple[float, NDArray[np.integer]]]) -> Tensor:
    """Make tokens that a sequence has seen less likely (CTRL, arXiv 1909.05858, section 4.1)."""
    penalised = logits.clone()
    for row, (factor, seen) in penalties.items():
        ids = to_device(np.unique(seen).astype(np.int64), logits.device)
        old = logits[row].index_select(0, ids)
        new = torch.where(old > 0, old / factor, old * factor)
        penalised[row].index_copy_(0, ids, new)
    return penalised


def _forbid(logits: Tensor, allowed_bits: Mapping[int, NDArray[np.uint8]]) -> Tensor:
    """Make tokens impossible. The device unpacks the bits, so that fewer bytes are copied to it."""
    device = logits.device
    bits = to_device(np.stack(list(allowed_bits.values())), device)
    rows = to_device(np.array(list(allowed_bits), np.int64), device)
    byte, place = torch.arange(256, device=device), torch.arange(8, device=device)
    is_set = (byte[:, None] >> place) & 1
    penalty = torch.where(is_set.bool(), 0.0, -torch.inf)  # [256, 8]: of 8 tokens, by their byte
    of_rows = penalty[bits.int()].flatten(1)[:, : logits.shape[1]]
    return logits.index_add(0, rows, of_rows)


def _draw(logits: Tensor, draws: Tensor, num_free: int) -> Tensor:
    """Draw by inverse transform sampling among the tokens that top_p, top_k and min_p all allow."""
    _, number, temperature, *_ = draws.unbind()
    # Shifted first, so that a small temperature cannot overflow.
    shifted = logits - logits.amax(-1, keepdim=True)
    probs = (shifted / temperature.float()[:, None]).softmax(-1)
    drawn: list[Tensor] = []
    if num_free:
        drawn.append(_invert(probs[:num_free], number[:num_free]))
    if num_free < len(logits):
        drawn.append(_draw_likeliest(probs[num_free:], draws[:, num_free:]))
    return torch.cat(drawn)


def _is_limited(params: SamplingParams) -> bool:
    return params.top_p < 1.0 or params.top_k > 0 or params.min_p > 0.0


def _draw_likeliest(probs: Tensor, draws: Tensor, num_best: int = _NUM_BEST) -> Tensor:
    """Draw from the likeliest tokens, sorted by probability.

    top_p allows the smallest set of tokens whose probabilities reach it. min_p allows tokens that
    are at least so likely, as a fraction of the best. Rows whose allowed tokens may go beyond the
    best `num_best` are drawn again from the whole vocabulary.
    """
    vocab_size = probs.shape[-1]
    best, order = probs.topk(min(num_best, vocab_size))
    _, number, _, top_p, top_k, min_p = draws.unbind()
    top_k = torch.where(top_k == 0, float(vocab_size), top_k).long()
    before = best.cumsum(-1, dtype=torch.float64) - best.double()
    is_allowed = (before < top_p[:, None]) & (best >= min_p.float()[:, None] * best[:, :1])
    num_kept = is_allowed.sum(-1).minimum(top_k).clamp(min=1)  # 1 where all numbers are NaN
    is_kept = torch.arange(best.shape[-1], device=probs.device) < num_kept[:, None]
    token_ids = order.gather(1, _invert(best.where(is_kept, 0.0), number)[:, None])[:, 0]
    if best.shape[-1] < vocab_size:
        more = (num_kept == best.shape[-1]).nonzero()[:, 0]  # waits for the device
        if len(more):
            again = _draw_likeliest(probs[more], draws[:, more], vocab_size)
            token_ids.index_copy_(0, more, again)
    return token_ids


def _invert(probs: Tensor, number: Tensor) -> Tensor:
    """Find where [B] the summed `probs` [B, N] pass a fraction `number` [B] of the whole sum."""
    mass = probs.cumsum(-1, dtype=torch.float64)
    whole = mass[:, -1:]
    # Less than the whole sum even when rounded, so that no token of probability 0 is found.
    wanted = (number[:, None] * whole).minimum(torch.nextafter(whole, torch.zeros_like(whole)))
    place = torch.searchsorted(mass, wanted, right=True)[:, 0]
    return place.clamp(max=probs.shape[-1] - 1)  # it is beyond the end where the sum is NaN
