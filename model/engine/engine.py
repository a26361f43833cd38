"""`Engine`: answers many prompts in one process, by continuous batching.

A step computes what the `Scheduler` plans: one token for each sequence that decodes, and chunks of
prompts. The images of a chunk are encoded before the layers of its step.

    add --> scheduler: waiting --> running --> finished

Letters: T tokens of the step, B sequences, V vision tokens.
"""

import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import BLOCK_SIZE
from model.engine.batch_builder import batch_of
from model.engine.blocks import BlockPool, block_keys, blocks_for, image_digests
from model.engine.config import EngineConfig
from model.engine.cuda_graphs import DecodeGraphs
from model.engine.dtype import choose_dtype
from model.engine.grammar import Constraint, Grammars
from model.engine.image_cache import ImageFeatures
from model.engine.sampling import sample
from model.engine.scheduler import Scheduler
from model.engine.sequence import Answer, Completion, SamplingParams, Sequence
from model.engine.utilization import EngineTime
from model.inputs.prompt import Prompt, PromptError
from model.inputs.tokenizer import Tokenizer
from model.malloc import keep_freed_memory
from model.memory import free_bytes
from model.network.batch import TokenBatch
from model.network.kimi_vl import KimiVL
from model.network.kv_cache import LatentCache
from model.network.moe import Shards
from model.network.onednn import prepack
from model.network.weights import load_model

GIB = 1 << 30

# (number of tokens, whether all are decodes) -> a context for the layers of a step; its value says
# whether to compute them. It is entered after everything that can fail in this process alone.
Turn = Callable[[int, bool], AbstractContextManager[bool]]


def own_turn(num_tokens: int, is_decode: bool) -> AbstractContextManager[bool]:
    """Let an engine that is alone compute whenever it has tokens."""
    return nullcontext(num_tokens > 0)


