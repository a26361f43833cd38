"""`InputRow`: one row of the input, with its values by the roles that the user gave its columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from model.inputs.prompt import PromptError
from pipeline.column_types import seconds_of, text_of
from pipeline.media.limits import MediaError
from pipeline.media.windows import Span
from pipeline.schema import ErrorCode, InputColumns


@dataclass(frozen=True, kw_only=True)
class InputRow:
    """The values of one row; None where the input has no such column or the value is null."""

    row_id: str
    media: object  # bytes, a path or URI, a mapping of both, or a list of these
    prompt: str | None
    span_s: Span
    values: Mapping[str, Any]  # by column, of the columns that templates of prompts name
    error: MediaError | PromptError | None  # why the row cannot be used

    def require_usable(self) -> None:
        """Raise the row's error, if it has one."""
        if self.error is not None:
            raise self.error


def read_row(
    rows: pa.Table, index: int, columns: InputColumns, error: MediaError | None = None
) -> InputRow:
    """Read one row of a table that has a `row_id` and the columns of the input.

    Parquet does not check that text is UTF-8, nor that times are ones that Python knows. A value
    that cannot be read becomes None, and the row gets an error that names the column; `error`, if
    there is one, comes before it.
    """
    named = (*columns.fields, *columns.lists)
    roles = (columns.video, columns.prompt, columns.start_s, columns.end_s)
    values: dict[str, Any] = {}
    errors: list[MediaError | PromptError] = [] if error is None else [error]
    for name in ("row_id", *roles, *named):
        if name is None:
            continue
        try:
            values[name] = _value(rows[name][index], name, columns)
        except (ValueError, OverflowError, pa.ArrowException) as cause:
            values[name] = None
            errors.append(_unreadable(name, cause, is_media=name == columns.video))
    media, prompt, start_s, end_s = (None if name is None else values[name] for name in roles)
    return InputRow(
        row_id=values["row_id"],
        media=media,
        prompt=prompt,
        span_s=(start_s, end_s),
        values={name: values[name] for name in named},
        error=errors[0] if errors else None,
    )


def _value(value: pa.Scalar, name: str, columns: InputColumns) -> object:
    if name in (columns.start_s, columns.end_s):
        return seconds_of(value)
    return text_of(value) if name in columns.fields else value.as_py()


def _unreadable(name: str, cause: Exception, *, is_media: bool) -> MediaError | PromptError:
    what = "text" if isinstance(cause, UnicodeDecodeError) else "value"
    why = f"is not UTF-8: {cause}" if what == "text" else f"cannot be read: {cause}"
    message = f"the {what} in column {name!r} {why}"
    if is_media:
        return MediaError(ErrorCode.MEDIA_UNREADABLE, message)
    return PromptError(ErrorCode.BAD_PROMPT.value, message)
