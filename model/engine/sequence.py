"""How to answer a prompt, how far the answer is, and what comes back.

This module does not import torch: the stages that make requests do not need it.
"""

from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.engine.grammar import CLOSE_MARK, OPEN_MARK, Constraint
from model.inputs.prompt import Prompt, PromptError

# "repetition" means that the loop guard ended a text that only repeated itself.
FinishReason = Literal["stop", "length", "repetition"]

_LONGEST_LOOP = 32  # tokens of the longest repeated unit that the loop guard looks for
_MIN_COPIES = 4  # of the unit before a text counts as a loop


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose the tokens of an answer; a setting out of its range raises ValueError."""

    max_tokens: int = 512
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is no limit
    min_p: float = 0.0  # least probability of a token, as a part of the best token's
    repetition_penalty: float = 1.0  # above 1: tokens that were seen become less likely
    loop_guard: int = 64  # so many tokens of pure repetition end a text; 0 turns it off
    seed: int = 0
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    stop_token_ids: tuple[int, ...] = ()  # in addition to those of the checkpoint
    schema: str | None = None  # JSON text of the JSON Schema that the answer follows
    thinking: bool = False  # with a schema: reasoning without a schema comes first
    n: int = 1  # completions of the prompt, each with a seed of its own
    token_logprobs: bool = False  # return the log-probability of every token
    choices: tuple[str, ...] = ()  # return how likely each is as the first token of the answer

    def __post_init__(self) -> None:
        for name, is_legal, rule in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0.0 <= self.temperature <= 10.0, "between 0 and 10"),
            ("top_p", 0.0 < self.top_p <= 1.0, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "in [0, 1]"),
            ("repetition_penalty", 0.0 < self.repetition_penalty <= 10.0, "in (0, 10]"),
            ("loop_guard", self.loop_guard >= 0, "at least 0"),
            ("seed", 0 <= self.seed < 2**63, "in [0, 2**63)"),
        ):
            if not is_legal:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")
        if "" in self.stop:
            raise ValueError("a stop string must not be empty")
        for text in self.stop:
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"a stop string must be text that UTF-8 can write, got {text!r}")
        if self.schema is not None and (self.stop or self.stop_token_ids):
            raise ValueError("a schema decides where the answer ends; leave out stop")
        if self.thinking and self.schema is None:
            raise ValueError("thinking needs a schema, and there is none")
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n={self.n} samples at temperature 0 would all be the same text")
        if "" in self.choices or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices must be different texts, got {list(self.choices)}")

    def of_sample(self, number: int) -> "SamplingParams":
        """Return the parameters of one of the `n` completions; the first one keeps this seed."""
        if number == 0:
            return self
        digest = blake2b(f"{self.seed}/{number}".encode(), digest_size=8).digest()
        return replace(self, seed=int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The answer to one prompt."""

    text: str  # without the reasoning of a thinking model
    token_ids: tuple[int, ...]  # as sampled, including the stop token if there was one
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_generated_tokens: int
    mean_logprob: float  # of the sampled tokens, in nats
    min_logprob: float  # of the sampled tokens, in nats
    reasoning: str | None = None  # of a thinking model
    has_answer: bool = True  # False if the reasoning never ended
    token_logprobs: tuple[float, ...] | None = None  # of each of `token_ids` in nats, if asked for
    choice_logprobs: tuple[float, ...] | None = None  # of each of `choices`, in nats
    others: tuple["Completion", ...] = ()  # the other samples of the prompt, in their order

    @property
    def is_truncated(self) -> bool:
        """Whether a limit, not the model, ended the text, or the reasoning never ended."""
        return self.finish_reason != "stop" or not self.has_answer


def split_reasoning(text: str) -> tuple[str | None, str | None]:
    """Split the text of a thinking model into reasoning and answer; a missing one is None."""
    before, mark, after = text.partition(CLOSE_MARK)
    if mark:
        return before.replace(OPEN_MARK, "", 1).strip(), after.strip()
    if OPEN_MARK in text:
        return text.replace(OPEN_MARK, "", 1).strip(), None
    return None, text


class Answer:
    """Collects the outcomes of the `n` samples of one request."""

    def __init__(self, n: int = 1) -> None:
        self._n = n
        self._outcomes: dict[int, Completion | PromptError] = {}

    def take(
        self, number: int, outcome: Completion | PromptError
    ) -> Completion | PromptError | None:
        """Note an outcome; return the answer after the last. One failure fails the request."""
        self._outcomes[number] = outcome
        if len(self._outcomes) < self._n:
            return None
        outcomes = [outcome for _, outcome in sorted(self._outcomes.items())]
        completions = [each for each in outcomes if isinstance(each, Completion)]
        if len(completions) < self._n:
            return next(each for each in outcomes if isinstance(each, PromptError))
        return replace(completions[0], others=tuple(completions[1:]))


