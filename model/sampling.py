"""Logits -> the next token of each sequence.

The random number of a sequence's n-th token depends on its seed and on n alone, so neighbours in
the batch, restarts and recomputation do not change what is drawn.

Letters: B sequences.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.sequence import SamplingParams


def sample(
    logits: Tensor, params: Sequence[SamplingParams], num_sampled: Sequence[int]
) -> tuple[list[int], list[float]]:
    """Choose one token for each sequence.

    Args:
        logits: [B, vocabulary] float32.
        params: how each sequence chooses.
        num_sampled: how many tokens each sequence has chosen before.

    Returns:
        Token ids, and their log-probabilities in nats under the model (temperature 1).
    """
    token_ids = logits.argmax(-1)
    random_rows = [row for row, each in enumerate(params) if each.temperature > 0]
    if random_rows:
        drawn = _draw(
            logits[random_rows],
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


def _draw(logits: Tensor, params: Sequence[SamplingParams], numbers: Sequence[float]) -> Tensor:
    """Inverse transform sampling over the smallest set of tokens whose mass reaches top_p."""
    device = logits.device
    temperature = torch.tensor([each.temperature for each in params], device=device)
    top_p = torch.tensor([each.top_p for each in params], device=device, dtype=torch.float64)
    number = torch.tensor(numbers, device=device, dtype=torch.float64)
    # Shifted first, so that a small temperature cannot overflow.
    shifted = logits - logits.amax(-1, keepdim=True)
    probs, order = (shifted / temperature[:, None]).softmax(-1).sort(-1, descending=True)
    mass = probs.double().cumsum(-1)
    before = mass - probs.double()
    num_kept = (before < top_p[:, None]).sum(-1, keepdim=True)  # at least 1: 0 < top_p
    kept_mass = mass.gather(1, num_kept - 1)
    place = torch.searchsorted(mass, number[:, None] * kept_mass, right=True)
    return order.gather(1, place.minimum(num_kept - 1))[:, 0]
