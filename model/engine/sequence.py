"""What is asked of one prompt, how far it is, and what comes back.

No torch here: the stages that make requests run on machines without it.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.engine.grammar import CLOSE_MARK, OPEN_MARK, Constraint
from model.inputs.prompt import Prompt, PromptError

# "repetition": the loop guard ended a text that only repeated itself.
FinishReason = Literal["stop", "length", "repetition"]

_LONGEST_LOOP = 32  # tokens that may repeat
_MIN_COPIES = 4


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose the tokens of an answer.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    max_tokens: int = 512
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is no limit
    min_p: float = 0.0  # of the best token's probability
    repetition_penalty: float = 1.0  # above 1: what was seen becomes less likely
    loop_guard: int = 64  # tokens of nothing but repetition that end a text; 0 lets it run
    seed: int = 0
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    stop_token_ids: tuple[int, ...] = ()  # beside those of the checkpoint
    schema: str | None = None  # JSON text of the JSON Schema that the answer follows
    thinking: bool = False  # with a schema: the model reasons first, and freely
    n: int = 1  # completions of the prompt, each with a seed of its own
    token_logprobs: bool = False  # tell the log-probability of every token
    choices: tuple[str, ...] = ()  # tell how likely each is as the first token of the answer

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0.0 <= self.temperature <= 10.0:
            raise ValueError(f"temperature must be between 0 and 10, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}")
        if not 0.0 < self.repetition_penalty <= 10.0:
            raise ValueError(
                f"repetition_penalty must be in (0, 10], got {self.repetition_penalty}"
            )
        if self.loop_guard < 0:
            raise ValueError(f"loop_guard must be at least 0, got {self.loop_guard}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")
        if "" in self.stop:
            raise ValueError("a stop string must not be empty")
        for text in self.stop:
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"a stop string must be text that UTF-8 can write, got {text!r}")
        if self.schema is not None and (self.stop or self.stop_token_ids):
            raise ValueError("a schema says where the answer ends; leave out stop")
        if self.thinking and self.schema is None:
            raise ValueError("thinking says how to use a schema, and there is none")
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n={self.n} samples at temperature 0 would all be the same text")
        if "" in self.choices or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices must be different texts, got {list(self.choices)}")

    def of_sample(self, number: int) -> "SamplingParams":
        """How to choose the tokens of one of the `n` completions; the first has this very seed."""
        if number == 0:
            return self
        digest = blake2b(f"{self.seed}/{number}".encode(), digest_size=8).digest()
        return replace(self, seed=int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The answer to one prompt."""

    text: str  # without the reasoning of a thinking model
    token_ids: tuple[int, ...]  # as sampled, with the stop token if there was one
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_generated_tokens: int
    mean_logprob: float  # of the sampled tokens, in nats
    min_logprob: float
    reasoning: str | None = None  # of a thinking model
    has_answer: bool = True  # False where the reasoning has no end
    token_logprobs: tuple[float, ...] | None = None  # of each of `token_ids`, if asked for
    choice_logprobs: tuple[float, ...] | None = None  # of each of `choices`, in nats
    others: tuple["Completion", ...] = ()  # the other samples of the prompt, in their order

    @property
    def is_truncated(self) -> bool:
        """Whether something else than the model ended the text."""
        return self.finish_reason != "stop" or not self.has_answer


def split_reasoning(text: str) -> tuple[str | None, str | None]:
    """Cut what a thinking model wrote into reasoning and answer.

    Returns:
        Reasoning, None where there is none; and the answer, None where the reasoning has no end.
    """
    before, mark, after = text.partition(CLOSE_MARK)
    if mark:
        return before.replace(OPEN_MARK, "", 1).strip(), after.strip()
    if OPEN_MARK in text:
        return text.replace(OPEN_MARK, "", 1).strip(), None
    return None, text


class Answer:
    """What became of the `n` samples of one request so far."""

    def __init__(self, n: int = 1) -> None:
        self._n = n
        self._outcomes: dict[int, Completion | PromptError] = {}

    def take(
        self, number: int, outcome: Completion | PromptError
    ) -> Completion | PromptError | None:
        """Note one sample's outcome; the answer, if it was the last. One that failed fails all."""
        self._outcomes[number] = outcome
        if len(self._outcomes) < self._n:
            return None
        outcomes = [outcome for _, outcome in sorted(self._outcomes.items())]
        completions = [each for each in outcomes if isinstance(each, Completion)]
        if len(completions) < self._n:
            return next(each for each in outcomes if isinstance(each, PromptError))
        return replace(completions[0], others=tuple(completions[1:]))


