"""`Engine`: answers many prompts in one process, by continuous batching.

A step computes what the `Scheduler` plans: one token for each sequence that decodes, and chunks of
prompts. The images of a chunk are encoded before the layers of its step.

    add --> scheduler: waiting --> running --> finished

On a GPU the engine runs one step ahead: while the device computes a step, the host takes the tokens
of the step before and plans the next one.

    host      plan 1 | begin 1 | plan 2 | begin 2, take 1 | plan 3 | begin 3, take 2 | ...
    device             1-----------------|2----------------|3---------

Letters: T tokens of the step, B sequences, V vision tokens.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import BLOCK_SIZE
from model.engine.batch_builder import BatchBuilder, DeviceStep
from model.engine.blocks import BlockPool, block_keys, blocks_for
from model.engine.config import EngineConfig
from model.engine.cuda_graphs import DecodeGraphs
from model.engine.dtype import choose_dtype
from model.engine.fit.capacity import GIB
from model.engine.fit.device_fit import fit_device
from model.engine.fit.worst_case import take_worst_step
from model.engine.grammar import Constraint, Grammars
from model.engine.image_cache import ImageFeatures
from model.engine.sampled_step import SampledStep
from model.engine.scheduler import Chunk, Scheduler
from model.engine.sequence import Answer, Completion, SamplingParams, Sequence
from model.engine.step_parts import Finished, StepParts
from model.engine.utilization import EngineTime
from model.inputs.prompt import Prompt, PromptError
from model.inputs.tokenizer import Tokenizer
from model.malloc import keep_freed_memory, use_expandable_segments
from model.network.kernels import install as kernels
from model.network.kimi_vl import KimiVL
from model.network.moe import Shards
from model.network.onednn import prepack
from model.network.weights import load_model

logger = logging.getLogger(__name__)

_GATHER_STEPS = 16  # of pure decodes between prompts, where graphs replay them


def make_fast(model: KimiVL) -> None:
    """Replace, in place, what the device of this model computes faster in another way."""
    prepack(model)
    if kernels.are_usable(model):
        kernels.install(model)
    # After prepacking: the memory of the plain weights has gone back to the system.
    keep_freed_memory()


@dataclass(frozen=True)
class StepTurn:
    """What the ranks that step together have agreed on."""

    num_tokens: int  # of the busiest rank; 0: no rank has work
    may_replay: bool  # whether all only decode, and nothing in the layers waits for the host


# (number of tokens, whether all are decodes) -> a context for the layers of a step. It is entered
# after everything that can fail in this process alone.
Turn = Callable[[int, bool], AbstractContextManager[StepTurn]]


def own_turn(num_tokens: int, is_decode: bool) -> AbstractContextManager[StepTurn]:
    """Let an engine that is alone compute whenever it has tokens."""
    return nullcontext(StepTurn(num_tokens, may_replay=is_decode))


class Engine:
    """Generates text for many sequences with one model and one cache.

    Call `add` at any time, and `step` while `has_work` is true; each step returns the requests that
    finished in it. Only one thread at a time may call an engine.

    What the configuration leaves open is chosen for the device, see `capacity`. For this a GPU
    computes a step as large as any, in a `turn` of its own. A cache that does not fit raises
    ValueError.
    """

    def __init__(
        self, model: KimiVL, tokenizer: Tokenizer, config: EngineConfig, turn: Turn = own_turn
    ) -> None:
        text = model.config.text
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.max_model_len = min(
            config.max_model_len or text.max_position_embeddings, text.max_position_embeddings
        )
        worst_step = partial(self._worst_step, turn=turn)
        self.capacity, self.cache = fit_device(model, config, self.max_model_len, worst_step)
        self.pool = BlockPool(self.cache.num_blocks)
        batch_size = self.capacity.batch_size
        self._graphs = None
        if config.cuda_graphs is not False and model.never_waits:
            self._graphs = DecodeGraphs(model, self.cache, batch_size)
        gather_steps = 0 if self._graphs is None else _GATHER_STEPS
        self.scheduler = Scheduler(self.pool, batch_size, config.max_step_tokens, gather_steps)
        self._parts = StepParts(self.scheduler.oldest_first)
        self._builder = BatchBuilder(
            model.config.media_token_id,
            batch_size,
            blocks_for(min(self.max_model_len, self.pool.num_blocks * BLOCK_SIZE)),
            model.device,
            model.max_paged_len,
        )
        is_on_gpu = model.device.type == "cuda"
        self._runs_ahead = is_on_gpu if config.runs_ahead is None else config.runs_ahead
        self._ahead: SampledStep | None = None  # the last step, if its tokens are still pending
        self._time = EngineTime(batch_size)
        self._num_steps = 0
        self.loading: Mapping[str, float] = {}  # what `from_checkpoint` took, for `stats`
        self._grammars = Grammars(tokenizer, model.config.stop_token_ids)
        self._features = ImageFeatures(
            model, config.max_vision_patches, int(config.feature_cache_gib * GIB)
        )

    @classmethod
    def from_checkpoint(
        cls,
        directory: Path,
        config: EngineConfig,
        shards: Shards | None = None,
        turn: Turn = own_turn,
    ) -> Self:
        """Load a checkpoint and reserve the cache; `shards` are those of `KimiVL`.

        This sets the number of torch's threads, the settings of malloc, and those of torch's memory
        on GPUs unless the environment has them, for the whole process.
        It raises CheckpointError, with nothing reserved, for a checkpoint that cannot be used, and
        ValueError if this machine has no such device, or weights or cache do not fit.
        """
        if config.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device={config.device!r}, but torch sees no GPU on this machine")
        use_expandable_segments(config.device)
        torch.set_num_threads(config.num_threads)
        dtype = choose_dtype(directory, config).dtype
        device = torch.device(config.device)
        began_s = time.monotonic()
        model = load_model(directory, dtype=dtype, device=device, shards=shards)
        load_s = time.monotonic() - began_s
        num_gb = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
        logger.info("%.2f GB of weights in %.1f s, %.2f GB/s", num_gb, load_s, num_gb / load_s)
        make_fast(model)
        tokenizer = Tokenizer.from_checkpoint(directory, model.config.text.vocab_size)
        engine = cls(model, tokenizer, config, turn)
        engine.loading = {"load_s": load_s, "load_gb_per_s": num_gb / load_s}
        return engine

    def _worst_step(self, batch_size: int, turn: Turn) -> int:
        """Compute a step as large as any by an engine of its own; see `take_worst_step`."""

        def compute(trial: Engine) -> None:
            trial.compute(trial.scheduler.plan(), turn)  # `step` would divide what does not fit

        make = partial(Engine, self.model, self.tokenizer)
        return take_worst_step(make, compute, self.model, self.config, batch_size)

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return self.scheduler.has_work

    def add(
        self, request_id: str, prompt: Prompt, params: SamplingParams, *, own_step: bool = False
    ) -> None:
        """Queue a prompt, or raise `PromptError` for it alone; its samples share the prefill.

        With `own_step` nothing else is in the steps that compute it, and it begins before others.
        """
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
        keys = block_keys(prompt, self.model.config.media_token_id)
        max_tokens = min(params.max_tokens, capacity - num_prompt)
        answer = Answer(params.n)
        for number, constraint in enumerate(constraints):
            sequence = Sequence(
                request_id,
                prompt,
                params.of_sample(number),
                max_tokens,
                block_keys=keys,
                constraint=constraint,
                choice_ids=choice_ids,
                number=number,
                own_step=own_step,
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
        """Return numbers so far, for reports; see `EngineTime` for `step_s` and `needed_s`.

        `load_s` is how long the weights took to read, `load_gb_per_s` how many of their 10^9 bytes
        came each second.
        """
        return {
            **self.loading,
            "steps": self._num_steps,
            "preemptions": self.scheduler.num_preemptions,
            "step_s": self._time.step_s,
            "needed_s": self._time.needed_s,
            "out_of_memory": self._parts.num_failures,
            **self.capacity.numbers(),
        }

    def expert_load(self) -> dict[int, NDArray[np.int64]]:
        """Return the tokens that each routed expert has computed here: layer -> [E].

        Repeated tokens and the padding of CUDA graphs count too. This waits for the device.
        """
        layers = self.model.experts
        if not layers:
            return {}
        rows = torch.stack([moe.experts.rows_computed for moe in layers.values()]).cpu().numpy()
        load = np.zeros((len(layers), self.model.config.text.n_routed_experts), np.int64)
        for number, moe in enumerate(layers.values()):
            load[number, list(moe.local_experts)] = rows[number]
        return dict(zip(layers, load, strict=True))

    def close(self) -> None:
        """Free the memory of the cache; no step may follow."""
        self.cache.layers = ()

    @torch.inference_mode()
    def step(self, turn: Turn = own_turn, max_new_tokens: float = math.inf) -> list[Finished]:
        """Compute what the scheduler plans, and sample the next token of each complete sequence.

        `turn` makes the layers run together with those of other ranks; a rank without work steps
        too, with no tokens. `max_new_tokens` is that of `Scheduler.plan`. Returns, for each request
        that finished, its id, and its completion or why it alone failed. A step that the memory of
        the device does not suffice for is divided, see `StepParts`; then there are several turns.
        """
        # The next token of some sequences depends on the last one: a grammar, a penalty.
        finished = self._take_pending() if self._ahead and self._ahead.needs_tokens else []
        chunks = self.scheduler.plan(max_new_tokens)
        return finished + self._parts.compute(
            chunks, partial(self.compute, turn=turn), self._give_up
        )

    @torch.inference_mode()
    def compute(self, chunks: Seq[Chunk], turn: Turn = own_turn) -> list[Finished]:
        """Compute planned chunks; return the requests that finished, in the step before too.

        Raises torch.OutOfMemoryError: they can be computed again, as if this had not been called.
        """
        try:
            return self._computed(chunks, turn)
        except torch.OutOfMemoryError:
            for chunk in chunks:
                chunk.sequence.num_blocks_on_device = 0  # how many came there is not known
            raise

    def _computed(self, chunks: Seq[Chunk], turn: Turn) -> list[Finished]:
        began_s = time.monotonic()
        on_host, chunks = self._builder.on_host(chunks)
        features = self._features.for_chunks(chunks)
        # A token of an image may look like a decode, but has features, which graphs do not take.
        only_decodes = features is None and all(chunk.is_decode for chunk in chunks)
        planned_s = time.monotonic()
        with turn(on_host.num_tokens, only_decodes) as agreed:
            if not agreed.num_tokens:
                return self._take_pending()
            waited_s = time.monotonic() - planned_s
            replays = self._graphs is not None and agreed.may_replay
            size = self.graph_size(agreed.num_tokens) if replays else None
            known = None if self._ahead is None else self._ahead.token_ids
            step = self._builder.upload(on_host, known, size)
            hidden = self._hidden(step, features, replays=replays)
        before = self._ahead
        self._ahead = self._sampled(step, chunks, hidden, on_host.draws.num_free)
        self._num_steps += 1  # from here on nothing takes memory
        finished = [] if before is None else self._take(before)
        if not self._runs_ahead:
            finished += self._take_pending()
        own_s = time.monotonic() - began_s - waited_s
        is_full = self.scheduler.num_waiting > 0
        self._time.note(on_host.num_tokens, own_s, only_decodes=only_decodes, is_full=is_full)
        return finished

    @property
    def replays_graphs(self) -> bool:
        """Whether steps that only decode are replayed as CUDA graphs."""
        return self._graphs is not None

    def graph_size(self, num_sequences: int) -> int:
        """Return to how many sequences a step of so many decodes is filled up."""
        return num_sequences if self._graphs is None else self._graphs.size_for(num_sequences)

    def _hidden(self, step: DeviceStep, features: Tensor | None, *, replays: bool) -> Tensor:
        """Compute the hidden states [T, D] of the tokens of the step."""
        if replays and self._graphs is not None:
            return self._graphs(step.batch)
        return self.model(step.batch, self.cache, features)

    def _sampled(
        self, step: DeviceStep, chunks: list[Chunk], hidden: Tensor, num_free: int
    ) -> SampledStep | None:
        """Sample the next token of each sequence that this step has computed to its end."""
        sequences = [chunk.sequence for chunk in chunks if chunk.is_last]
        for chunk in chunks:
            chunk.sequence.num_cached = chunk.end
        if not sequences:
            return None
        logits = self.model.logits(hidden.index_select(0, step.logit_rows))
        return SampledStep(sequences, logits, step.draws, num_free)

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

    def _take_pending(self) -> list[Finished]:
        """Wait for the tokens of the last step, if they are pending."""
        last, self._ahead = self._ahead, None
        return [] if last is None else self._take(last)

    def _take(self, step: SampledStep) -> list[Finished]:
        """Append the tokens of a step to their sequences; return the requests that are finished."""
        finished: list[Finished] = []
        for sequence, token_id, logprob, choice_logprobs in step.known():
            sequence.choice_logprobs = choice_logprobs or sequence.choice_logprobs
            if not math.isfinite(logprob) and sequence.block_keys:
                # NaN or Inf may come from a shared block. Without keys it fails next time.
                self.scheduler.retry_unshared(sequence)
                continue
            outcome = self._take_token(sequence, token_id, logprob)
            if outcome is not None:
                self.scheduler.finish(sequence)
                finished += _answered(sequence, outcome)
        return finished

    def _give_up(self, chunk: Chunk, reason: str) -> list[Finished]:
        """Fail the sequence of a chunk that the memory of the device does not suffice for."""
        self.scheduler.abandon(chunk)
        error = PromptError(
            "out_of_memory",
            f"the memory of {self.model.device} did not suffice for this prompt alone: {reason}; "
            "use fewer or smaller frames, or lower --cache-gib, --max-step-tokens or "
            "--max-vision-patches",
        )
        return _answered(chunk.sequence, error)

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


def _answered(sequence: Sequence, outcome: Completion | PromptError) -> list[Finished]:
    """Note the outcome of a sequence; return its request if that was the last of its samples."""
    answer = sequence.answer.take(sequence.number, outcome)
    return [] if answer is None else [(sequence.request_id, answer)]
