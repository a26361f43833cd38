"""Generate with the cache and keep every logit, for comparison with other code."""

import torch

from model.config import BLOCK_SIZE
from model.engine.blocks import BlockPool, blocks_for
from model.network.batch import TokenBatch
from model.network.kimi_vl import KimiVL
from model.network.kv_cache import LatentCache
from model.network.kv_pieces import PagedContexts


@torch.no_grad()
def greedy_with_cache(
    model: KimiVL, prompt: list[int], num_tokens: int
) -> tuple[torch.Tensor, list[int]]:
    """Prefill, then decode greedily; return all logits but the last, and the new tokens."""
    num_blocks = blocks_for(len(prompt) + num_tokens)
    cache = LatentCache(model.config.text, num_blocks, model.dtype, model.device)
    blocks = BlockPool(num_blocks).allocate(num_blocks)
    hidden = model(cached_step(prompt, 0, blocks), cache)
    logits = [model.logits(hidden)]
    tokens = [int(logits[-1][-1].argmax())]
    for place in range(len(prompt), len(prompt) + num_tokens - 1):
        hidden = model(cached_step(tokens[-1:], place, blocks), cache)
        logits.append(model.logits(hidden))
        tokens.append(int(logits[-1][-1].argmax()))
    return torch.cat(logits), tokens


def cached_step(token_ids: list[int], start: int, blocks: list[int]) -> TokenBatch:
    """Make a batch of new tokens of one sequence, from position `start` on."""
    places = range(start, start + len(token_ids))
    is_decode = len(token_ids) == 1 and start > 0
    slots = [blocks[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE for place in places]
    return TokenBatch(
        token_ids=torch.tensor(token_ids),
        positions=torch.tensor(places),
        query_lens=(len(token_ids),),
        context_lens=(places.stop,),
        num_paged=int(is_decode),
        slots=torch.tensor(slots),
        contexts=PagedContexts(
            tables=torch.tensor([blocks], dtype=torch.int32),
            rows=torch.zeros(int(is_decode), dtype=torch.int32),
            lens=torch.tensor([places.stop][: int(is_decode)], dtype=torch.int32),
        ),
        table_rows=(0,),
    )
