"""Sampling: logits -> the next token of each sequence.

The random number for the n-th token of a sequence depends only on its seed and on n. So neighbours
in the batch, restarts and recomputation do not change what is drawn.

Letters: B sequences.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.engine.sequence import SamplingParams

# Allowed tokens are first looked for among so many of the likeliest: sorting all of them is slow.
_NUM_BEST = 1024


def sample(
    logits: Tensor,
    params: Sequence[SamplingParams],
    num_sampled: Sequence[int],
    seen: Sequence[NDArray[np.integer]] | None = None,
    allowed_bits: Mapping[int, NDArray[np.uint8]] | None = None,
) -> tuple[list[int], list[float]]:
    """Choose one token for each sequence, given logits [B, vocabulary] float32.

    `num_sampled` is how many tokens each sequence has chosen before, `seen` is its prompt and its
    generated ids if any has a repetition penalty; `allowed_bits` are for rows with a constraint.
    Returns token ids, and their log-probabilities in nats under the model: at temperature 1, with
    all tokens allowed, without a penalty.
    """
    adjusted = _penalise(logits, params, seen) if seen is not None else logits
    if allowed_bits:
        adjusted = _forbid(adjusted, allowed_bits)
    token_ids = adjusted.argmax(-1)
    random_rows = [row for row, each in enumerate(params) if each.temperature > 0]
    if random_rows:
        drawn = _draw(
            adjusted[random_rows],
            [params[row] for row in random_rows],
            [uniform(params[row].seed, num_sampled[row]) for row in random_rows],
        )
        token_ids[random_rows] = drawn
    chosen = logits.gather(1, token_ids[:, None])[:, 0]
    logprobs = chosen - logits.logsumexp(-1)
    return token_ids.tolist(), logprobs.tolist()


def uniform(seed: int, index: int) -> float:
    """Return the `index`-th random number in [0, 1) of a seed, without drawing those before it."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=index)).random())


def _penalise(
    logits: Tensor, params: Sequence[SamplingParams], seen: Sequence[NDArray[np.integer]]
) -> Tensor:
    """Make tokens that a sequence has seen less likely (CTRL, arXiv 1909.05858, section 4.1)."""
    penalised = logits.clone()
    for row, each in enumerate(params):
        if each.repetition_penalty != 1.0:
            ids = torch.from_numpy(np.unique(seen[row]).astype(np.int64)).to(logits.device)
            old = logits[row, ids]
            factor = each.repetition_penalty
            penalised[row, ids] = torch.where(old > 0, old / factor, old * factor)
    return penalised


def _forbid(logits: Tensor, allowed_bits: Mapping[int, NDArray[np.uint8]]) -> Tensor:
    """Make tokens impossible. The device unpacks the bits, so that fewer bytes are copied to it."""
    device = logits.device
    bits = torch.from_numpy(np.stack(list(allowed_bits.values()))).to(device)
    byte, place = torch.arange(256, device=device), torch.arange(8, device=device)
    is_set = (byte[:, None] >> place) & 1
    penalty = torch.where(is_set.bool(), 0.0, -torch.inf)  # [256, 8]: of 8 tokens, by their byte
    limited = logits.clone()
    limited[list(allowed_bits)] += penalty[bits.int()].flatten(1)[:, : logits.shape[1]]
    return limited


def _draw(logits: Tensor, params: Sequence[SamplingParams], numbers: Sequence[float]) -> Tensor:
    """Draw by inverse transform sampling among the tokens that top_p, top_k and min_p all allow."""
    device = logits.device
    temperature = torch.tensor([each.temperature for each in params], device=device)
    number = torch.tensor(numbers, device=device, dtype=torch.float64)
    # Shifted first, so that a small temperature cannot overflow.
    shifted = logits - logits.amax(-1, keepdim=True)
    probs = (shifted / temperature[:, None]).softmax(-1)
    token_ids = torch.empty(len(params), dtype=torch.int64, device=device)
    # Which of the two functions draws for a row depends only on the settings of that row.
    limited = [row for row, each in enumerate(params) if _is_limited(each)]
    free = [row for row, each in enumerate(params) if not _is_limited(each)]
    if free:
        token_ids[free] = _invert(probs[free], number[free])
    if limited:
        allowed = [params[row] for row in limited]
        token_ids[limited] = _draw_likeliest(probs[limited], allowed, number[limited])
    return token_ids


def _is_limited(params: SamplingParams) -> bool:
    return params.top_p < 1.0 or params.top_k > 0 or params.min_p > 0.0


def _draw_likeliest(
    probs: Tensor, params: Sequence[SamplingParams], number: Tensor, num_best: int = _NUM_BEST
) -> Tensor:
    """Draw from the likeliest tokens, sorted by probability.

    top_p allows the smallest set of tokens whose probabilities reach it. min_p allows tokens that
    are at least so likely, as a fraction of the best. Rows whose allowed tokens may go beyond the
    best `num_best` are drawn again from the whole vocabulary.
    """
    device, vocab_size = probs.device, probs.shape[-1]
    best, order = probs.topk(min(num_best, vocab_size))
    top_p = torch.tensor([each.top_p for each in params], device=device, dtype=torch.float64)
    top_k = torch.tensor([each.top_k or vocab_size for each in params], device=device)
    min_p = torch.tensor([each.min_p for each in params], device=device)
    before = best.cumsum(-1, dtype=torch.float64) - best.double()
    is_allowed = (before < top_p[:, None]) & (best >= min_p[:, None] * best[:, :1])
    num_kept = is_allowed.sum(-1).minimum(top_k).clamp(min=1)  # 1 where all numbers are NaN
    is_kept = torch.arange(best.shape[-1], device=device) < num_kept[:, None]
    token_ids = order.gather(1, _invert(best.where(is_kept, 0.0), number)[:, None])[:, 0]
    more = (num_kept == best.shape[-1]).nonzero()[:, 0].tolist()
    if more and best.shape[-1] < vocab_size:
        again = [params[row] for row in more]
        token_ids[more] = _draw_likeliest(probs[more], again, number[more], vocab_size)
    return token_ids


def _invert(probs: Tensor, number: Tensor) -> Tensor:
    """Find where [B] the summed `probs` [B, N] pass a fraction `number` [B] of the whole sum."""
    mass = probs.cumsum(-1, dtype=torch.float64)
    whole = mass[:, -1:]
    # Less than the whole sum even when rounded, so that no token of probability 0 is found.
    wanted = (number[:, None] * whole).minimum(torch.nextafter(whole, torch.zeros_like(whole)))
    place = torch.searchsorted(mass, wanted, right=True)[:, 0]
    return place.clamp(max=probs.shape[-1] - 1)  # it is beyond the end where the sum is NaN
