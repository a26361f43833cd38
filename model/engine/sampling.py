"""Logits -> the next token of each sequence.

The random number of a sequence's n-th token depends on its seed and on n alone, so neighbours in
the batch, restarts and recomputation do not change what is drawn.

Letters: B sequences.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.engine.sequence import SamplingParams

_NUM_BEST = 1024  # tokens among which those that may be drawn are looked for before all are sorted


def sample(
    logits: Tensor,
    params: Sequence[SamplingParams],
    num_sampled: Sequence[int],
    seen: Sequence[NDArray[np.integer]] | None = None,
    allowed_bits: Mapping[int, NDArray[np.uint8]] | None = None,
) -> tuple[list[int], list[float]]:
    """Choose one token for each sequence.

    Args:
        logits: [B, vocabulary] float32.
        params: how each sequence chooses.
        num_sampled: how many tokens each sequence has chosen before.
        seen: prompt and generated ids of each sequence, for those with a repetition penalty.
        allowed_bits: a bit for each token that may come, lowest first, for rows that are not free.

    Returns:
        Token ids, and their log-probabilities in nats under the model (temperature 1, no penalty,
        all tokens allowed).
    """
    liked = _penalise(logits, params, seen) if seen is not None else logits
    if allowed_bits:
        liked = _forbid(liked, allowed_bits)
    token_ids = liked.argmax(-1)
    random_rows = [row for row, each in enumerate(params) if each.temperature > 0]
    if random_rows:
        drawn = _draw(
            liked[random_rows],
            [params[row] for row in random_rows],
            [uniform(params[row].seed, num_sampled[row]) for row in random_rows],
        )
        token_ids[random_rows] = drawn
    chosen = logits.gather(1, token_ids[:, None])[:, 0]
    logprobs = chosen - logits.logsumexp(-1)
    return token_ids.tolist(), logprobs.tolist()


def uniform(seed: int, index: int) -> float:
    """The `index`-th number in [0, 1) of a seed, without the ones before it."""
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
    """Make tokens impossible; the bits are spread on the device, for fewer bytes on the way."""
    device = logits.device
    bits = torch.from_numpy(np.stack(list(allowed_bits.values()))).to(device)
    byte, place = torch.arange(256, device=device), torch.arange(8, device=device)
    is_set = (byte[:, None] >> place) & 1
    penalty = torch.where(is_set.bool(), 0.0, -torch.inf)  # of the 8 tokens of each byte
    limited = logits.clone()
    limited[list(allowed_bits)] += penalty[bits.int()].flatten(1)[:, : logits.shape[1]]
    return limited


def _draw(logits: Tensor, params: Sequence[SamplingParams], numbers: Sequence[float]) -> Tensor:
    """Inverse transform sampling over the tokens that top_p, top_k and min_p all allow."""
    device = logits.device
    temperature = torch.tensor([each.temperature for each in params], device=device)
    number = torch.tensor(numbers, device=device, dtype=torch.float64)
    # Shifted first, so that a small temperature cannot overflow.
    shifted = logits - logits.amax(-1, keepdim=True)
    probs = (shifted / temperature[:, None]).softmax(-1)
    token_ids = torch.empty(len(params), dtype=torch.int64, device=device)
    # A row's way depends on its own settings alone, and so do the tokens.
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
    """Draw from the likeliest tokens, most likely first: all of them lie among the best, or again.

    top_p allows the smallest set whose mass reaches it, min_p what is at least that fraction as
    likely as the best.
    """
    device, vocab_size = probs.device, probs.shape[-1]
    best, order = probs.topk(min(num_best, vocab_size))
    top_p = torch.tensor([each.top_p for each in params], device=device, dtype=torch.float64)
    top_k = torch.tensor([each.top_k or vocab_size for each in params], device=device)
    min_p = torch.tensor([each.min_p for each in params], device=device)
    before = best.cumsum(-1, dtype=torch.float64) - best.double()
    is_allowed = (before < top_p[:, None]) & (best >= min_p[:, None] * best[:, :1])
    num_kept = is_allowed.sum(-1).minimum(top_k).clamp(min=1)  # 1 where all is not a number
    is_kept = torch.arange(best.shape[-1], device=device) < num_kept[:, None]
    token_ids = order.gather(1, _invert(best.where(is_kept, 0.0), number)[:, None])[:, 0]
    more = (num_kept == best.shape[-1]).nonzero()[:, 0].tolist()
    if more and best.shape[-1] < vocab_size:
        again = [params[row] for row in more]
        token_ids[more] = _draw_likeliest(probs[more], again, number[more], vocab_size)
    return token_ids


def _invert(probs: Tensor, number: Tensor) -> Tensor:
    """The place [B] where the summed `probs` [B, N] pass a fraction `number` [B] of their sum."""
    mass = probs.cumsum(-1, dtype=torch.float64)
    whole = mass[:, -1:]
    # Less than the whole sum even when rounded, so that what is found is not impossible.
    wanted = (number[:, None] * whole).minimum(torch.nextafter(whole, torch.zeros_like(whole)))
    place = torch.searchsorted(mass, wanted, right=True)[:, 0]
    return place.clamp(max=probs.shape[-1] - 1)  # where the sum is not a number
