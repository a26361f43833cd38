"""What is asked of one prompt and what comes back: `SamplingParams` and `Completion`.

No torch here: the stages that make requests run on machines without it.
"""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose the tokens of one completion.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    max_tokens: int = 512
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    stop_token_ids: tuple[int, ...] = ()  # beside those of the checkpoint

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0.0 <= self.temperature <= 10.0:
            raise ValueError(f"temperature must be between 0 and 10, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")
        if "" in self.stop:
            raise ValueError("a stop string must not be empty")


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The answer to one prompt."""

    text: str
    token_ids: tuple[int, ...]  # as sampled, with the stop token if there was one
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_generated_tokens: int
    mean_logprob: float  # of the sampled tokens, in nats; 0.0 where none was sampled
    min_logprob: float
