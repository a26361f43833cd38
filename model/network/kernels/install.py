"""Which kernels take the place of plain torch, and on which GPUs."""

import torch
from torch import Tensor, nn

from model.network.attention import LatentAttention
from model.network.kimi_vl import KimiVL
from model.network.kv_pieces import PagedContexts
from model.network.moe import Experts, MoE

_MIN_CAPABILITY = (8, 0)  # the first GPUs that multiply bfloat16
# New tokens behind a cached past up to which each attends to the cache alone. Each of them reads
# the past anew, mostly from the L2 cache; more of them would rather share what they read.
_MAX_PAGED_LEN = 32


def are_usable(model: KimiVL) -> bool:
    """Say whether the kernels run on the device of this model, in its dtype."""
    if model.device.type != "cuda" or model.dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(model.device) >= _MIN_CAPABILITY


def install(model: KimiVL) -> None:
    """Let kernels do, in place, what they can do of the work of this model."""
    # Triton comes with torch for CUDA only.
    from model.network.kernels.grouped_experts import GroupedExperts
    from model.network.kernels.latent_write import rotate_and_write

    for module in list(model.modules()):
        if isinstance(module, LatentAttention):
            module.decode = _decode
            module.rotate_and_write = rotate_and_write
        elif isinstance(module, MoE) and isinstance(module.experts, Experts):
            setattr(module, "experts", GroupedExperts(module.experts))  # noqa: B010  another class
            # The router computes in float32: this saves a conversion in each step.
            weight = module.gate.weight.float()
            module.gate.weight = nn.Parameter(weight, requires_grad=False)
    if model.config.text.kv_lora_rank is not None:
        model.max_paged_len = _MAX_PAGED_LEN
        model.never_waits = True


def _decode(
    query: Tensor, cache: Tensor, contexts: PagedContexts, latent_width: int, scale: float
) -> Tensor:
    """Do as `attention.decode_in_pieces`."""
    from model.network.kernels import latent_decode

    tables, rows, lens = contexts.tables, contexts.rows, contexts.lens
    return latent_decode.decode(query, cache, tables, rows, lens, scale, latent_width)
