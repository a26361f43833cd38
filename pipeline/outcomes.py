"""What an engine answers to one prompt, as columns of a row."""

from typing import Any

from parallel.worker import Failure, Outcome
from pipeline.codes import ErrorCode, Status


def result_of(outcome: Outcome, *, is_damaged: bool = False) -> dict[str, Any]:
    """The result columns of one answered row; what is missing is null."""
    if isinstance(outcome, Failure):
        known = outcome.code in set(ErrorCode)
        return {
            "status": Status.ERROR.value,
            "error_code": outcome.code if known else ErrorCode.ENGINE_ERROR.value,
            "error": outcome.message if known else f"{outcome.code}: {outcome.message}",
        }
    samples = (outcome, *outcome.others)
    is_truncated = any(each.is_truncated for each in samples)
    whole = Status.DAMAGED if is_damaged else Status.OK
    return {
        "caption": outcome.text,
        "reasoning": outcome.reasoning,
        "samples": [each.text for each in samples],
        "status": (Status.TRUNCATED if is_truncated else whole).value,
        "finish_reason": outcome.finish_reason,
        "num_prompt_tokens": outcome.num_prompt_tokens,
        "num_generated_tokens": sum(each.num_generated_tokens for each in samples),
        "mean_logprob": outcome.mean_logprob,
        "min_logprob": outcome.min_logprob,
        "token_logprobs": outcome.token_logprobs,
        "choice_logprobs": outcome.choice_logprobs,
    }