@dataclass(eq=False)  # two sequences are never equal
class Sequence:
    """One completion in the engine: its prompt, its generated tokens, and its blocks."""

    request_id: str  # that the caller gave
    prompt: Prompt
    params: SamplingParams
    max_tokens: int  # those of `params`, or fewer if the context or the cache is shorter
    block_keys: list[bytes]  # of the full blocks of the prompt, see `model.engine.blocks`
    constraint: Constraint | None = None  # the grammar that only this text follows
    choice_ids: list[int] = field(default_factory=list)  # whose log-probabilities are returned
    number: int = 0  # of this sample among those of the request
    own_step: bool = False  # whether nothing else is in the steps that compute it
    answer: Answer = field(default_factory=Answer)  # collects all samples of the request
    blocks: list[int] = field(default_factory=list)
    table_row: int = 0  # of its blocks, in the tables on the device, while it runs
    num_blocks_on_device: int = 0  # of them, how many the table already holds
    num_cached: int = 0  # tokens whose kv is in the blocks
    num_pending: int = 0  # sampled tokens that the host does not know yet
    pending_row: int = 0  # where the last of them stands among the tokens of its step
    num_restarts: int = 0  # how often its pending tokens became void
    generated: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    choice_logprobs: tuple[float, ...] | None = None  # known with the first token
    text: bytearray = field(default_factory=bytearray)  # UTF-8, of the ordinary tokens
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        # Period p -> how many of the last tokens equal the token p places before them, if any.
        self._num_equal: dict[int, int] = {}

    @property
    def num_tokens(self) -> int:
        """The number of prompt and generated tokens, pending ones too."""
        return len(self.prompt.token_ids) + self.num_sampled

    @property
    def num_sampled(self) -> int:
        """The number of generated tokens, pending ones too."""
        return len(self.generated) + self.num_pending

    @property
    def needs_its_tokens(self) -> bool:
        """Whether the next token depends on the last one by more than the network."""
        return self.constraint is not None or self.params.repetition_penalty != 1.0

    def drop_pending(self) -> None:
        """Declare the pending tokens void: the sequence has ended, or it begins again."""
        self.num_pending = 0
        self.num_restarts += 1

    def token_id(self, place: int) -> int:
        """Return the prompt or generated token at a position; 0 for a pending one."""
        num_prompt = len(self.prompt.token_ids)
        if place < num_prompt:
            return int(self.prompt.token_ids[place])
        place -= num_prompt
        return self.generated[place] if place < len(self.generated) else 0

    def token_ids(self, start: int, end: int) -> NDArray[np.int32]:
        """Return the prompt and generated tokens at the positions from `start` to `end`."""
        num_prompt = len(self.prompt.token_ids)
        if end <= num_prompt:
            return self.prompt.token_ids[start:end]
        generated = self.generated[max(0, start - num_prompt) : end - num_prompt]
        return np.append(self.prompt.token_ids[start:], np.array(generated, np.int32))

    def append(self, token_id: int, logprob: float, text: bytes, *, is_stop_token: bool) -> None:
        """Append the next token with its text, and set `finish_reason` if it is the last."""
        self.generated.append(token_id)
        self.logprobs.append(logprob)
        self.text += b"" if is_stop_token else text
        if self.constraint is not None:
            self.constraint.advance(token_id)
        is_complete = self.constraint is not None and self.constraint.is_complete
        if is_stop_token or is_complete or self._cut_at_stop_string(len(text)):
            self.finish_reason = "stop"
        elif self._is_looping():
            self.finish_reason = "repetition"
        elif len(self.generated) >= self.max_tokens:
            self.finish_reason = "length"

    def _cut_at_stop_string(self, num_new: int) -> bool:
        """Cut the text before the first stop string; search only the end that is new."""
        places: list[int] = []
        for stop in (text.encode() for text in self.params.stop):
            start = max(0, len(self.text) - num_new - len(stop) + 1)
            places.append(self.text.find(stop, start))
        found = [place for place in places if place >= 0]
        if found:
            del self.text[min(found) :]
        return bool(found)

    def _is_looping(self) -> bool:
        """Say whether the text ends with a loop: four or more copies of up to 32 tokens."""
        guard, token = self.params.loop_guard, self.generated[-1]
        before = reversed(self.generated[-1 - _LONGEST_LOOP : -1])
        periods = [period for period, other in enumerate(before, 1) if other == token]
        self._num_equal = {period: self._num_equal.get(period, 0) + 1 for period in periods}
        return bool(guard) and any(
            num_equal + period >= max(guard, _MIN_COPIES * period)
            for period, num_equal in self._num_equal.items()
        )

    def completion(self) -> Completion:
        """Return the completion, once `finish_reason` is set."""
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
