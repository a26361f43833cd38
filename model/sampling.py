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

from model.sequence import SamplingParams


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
    place = torch.arange(8, dtype=torch.uint8, device=device)
    is_allowed = ((bits[:, :, None] >> place) & 1).bool().flatten(1)[:, : logits.shape[1]]
    rows = list(allowed_bits)
    limited = logits.clone()
    limited[rows] = limited[rows].masked_fill(~is_allowed, -torch.inf)
    return limited


def _draw(logits: Tensor, params: Sequence[SamplingParams], numbers: Sequence[float]) -> Tensor:
    """Inverse transform sampling over the tokens that top_p, top_k and min_p all allow.

    top_p allows the smallest set whose mass reaches it, min_p what is at least that fraction as
    likely as the best.
    """
    device = logits.device
    temperature = torch.tensor([each.temperature for each in params], device=device)
    top_p = torch.tensor([each.top_p for each in params], device=device, dtype=torch.float64)
    number = torch.tensor(numbers, device=device, dtype=torch.float64)
    # Shifted first, so that a small temperature cannot overflow.
    shifted = logits - logits.amax(-1, keepdim=True)
    probs, order = (shifted / temperature[:, None]).softmax(-1).sort(-1, descending=True)
    mass = probs.double().cumsum(-1)
    before = mass - probs.double()
    top_k = torch.tensor([each.top_k or logits.shape[-1] for each in params], device=device)
    min_p = torch.tensor([each.min_p for each in params], device=device)
    is_allowed = (before < top_p[:, None]) & (probs >= min_p[:, None] * probs[:, :1]) & (probs > 0)
    num_kept = is_allowed.sum(-1, keepdim=True).minimum(top_k[:, None])
    num_kept = num_kept.clamp(min=1)  # the best is always allowed, but where all is not a number
    kept_mass = mass.gather(1, num_kept - 1)
    place = torch.searchsorted(mass, number[:, None] * kept_mass, right=True)
    return order.gather(1, place.minimum(num_kept - 1))[:, 0]
