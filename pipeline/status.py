"""What can become of a row: the values of the columns `status` and `error_code`.

This module imports no library, so that every process can use it cheaply, even the decoding process.
"""

from enum import StrEnum


class Status(StrEnum):
    """How work on a row ended."""

    OK = "ok"
    TRUNCATED = "truncated"  # `max_tokens` or the loop guard cut the caption off
    DAMAGED = "damaged"  # a whole caption, made of what could be decoded
    ERROR = "error"  # `error_code` and `error` say why


class ErrorCode(StrEnum):
    """Every reason for which a row can fail; the other rows of the run are still answered."""

    MEDIA_NULL = "media_null"  # the row names no media
    MEDIA_MISSING = "media_missing"  # the file or object does not exist
    MEDIA_UNREADABLE = "media_unreadable"  # the file or object exists and cannot be read
    FETCH_FAILED = "fetch_failed"  # the server or the network failed in each of several attempts
    URI_NOT_ALLOWED = "uri_not_allowed"  # the user did not allow this place
    MEDIA_TOO_LARGE = "media_too_large"  # over a limit on bytes, pixels, frames, pages or memory
    MEDIA_UNSUPPORTED = (
        "media_unsupported"  # the container or codec is not on the list of allowed ones
    )
    MEDIA_CORRUPT = "media_corrupt"  # the bytes cannot be parsed or decoded
    MEDIA_ENCRYPTED = "media_encrypted"  # the document needs a password
    NO_VIDEO_STREAM = "no_video_stream"
    NO_FRAMES = "no_frames"  # decoding gave no frame within the time span
    BAD_SPAN = "bad_span"  # the start is negative or infinite, or the end is not after it
    DECODE_TIMEOUT = "decode_timeout"  # decoding took longer than the limit
    DECODER_DIED = "decoder_died"  # two decoding processes died of this row, the second a fresh one
    BAD_PROMPT = "bad_prompt"
    PROMPT_TOO_LONG = "prompt_too_long"  # the prompt has more tokens than the context holds
    SCHEMA_FAILED = "schema_failed"  # the grammar gave up, or the column cannot hold the answer
    OUT_OF_MEMORY = "out_of_memory"  # the memory of a rank did not suffice for this row alone
    POISON_ROW = (
        "poison_row"  # groups, workers or runs died while they worked on it, at last on it alone
    )
    ENGINE_ERROR = "engine_error"


# Codes of rows that another run may answer although nothing is changed, since the error depends on
# a server, or on what else the machine was doing.
TEMPORARY = (
    ErrorCode.FETCH_FAILED,
    ErrorCode.DECODE_TIMEOUT,
    ErrorCode.DECODER_DIED,
    ErrorCode.ENGINE_ERROR,
)