class Sequence:
    """One completion in the engine: what was asked, what has been generated, and what is cached.

    Args:
        request_id: of the caller.
        prompt: what was asked.
        params: how to answer.
        max_tokens: of `params`, less where context or cache end before.
        block_keys: of the full blocks of the prompt, as `model.engine.blocks.block_keys`.
        image_digests: of the prompt's images, as `model.engine.blocks.image_digests`.
        constraint: what its text follows, if anything; of this sequence alone.
        choice_ids: the tokens whose log-probabilities as its first one are told.
        number: of this sample of the request.
        answer: shared by the samples of the request.
    """

    def __init__(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        max_tokens: int,
        block_keys: list[bytes],
        image_digests: list[bytes],
        constraint: Constraint | None = None,
        choice_ids: Collection[int] = (),
        number: int = 0,
        answer: Answer | None = None,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.params = params
        self.max_tokens = max_tokens
        self.block_keys = block_keys
        self.image_digests = image_digests
        self.constraint = constraint
        self.choice_ids = list(choice_ids)
        self.number = number
        self.answer = answer or Answer()
        self.blocks: list[int] = []
        self.num_cached = 0  # tokens whose keys and values are in its blocks
        self.generated: list[int] = []
        self.logprobs: list[float] = []
        self.choice_logprobs: tuple[float, ...] | None = None  # known with the first token
        self.text = bytearray()  # UTF-8, of the ordinary tokens
        self.finish_reason: FinishReason | None = None
        self._num_equal = [0] * (_LONGEST_LOOP + 1)  # last tokens that equal those p before them

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens."""
        return len(self.prompt.token_ids) + len(self.generated)

    def token_ids(self, start: int, end: int) -> NDArray[np.int32]:
        """Prompt and generated tokens at the positions `start` to `end`."""
        num_prompt = len(self.prompt.token_ids)
        if end <= num_prompt:
            return self.prompt.token_ids[start:end]
        generated = self.generated[max(0, start - num_prompt) : end - num_prompt]
        return np.append(self.prompt.token_ids[start:], np.array(generated, np.int32))

    def append(self, token_id: int, logprob: float, piece: bytes, *, is_stop_token: bool) -> None:
        """Take the next token, whose text is `piece`, and notice the end."""
        self.generated.append(token_id)
        self.logprobs.append(logprob)
        self.text += b"" if is_stop_token else piece
        if self.constraint is not None:
            self.constraint.take(token_id)
        is_complete = self.constraint is not None and self.constraint.is_complete
        if is_stop_token or is_complete or self._cut_at_stop_string(len(piece)):
            self.finish_reason = "stop"
        elif self._is_looping():
            self.finish_reason = "repetition"
        elif len(self.generated) >= self.max_tokens:
            self.finish_reason = "length"

    def _cut_at_stop_string(self, num_new: int) -> bool:
        """Cut the text before the first stop string; only its new end is searched."""
        places: list[int] = []
        for stop in (text.encode() for text in self.params.stop):
            start = max(0, len(self.text) - num_new - len(stop) + 1)
            places.append(self.text.find(stop, start))
        found = [place for place in places if place >= 0]
        if found:
            del self.text[min(found) :]
        return bool(found)

    def _is_looping(self) -> bool:
        """Whether the end of the text is at least four copies of one piece of up to 32 tokens."""
        guard = self.params.loop_guard
        for period in range(1, min(_LONGEST_LOOP, len(self.generated) - 1) + 1):
            is_equal = self.generated[-1] == self.generated[-1 - period]
            self._num_equal[period] = self._num_equal[period] + 1 if is_equal else 0
        return bool(guard) and any(
            num_equal + period >= max(guard, _MIN_COPIES * period)
            for period, num_equal in enumerate(self._num_equal)
            if num_equal
        )

    def completion(self) -> Completion:
        """The answer, once `finish_reason` is set."""
        assert self.finish_reason is not None
        reasoning, text = None, self.text.decode("utf-8", errors="replace")
        if self.params.schema is None or self.params.thinking:
            reasoning, text = split_reasoning(text)
        return Completion(
            text=text or "",
            reasoning=reasoning,
            has_answer=text is not None,
            token_ids=tuple(self.generated),
            finish_reason=self.finish_reason,
            num_prompt_tokens=len(self.prompt.token_ids),
            num_generated_tokens=len(self.generated),
            mean_logprob=sum(self.logprobs) / len(self.logprobs),
            min_logprob=min(self.logprobs),
            token_logprobs=tuple(self.logprobs) if self.params.token_logprobs else None,
            choice_logprobs=self.choice_logprobs,
        )