class Engine:
    """Generates text for many sequences with one model and one cache.

    Call `add` at any time, and `step` while `has_work` is true; each step returns the requests that
    finished in it. Only one thread at a time may call an engine. A cache that does not fit raises
    ValueError.
    """

    def __init__(self, model: KimiVL, tokenizer: Tokenizer, config: EngineConfig) -> None:
        text = model.config.text
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.max_model_len = min(
            config.max_model_len or text.max_position_embeddings, text.max_position_embeddings
        )
        self.cache = self._reserve_cache()
        self.pool = BlockPool(self.cache.num_blocks)
        self.scheduler = Scheduler(self.pool, config.max_batch_size, config.max_step_tokens)
        self._time = EngineTime(config.max_batch_size)
        self._graphs = DecodeGraphs(model, self.cache) if config.cuda_graphs else None
        self._num_steps = 0
        self._grammars = Grammars(tokenizer, model.config.stop_token_ids)
        self._features = ImageFeatures(
            model, config.max_vision_patches, int(config.feature_cache_gib * GIB)
        )

    @classmethod
    def from_checkpoint(
        cls, directory: Path, config: EngineConfig, shards: Shards | None = None
    ) -> Self:
        """Load a checkpoint and reserve the cache; `shards` are those of `KimiVL`.

        This sets the number of torch's threads and the settings of malloc, for the whole process.
        It raises CheckpointError, with nothing reserved, for a checkpoint that cannot be used, and
        ValueError if this machine has no such device, or weights or cache do not fit.
        """
        if config.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device={config.device!r}, but torch sees no GPU on this machine")
        if config.cuda_graphs and shards is not None:
            raise ValueError("cuda_graphs needs all experts in one process: ranks wait for others")
        torch.set_num_threads(config.num_threads)
        dtype = choose_dtype(directory, config).dtype
        device = torch.device(config.device)
        model = load_model(directory, dtype=dtype, device=device, shards=shards)
        prepack(model)
        # After prepacking: the memory of the plain weights has gone back to the system.
        keep_freed_memory()
        tokenizer = Tokenizer.from_checkpoint(directory, model.config.text.vocab_size)
        return cls(model, tokenizer, config)

    def _reserve_cache(self) -> LatentCache:
        model, config = self.model, self.config
        num_bytes, origin = int(config.cache_gib * GIB), f"cache_gib={config.cache_gib:g}"
        if config.cache_fraction is not None:
            free = free_bytes(model.device)
            num_bytes = int(config.cache_fraction * free)
            origin = f"cache_fraction={config.cache_fraction:g} of {free / GIB:.2f} GiB free"
        block_bytes = LatentCache.block_bytes(model.config.text, model.dtype)
        # No more blocks than all sequences can use at their greatest length.
        most = config.max_batch_size * blocks_for(self.max_model_len)
        num_blocks = min(num_bytes // block_bytes, most)
        if num_blocks < 1:
            raise ValueError(f"{origin} is too small for one block of {block_bytes} bytes")
        try:
            return LatentCache(model.config.text, num_blocks, model.dtype, model.device)
        except RuntimeError as error:  # of torch, when memory is short
            raise ValueError(f"{origin} cannot be reserved on {model.device}: {error}") from error

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return self.scheduler.has_work

    def add(self, request_id: str, prompt: Prompt, params: SamplingParams) -> None:
        """Queue a prompt, or raise `PromptError` for it alone; its samples share the prefill."""
        num_prompt = len(prompt.token_ids)
        capacity = min(self.max_model_len, self.pool.num_blocks * BLOCK_SIZE)
        if num_prompt >= capacity:
            raise PromptError(
                "prompt_too_long",
                f"the prompt has {num_prompt} tokens, and prompt and answer together have room for "
                f"{capacity}; use fewer or smaller frames, or a larger max_model_len or cache_gib",
            )
        self._check_tokens(prompt)
        constraints = [self._constraint(params) for _ in range(params.n)]
        choice_ids = self._choice_ids(params)
        digests = image_digests(prompt)
        keys = block_keys(prompt, self.model.config.media_token_id, digests)
        max_tokens = min(params.max_tokens, capacity - num_prompt)
        answer = Answer(params.n)
        for number, constraint in enumerate(constraints):
            sequence = Sequence(
                request_id,
                prompt,
                params.of_sample(number),
                max_tokens,
                block_keys=keys,
                image_digests=digests,
                constraint=constraint,
                choice_ids=choice_ids,
                number=number,
                answer=answer,
            )
            self.scheduler.add(sequence)

    def _constraint(self, params: SamplingParams) -> Constraint | None:
        if params.schema is None:
            return None
        return self._grammars.start(params.schema, thinking=params.thinking)

    def _choice_ids(self, params: SamplingParams) -> list[int]:
        """Return the first tokens of the choices; raise PromptError if two of them are equal."""
        token_ids = [self.tokenizer.encode(choice)[0] for choice in params.choices]
        if len(set(token_ids)) < len(token_ids):
            choices = ", ".join(repr(choice) for choice in params.choices)
            raise PromptError("bad_prompt", f"two of the choices {choices} begin with one token")
        return token_ids

    def cancel(self, request_id: str) -> None:
        """Forget a request, waiting or running; an unknown one is no error."""
        self.scheduler.cancel(request_id)

    def stats(self) -> dict[str, float]:
        """Return numbers so far, for reports; see `EngineTime` for `step_s` and `needed_s`."""
        return {
            "steps": self._num_steps,
            "preemptions": self.scheduler.num_preemptions,
            "step_s": self._time.step_s,
            "needed_s": self._time.needed_s,
        }

    def expert_load(self) -> dict[int, NDArray[np.int64]]:
        """Return the tokens that each routed expert has computed here: layer -> [E].

        Repeated tokens and the padding of CUDA graphs count too. This waits for the device.
        """
        layers = self.model.experts
        if not layers:
            return {}
        rows = torch.stack([moe.rows_computed for moe in layers.values()]).cpu().numpy()
        load = np.zeros((len(layers), self.model.config.text.n_routed_experts), np.int64)
        for number, moe in enumerate(layers.values()):
            load[number, list(moe.local_experts)] = rows[number]
        return dict(zip(layers, load, strict=True))

    def close(self) -> None:
        """Free the memory of the cache; no step may follow."""
        self.cache.layers = ()

    @torch.inference_mode()
    def step(
        self, turn: Turn = own_turn, max_new_tokens: float = math.inf
    ) -> list[tuple[str, Completion | PromptError]]:
        """Compute what the scheduler plans, and sample the next token of each complete sequence.

        `turn` makes the layers run together with those of other ranks; a rank without work steps
        too, with no tokens. `max_new_tokens` is that of `Scheduler.plan`. Returns, for each request
        that finished, its id, and its completion or why it alone failed.
        """
        began_s = time.monotonic()
        chunks = self.scheduler.plan(max_new_tokens)
        features = self._features.for_chunks(chunks)
        batch = batch_of(chunks, self.model.config.media_token_id, self.model.device)
        only_decodes = batch.num_decodes == len(chunks)
        planned_s = time.monotonic()
        with turn(len(batch.token_ids), only_decodes) as runs:
            if not runs:
                return []
            waited_s = time.monotonic() - planned_s
            hidden = self._hidden(batch, features)
        self._num_steps += 1
        for chunk in chunks:
            chunk.sequence.num_cached = chunk.end
        rows = [row for row, chunk in zip(batch.last_rows, chunks, strict=True) if chunk.is_last]
        sequences = [chunk.sequence for chunk in chunks if chunk.is_last]
        is_full = self.scheduler.num_waiting > 0
        finished = self._take_tokens(sequences, self.model.logits(hidden[rows])) if rows else []
        own_s = time.monotonic() - began_s - waited_s
        self._time.note(len(batch.token_ids), own_s, only_decodes=only_decodes, is_full=is_full)
        return finished

    def _hidden(self, batch: TokenBatch, features: Tensor | None) -> Tensor:
        """Compute the hidden states [T, D] of the tokens of the step."""
        only_decodes = len(batch.query_lens) == batch.num_decodes and features is None
        if self._graphs is not None and only_decodes:
            return self._graphs(batch)
        return self.model(batch, self.cache, features)

    def _check_tokens(self, prompt: Prompt) -> None:
        token_ids = prompt.token_ids
        vocab_size = self.model.config.text.vocab_size
        if token_ids.min() < 0 or token_ids.max() >= vocab_size:
            raise PromptError("bad_prompt", f"token ids must be in [0, {vocab_size})")
        num_pads = int((token_ids == self.model.config.media_token_id).sum())
        wanted = prompt.num_vision_tokens
        if num_pads != wanted:
            raise PromptError("bad_prompt", f"{num_pads} media pads for {wanted} vision tokens")
        side_px, wanted_px = prompt.patches.shape[-1], self.model.config.vision.patch_size
        if len(prompt.patches) and side_px != wanted_px:
            reason = f"patches must be {wanted_px} pixels wide, got {side_px}"
            raise PromptError("bad_prompt", reason)

    def _take_tokens(
        self, sequences: Seq[Sequence], logits: Tensor
    ) -> list[tuple[str, Completion | PromptError]]:
        """Sample a token for each sequence; return the requests that are finished."""
        params = [sequence.params for sequence in sequences]
        seen = None
        if any(each.repetition_penalty != 1.0 for each in params):
            seen = [sequence.token_ids(0, sequence.num_tokens) for sequence in sequences]
        num_sampled = [len(sequence.generated) for sequence in sequences]
        allowed_bits = {
            row: sequence.constraint.allowed_bits()
            for row, sequence in enumerate(sequences)
            if sequence.constraint is not None
        }
        token_ids, logprobs = sample(logits, params, num_sampled, seen, allowed_bits)
        for row, sequence in enumerate(sequences):
            if sequence.choice_ids and not sequence.generated:
                logprobs_of_choices = logits[row].log_softmax(-1)[sequence.choice_ids]
                sequence.choice_logprobs = tuple(logprobs_of_choices.tolist())
        finished: list[tuple[str, Completion | PromptError]] = []
        for sequence, token_id, logprob in zip(sequences, token_ids, logprobs, strict=True):
            if not math.isfinite(logprob) and sequence.block_keys:
                # NaN or Inf may come from a shared block. Without keys it fails next time.
                self.scheduler.retry_unshared(sequence)
                continue
            outcome = self._take_token(sequence, token_id, logprob)
            if outcome is not None:
                self.scheduler.finish(sequence)
                answer = sequence.answer.take(sequence.number, outcome)
                if answer is not None:
                    finished.append((sequence.request_id, answer))
        return finished

    def _take_token(
        self, sequence: Sequence, token_id: int, logprob: float
    ) -> Completion | PromptError | None:
        """Append the next token of a sequence; return its outcome if that was the last."""
        if sequence.constraint is not None and sequence.constraint.error is not None:
            return PromptError(
                "schema_failed",
                f"the schema's grammar gave up after {len(sequence.generated)} tokens: "
                f"{sequence.constraint.error}",
            )
        if not math.isfinite(logprob):
            return PromptError(
                "engine_error",
                f"the network's output is not a number after {sequence.num_tokens} tokens; are "
                "the weights damaged, or does float16 overflow?",
            )
        stop_token_ids = (*self.model.config.stop_token_ids, *sequence.params.stop_token_ids)
        text = self.tokenizer.decode_bytes([token_id])
        sequence.append(token_id, logprob, text, is_stop_token=token_id in stop_token_ids)
        return None if sequence.finish_reason is None else sequence.completion()
