"""`Engine`: many prompts in one process, each answered as soon as it is done.

One step either prefills prompts that were waiting or brings every running sequence one token
further. A sequence owns its cache blocks from admission to its end, so none ever has to give way.

    add --> waiting --(room for it: prefill)--> running --(decode ...)--> finished

Letters: T tokens of the step, B sequences, V vision tokens.
"""

from collections import deque
from collections.abc import Sequence as Seq
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.batch import TokenBatch
from model.cache import BLOCK_SIZE, LatentCache, blocks_for
from model.config import EngineConfig
from model.kimi_vl import KimiVL
from model.prompt import Prompt, PromptError
from model.sampling import sample
from model.sequence import Completion, SamplingParams, Sequence
from model.tokenizer import Tokenizer
from model.weights import load_model

GIB = 1 << 30


class Engine:
    """Generates for many sequences with one model and one cache.

    `add` prompts at any time, call `step` while `has_work`; each step returns what finished in it.
    Not safe to call from several threads.
    """

    def __init__(self, model: KimiVL, tokenizer: Tokenizer, config: EngineConfig) -> None:
        text = model.config.text
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.max_model_len = min(
            config.max_model_len or text.max_position_embeddings, text.max_position_embeddings
        )
        block_bytes = LatentCache.block_bytes(text, model.dtype)
        # More blocks than all sequences at their longest could use would only be wasted.
        num_blocks = min(
            int(config.cache_gib * GIB) // block_bytes,
            config.max_batch_size * blocks_for(self.max_model_len),
        )
        if num_blocks < 1:
            raise ValueError(f"cache_gib={config.cache_gib} holds no block of {block_bytes} bytes")
        self.cache = LatentCache(text, num_blocks, model.dtype, model.device)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @classmethod
    def from_checkpoint(cls, directory: Path, config: EngineConfig) -> Self:
        """Load a checkpoint and reserve the cache.

        Sets the number of torch's threads, which belongs to the process.

        Raises:
            CheckpointError: the checkpoint cannot be used; nothing was reserved.
            ValueError: the device does not exist here, or the cache budget is too small.
        """
        if config.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device={config.device!r}, but torch sees no GPU on this machine")
        torch.set_num_threads(config.num_threads)
        dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
        model = load_model(directory, dtype=dtype, device=torch.device(config.device))
        tokenizer = Tokenizer.from_checkpoint(directory, model.config.text.vocab_size)
        return cls(model, tokenizer, config)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running)

    def add(self, request_id: str, prompt: Prompt, params: SamplingParams) -> None:
        """Queue a prompt.

        Raises:
            PromptError: this prompt cannot be run; nothing else is affected.
        """
        num_prompt = len(prompt.token_ids)
        capacity = min(self.max_model_len, self.cache.num_blocks * BLOCK_SIZE)
        if num_prompt >= capacity:
            raise PromptError(
                "prompt_too_long",
                f"the prompt has {num_prompt} tokens and the engine holds {capacity} with the "
                "answer; use fewer or smaller frames, or a larger max_model_len or cache_gib",
            )
        self._check_tokens(prompt)
        max_tokens = min(params.max_tokens, capacity - num_prompt)
        self._waiting.append(Sequence(request_id, prompt, params, max_tokens))

    def cancel(self, request_id: str) -> None:
        """Forget a request, wherever it is; unknown ones are no error."""
        self._waiting = deque(seq for seq in self._waiting if seq.request_id != request_id)
        for sequence in [seq for seq in self._running if seq.request_id == request_id]:
            self._release(sequence)

    @torch.inference_mode()
    def step(self) -> list[tuple[str, Completion]]:
        """Prefill what fits, or decode one token for each running sequence.

        Returns:
            (request id, completion) of every sequence that finished.
        """
        sequences = self._admit()
        features = None
        if sequences:
            features = self._encode_images(sequences)
            batch = self._prefill_batch(sequences)
        else:
            sequences = list(self._running)
            batch = self._decode_batch(sequences)
        hidden = self.model(batch, self.cache, features)
        return self._take_tokens(sequences, self.model.logits(hidden[batch.last_rows]))

    def _check_tokens(self, prompt: Prompt) -> None:
        token_ids = prompt.token_ids
        vocab_size = self.model.config.text.vocab_size
        if token_ids.min() < 0 or token_ids.max() >= vocab_size:
            raise PromptError("bad_prompt", f"token ids must be in [0, {vocab_size})")
        num_pads = int((token_ids == self.model.config.media_token_id).sum())
        if num_pads != prompt.num_vision_tokens:
            raise PromptError(
                "bad_prompt",
                f"{num_pads} media pads for {prompt.num_vision_tokens} vision tokens",
            )

    def _admit(self) -> list[Sequence]:
        """Move waiting sequences into the running ones while all budgets allow."""
        admitted: list[Sequence] = []
        num_tokens = 0
        while self._waiting and len(self._running) < self.config.max_batch_size:
            sequence = self._waiting[0]
            num_prompt = len(sequence.prompt.token_ids)
            num_blocks = blocks_for(num_prompt + sequence.max_tokens)
            over_budget = num_tokens + num_prompt > self.config.max_prefill_tokens
            if num_blocks > self.cache.num_free_blocks or (admitted and over_budget):
                break
            self._waiting.popleft()
            sequence.blocks = self.cache.take(num_blocks)
            num_tokens += num_prompt
            self._running.append(sequence)
            admitted.append(sequence)
        return admitted

    def _encode_images(self, sequences: Seq[Sequence]) -> Tensor | None:
        """Features [V, D] of all images of the admitted prompts, in bounded vision calls."""
        features: list[Tensor] = []
        for prompt in (sequence.prompt for sequence in sequences):
            sizes = prompt.grid_hw.prod(axis=1).tolist()
            ends = _budgeted(sizes, self.config.max_vision_patches)
            for first, end in pairwise([0, *ends]):
                # A copy, because prompts that crossed processes cannot be written to.
                skipped, num_patches = sum(sizes[:first]), sum(sizes[first:end])
                packed = torch.tensor(prompt.patches[skipped : skipped + num_patches])
                grid_hw = [(int(h), int(w)) for h, w in prompt.grid_hw[first:end]]
                features.append(self.model.encode_images(packed.to(self.model.device), grid_hw))
        return torch.cat(features) if features else None

    def _prefill_batch(self, sequences: Seq[Sequence]) -> TokenBatch:
        token_ids = np.concatenate([sequence.prompt.token_ids for sequence in sequences])
        lens = tuple(len(sequence.prompt.token_ids) for sequence in sequences)
        slots = [_slots(seq, 0, length) for seq, length in zip(sequences, lens, strict=True)]
        return TokenBatch(
            token_ids=self._tensor(token_ids),
            positions=self._tensor(np.concatenate([np.arange(length) for length in lens])),
            query_lens=lens,
            context_lens=lens,
            slots=self._tensor(np.concatenate(slots)),
            block_tables=self._block_tables(sequences),
            media_rows=self._tensor(np.flatnonzero(token_ids == self.model.config.media_token_id)),
        )

    def _decode_batch(self, sequences: Seq[Sequence]) -> TokenBatch:
        lens = np.array([sequence.num_tokens for sequence in sequences])
        slots = [_slots(seq, seq.num_tokens - 1, seq.num_tokens) for seq in sequences]
        return TokenBatch(
            token_ids=self._tensor(np.array([sequence.generated[-1] for sequence in sequences])),
            positions=self._tensor(lens - 1),
            query_lens=(1,) * len(sequences),
            context_lens=tuple(lens.tolist()),
            slots=self._tensor(np.concatenate(slots)),
            block_tables=self._block_tables(sequences),
        )

    def _block_tables(self, sequences: Seq[Sequence]) -> Tensor:
        tables = np.zeros((len(sequences), max(len(seq.blocks) for seq in sequences)), np.int64)
        for table, sequence in zip(tables, sequences, strict=True):
            table[: len(sequence.blocks)] = sequence.blocks
        return self._tensor(tables)

    def _tensor(self, values: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self.model.device)

    def _take_tokens(
        self, sequences: Seq[Sequence], logits: Tensor
    ) -> list[tuple[str, Completion]]:
        """Sample a token for each sequence and let the finished ones go."""
        token_ids, logprobs = sample(
            logits, [seq.params for seq in sequences], [len(seq.generated) for seq in sequences]
        )
        finished: list[tuple[str, Completion]] = []
        for sequence, token_id, logprob in zip(sequences, token_ids, logprobs, strict=True):
            sequence.append(
                token_id,
                logprob,
                self.tokenizer.decode_bytes([token_id]),
                is_stop_token=token_id in self.model.config.stop_token_ids
                or token_id in sequence.params.stop_token_ids,
            )
            if sequence.finish_reason is not None:
                self._release(sequence)
                finished.append((sequence.request_id, sequence.completion()))
        return finished

    def _release(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self.cache.give_back(sequence.blocks)


def _slots(sequence: Sequence, start: int, end: int) -> NDArray[np.int64]:
    """Cache slots of the tokens at positions `start` to `end` of a sequence."""
    position = np.arange(start, end)
    blocks = np.asarray(sequence.blocks, np.int64)
    return blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE


def _budgeted(sizes: Seq[int], budget: int) -> list[int]:
    """Ends of runs of images whose sizes sum to at most `budget`; a larger image runs alone."""
    ends: list[int] = []
    total = 0
    for place, size in enumerate(sizes):
        if place and total + size > budget:
            ends.append(place)
            total = 0
        total += size
    return [*ends, len(sizes)] if sizes else []
