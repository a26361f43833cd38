"""What can become of a row: three words and a closed list of reasons. No library is imported."""

from enum import StrEnum


class Status(StrEnum):
    """What became of a row."""

    OK = "ok"
    TRUNCATED = "truncated"  # max_tokens or the loop guard ended the caption
    DAMAGED = "damaged"  # a whole caption of what could be decoded; `num_decode_errors` counts
    ERROR = "error"  # `error_code` and `error` say why


class ErrorCode(StrEnum):
    """Every reason for which a row can fail. The job goes on."""

    MEDIA_NULL = "media_null"  # the row names no media
    MEDIA_MISSING = "media_missing"  # no such file or object
    MEDIA_UNREADABLE = "media_unreadable"  # it exists and cannot be read
    URI_NOT_ALLOWED = "uri_not_allowed"  # a place that the user did not allow
    MEDIA_TOO_LARGE = "media_too_large"  # over a limit on bytes, pixels, frames, pages or memory
    MEDIA_UNSUPPORTED = "media_unsupported"  # a container or codec that is not on the list
    MEDIA_CORRUPT = "media_corrupt"  # it cannot be parsed or decoded
    MEDIA_ENCRYPTED = "media_encrypted"  # a document that opens with a password only
    NO_VIDEO_STREAM = "no_video_stream"
    NO_FRAMES = "no_frames"  # decoding gave no frame in the span
    BAD_SPAN = "bad_span"  # start and end seconds that make no span
    DECODE_TIMEOUT = "decode_timeout"  # over the limit on the time of decoding
    DECODER_DIED = "decoder_died"  # two processes died with this row, the second one fresh
    BAD_PROMPT = "bad_prompt"
    PROMPT_TOO_LONG = "prompt_too_long"  # more tokens than the context holds
    SCHEMA_FAILED = "schema_failed"  # its grammar gave up, or its column cannot hold the answer
    POISON_ROW = "poison_row"  # groups, preparers or runs died with it, at last with it alone
    ENGINE_ERROR = "engine_error"
