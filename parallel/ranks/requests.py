"""What callers ask of a rank, and what they get back. This module does not import torch."""

from dataclasses import dataclass

from model.engine.sequence import Completion, SamplingParams
from model.inputs.prompt import Prompt, PromptError


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to answer. The id is for people who read logs; it need not be unique."""

    request_id: str
    prompt: Prompt
    params: SamplingParams
    own_step: bool = False  # whether nothing else is in the steps that compute it on its rank
    may_wait: bool = True  # whether a rank may hold it back until others come (`AdmissionPolicy`)

    @property
    def num_tokens(self) -> int:
        """The most work that it can be: tokens of the prompt, and all that it may generate."""
        return len(self.prompt.token_ids) + self.params.n * self.params.max_tokens


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why one prompt has no completion; other prompts are not affected."""

    code: str  # as `PromptError.code`
    message: str


Outcome = Completion | Failure


def outcome_of(result: Completion | PromptError) -> Outcome:
    """Turn a `PromptError` into a `Failure`: it is an answer of this prompt, not an exception."""
    if isinstance(result, PromptError):
        return Failure(code=result.code, message=result.message)
    return result
