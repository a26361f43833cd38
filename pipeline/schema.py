"""The columns of the output and the closed list of error codes.

The output schema is fixed before the first row is read, so that every part of an output has the
same columns and types whatever happened to its rows.
"""

from enum import StrEnum

import pyarrow as pa


class Status(StrEnum):
    """What became of a row."""

    OK = "ok"
    TRUNCATED = "truncated"  # max_tokens ended the caption
    ERROR = "error"  # `error_code` and `error` say why


class ErrorCode(StrEnum):
    """Every reason for which a row can fail. The job goes on."""

    MEDIA_NULL = "media_null"  # the row names no media
    MEDIA_MISSING = "media_missing"  # no such file or object
    MEDIA_UNREADABLE = "media_unreadable"  # it exists and cannot be read
    URI_NOT_ALLOWED = "uri_not_allowed"  # the scheme or prefix was not allowed by the user
    MEDIA_TOO_LARGE = "media_too_large"  # over a limit on bytes, pixels, frames or duration
    MEDIA_UNSUPPORTED = "media_unsupported"  # a container or codec that is not on the list
    MEDIA_CORRUPT = "media_corrupt"  # it cannot be parsed or decoded
    NO_VIDEO_STREAM = "no_video_stream"
    NO_FRAMES = "no_frames"  # decoding gave no frame in the span
    BAD_SPAN = "bad_span"  # start and end seconds that make no span
    BAD_PROMPT = "bad_prompt"
    PROMPT_TOO_LONG = "prompt_too_long"  # more tokens than the context holds
    ENGINE_ERROR = "engine_error"


RESULT_FIELDS = (
    pa.field("row_id", pa.string(), nullable=False),
    pa.field("caption", pa.large_string()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error_code", pa.string()),
    pa.field("error", pa.string()),
    pa.field("finish_reason", pa.string()),
    pa.field("num_prompt_tokens", pa.int32()),
    pa.field("num_generated_tokens", pa.int32()),
    pa.field("frame_times_s", pa.list_(pa.float64())),
    pa.field("mean_logprob", pa.float32()),
    pa.field("min_logprob", pa.float32()),
)
