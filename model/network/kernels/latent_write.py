"""What latent attention does to each new token before it attends, as one kernel.

`rotate_and_write` does the work of its twin, `attention.rotate_and_write`: it rotates the query and
the key of a token, normalises its latent, and writes latent and key into the cache. The twin takes
some twenty small operations for this, which cost more than the data that they move.

Letters: T tokens, H heads, C kv_lora_rank, R rotary width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.network import attention
from model.network.kernels.latent_decode import power_of_2
from model.network.norm import RMSNorm
from model.network.rope import Rotation


def rotate_and_write(
    query: Tensor,
    kv: Tensor,
    norm: RMSNorm,
    rotation: Rotation,
    slots: Tensor | None,
    cache: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Do as `attention.rotate_and_write`; without a cache this is the twin itself."""
    if slots is None or cache is None:
        return attention.rotate_and_write(query, kv, norm, rotation, slots, cache)
    angles = (rotation.cos, rotation.sin)
    return latent_write(query, kv, norm.weight, *angles, slots, cache, norm.eps)


@torch.library.custom_op("moonsweep::latent_write", mutates_args=("cache",))
def latent_write(
    query: Tensor,
    kv: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    cache: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Rotate, normalise and write the new tokens of one layer.

    Args:
        query: [T, H, nope + R], whose last R numbers are rotated; T = 0 is legal.
        kv: [T, C + R], latents before their norm, and keys before their rotation.
        weight: [C], of the norm.
        cos: [T, R / 2].
        sin: [T, R / 2].
        slots: [T] int64, where to write.
        cache: [slots, C + R], one layer.
        eps: of the norm.

    Returns:
        The queries and the kv, both as they are after rotation and norm.
    """
    turned, latent_kv = query.new_empty(query.shape), kv.new_empty(kv.shape)
    num, heads, head = query.shape
    if num == 0:
        return turned, latent_kv
    # A launch takes more and other arguments than the function, which pyright cannot know.
    kernel: Any = _rotate_and_write
    half = cos.shape[1]
    nope, latent = head - 2 * half, len(weight)
    kernel[(num,)](
        *(query, kv, weight, cos, sin, slots, cache, turned, latent_kv, eps),
        *(query.stride(0), query.stride(1), kv.stride(0), cache.stride(0)),
        *(heads, nope, latent, half),
        *(power_of_2(heads), power_of_2(nope), power_of_2(latent), power_of_2(half)),
    )
    return turned, latent_kv


@latent_write.register_fake
def _(
    query: Tensor,
    kv: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    cache: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), kv.new_empty(kv.shape)


@triton.jit(do_not_specialize_on_alignment=["slots", "cos", "sin"])
def _rotate_and_write(
    query, kv, weight, cos, sin, slots, cache, turned, latent_kv, eps,
    query_stride, head_stride, kv_stride, slot_stride,
    H: tl.constexpr, NOPE: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr,
    H_TILE: tl.constexpr, NOPE_TILE: tl.constexpr, C_TILE: tl.constexpr, HALF_TILE: tl.constexpr,
):  # fmt: skip
    """Do all for one token; HALF is R / 2, the number of pairs that are rotated."""
    t = tl.program_id(0).to(tl.int64)
    written = cache + tl.load(slots + t) * slot_stride
    kept = latent_kv + t * (C + 2 * HALF)
    number = kv.dtype.element_ty

    c = tl.arange(0, C_TILE)
    latent = tl.load(kv + t * kv_stride + c, mask=c < C, other=0.0).to(tl.float32)
    # Rounded before the weight, as in the published model.
    normed = (latent * tl.rsqrt(tl.sum(latent * latent, 0) / C + eps)).to(number)
    weighted = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32) * normed.to(tl.float32)
    tl.store(kept + c, weighted.to(number), mask=c < C)
    tl.store(written + c, weighted.to(number), mask=c < C)

    pair = tl.arange(0, HALF_TILE)
    is_pair = pair < HALF
    turn_cos = tl.load(cos + t * HALF + pair, mask=is_pair, other=0.0).to(tl.float32)
    turn_sin = tl.load(sin + t * HALF + pair, mask=is_pair, other=0.0).to(tl.float32)
    key = kv + t * kv_stride + C + 2 * pair
    real = tl.load(key, mask=is_pair, other=0.0).to(tl.float32)
    imaginary = tl.load(key + 1, mask=is_pair, other=0.0).to(tl.float32)
    first = (real * turn_cos - imaginary * turn_sin).to(number)
    second = (imaginary * turn_cos + real * turn_sin).to(number)
    tl.store(kept + C + pair, first, mask=is_pair)
    tl.store(kept + C + HALF + pair, second, mask=is_pair)
    tl.store(written + C + pair, first, mask=is_pair)
    tl.store(written + C + HALF + pair, second, mask=is_pair)

    h, n = tl.arange(0, H_TILE)[:, None], tl.arange(0, NOPE_TILE)[None, :]
    read = query + t * query_stride + h * head_stride
    out = turned + (t * H + h) * (NOPE + 2 * HALF)
    is_nope = (h < H) & (n < NOPE)
    tl.store(out + n, tl.load(read + n, mask=is_nope), mask=is_nope)
    is_rope = (h < H) & is_pair[None, :]
    real = tl.load(read + NOPE + 2 * pair[None, :], mask=is_rope, other=0.0).to(tl.float32)
    imaginary = tl.load(read + NOPE + 1 + 2 * pair[None, :], mask=is_rope, other=0.0).to(tl.float32)
    first = real * turn_cos[None, :] - imaginary * turn_sin[None, :]
    second = imaginary * turn_cos[None, :] + real * turn_sin[None, :]
    tl.store(out + NOPE + pair[None, :], first.to(number), mask=is_rope)
    tl.store(out + NOPE + HALF + pair[None, :], second.to(number), mask=is_rope)
