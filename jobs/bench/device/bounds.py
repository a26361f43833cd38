"""Compute the work of which a card's limit follows: operations of prompts, bytes of decodes.

Prompts and images are bound by products, so their limit is operations by the rate of a large
square product. A decode is bound by memory, so its limit is the bytes that its step must read by
the rate of a copy (the roofline of Williams et al., doi 10.1145/1498765.1498785, without its bend).
Norms, router and activations are left out: they are under 0.1 % of either.
"""

from collections.abc import Sequence

from jobs.planning.network import Network
from jobs.planning.products import vision_products
from model.network.vision import Grid


def prefill_flops(network: Network, num_prompts: int, prompt_len: int) -> float:
    """Return the operations of prompts: 2 for each weight of a token, and causal attention.

    A token multiplies with all dense weights and with its K experts; each prompt's last token also
    with `lm_head`. A token attends to half of its prompt, L * (L + 1) / 2 pairs a head, of
    2 * (query and key width + value width) operations each.
    """
    num_tokens = num_prompts * prompt_len
    return (
        network.dense(num_tokens).flops
        + network.num_moe_layers * network.experts(num_tokens, 1).flops
        + network.head(num_prompts).flops
        + network.attention(num_tokens, (prompt_len + 1) / 2, is_decode=False).flops
    )


def vision_flops(network: Network, grids: Sequence[Grid]) -> float:
    """Return the operations of MoonViT and projector: projections, and attention in each image."""
    config = network.config
    return sum(
        product.flops
        for grid in grids
        for product in vision_products(config.vision, config.text.hidden_size, grid, 1)
    )


def decode_bytes(
    network: Network, num_sequences: int, context_len: float, experts_per_layer: float
) -> float:
    """Return the bytes that a decode step must read: weights once, and every sequence's context.

    The weights are all dense ones, the experts that some token chose, and `lm_head`. A token of a
    context has 2 bytes for each of the 512 + 64 numbers of its latent in each layer: 31,104 in 27.
    """
    experts = network.num_moe_layers * experts_per_layer * network.expert_bytes
    return (
        network.dense(num_sequences).num_bytes
        + experts
        + network.head(num_sequences).num_bytes
        + network.attention(num_sequences, context_len, is_decode=True).num_bytes
    )


def chosen_experts(network: Network, num_tokens: int) -> float:
    """Return how many experts of a layer some of T tokens choose, if all choices are equal."""
    if not network.num_moe_layers:
        return 0.0
    return network.experts(num_tokens, 1).num_bytes / network.expert_bytes
