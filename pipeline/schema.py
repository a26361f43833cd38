"""The columns of the input and of the output, and the closed list of error codes.

`check_input` fixes both before the first row is read, so that every part of an output has the same
columns and types whatever happened to its rows. What it refuses it names, with what is there.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.status import ErrorCode, Status  # noqa: F401, they belong to the columns

# What the prepare stage learns of a row's media; null where it could not be read.
MEDIA_FIELDS = (
    pa.field("frame_times_s", pa.list_(pa.float64())),
    pa.field("frame_width", pa.int32()),  # of what the model saw, in pixels
    pa.field("frame_height", pa.int32()),
    pa.field("num_visual_tokens", pa.int32()),
    pa.field("media_duration_s", pa.float64()),
    pa.field("media_fps", pa.float64()),  # the mean
    pa.field("media_width", pa.int32()),  # as displayed: upright, with square pixels
    pa.field("media_height", pa.int32()),
    pa.field("media_codec", pa.string()),
    pa.field("media_rotation", pa.int32()),  # degrees by which players turn it, clockwise
    pa.field("media_is_vfr", pa.bool_()),
    pa.field("media_is_interlaced", pa.bool_()),
    pa.field("num_decode_errors", pa.int32()),  # in what had to be decoded
)

RESULT_FIELDS = (
    pa.field("row_id", pa.string(), nullable=False),
    pa.field("caption", pa.large_string()),
    pa.field("reasoning", pa.large_string()),  # of thinking models
    pa.field("status", pa.string(), nullable=False),
    pa.field("error_code", pa.string()),
    pa.field("error", pa.string()),
    pa.field("attempts", pa.int32()),  # how often the row was started, over all runs
    pa.field("finish_reason", pa.string()),
    pa.field("num_prompt_tokens", pa.int32()),
    pa.field("num_generated_tokens", pa.int32()),
    pa.field("mean_logprob", pa.float32()),
    pa.field("min_logprob", pa.float32()),
    *MEDIA_FIELDS,
)

# Of the output too, where they are asked for.
SAMPLES_FIELD = pa.field("samples", pa.list_(pa.large_string()))
TOKEN_LOGPROBS_FIELD = pa.field("token_logprobs", pa.list_(pa.float32()))
CHOICE_LOGPROBS_FIELD = pa.field("choice_logprobs", pa.list_(pa.float32()))

# What `prepare` adds: a prompt, or a status, a code and a message.
PREPARED_FIELDS = (
    pa.field("prompt_token_ids", pa.list_(pa.int32())),  # [S]
    pa.field("prompt_patches", pa.large_binary()),  # [P, 3, patch, patch] uint8
    pa.field("prompt_grid_hw", pa.list_(pa.int32())),  # [I, 2], flattened
    pa.field("seed", pa.int64()),
    *MEDIA_FIELDS,
    pa.field("status", pa.string()),
    pa.field("error_code", pa.string()),
    pa.field("error", pa.string()),
)

# Where a row of the input is several prompts: the number of each in its row, from 0 on, and what
# it shows, in seconds or pages; null for a row that failed before it had any.
PART_FIELD = pa.field("prompt_part", pa.int32())
QUESTION_FIELD = pa.field("prompt_question", pa.int32())  # that a part asks
WINDOW_FIELD = pa.field(
    "prompt_window", pa.struct([("start", pa.float64()), ("end", pa.float64())])
)

_RESERVED = frozenset(
    field.name
    for field in (*RESULT_FIELDS, *PREPARED_FIELDS, PART_FIELD, QUESTION_FIELD, WINDOW_FIELD)
)


@dataclass(frozen=True, kw_only=True)
class InputColumns:
    """Which columns of the input say what; None where the input has no such column."""

    video: str = "video"
    id: str | None = None
    prompt: str | None = None
    start_s: str | None = None
    end_s: str | None = None
    fields: tuple[str, ...] = ()  # that the texts of questions name
    lists: tuple[str, ...] = ()  # of texts, each of which a question is asked about

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that have a role."""
        roles = (self.video, self.id, self.prompt, self.start_s, self.end_s)
        return tuple(name for name in roles if name is not None)

    @property
    def required(self) -> tuple[str, ...]:
        """Those that no file of the input may lack."""
        return (self.video,) if self.id is None else (self.video, self.id)


@dataclass(frozen=True, kw_only=True)
class RowSchema:
    """What is read of each row that is to be done, and what is written for it."""

    columns: InputColumns
    read: pa.Schema  # columns of the input, dictionaries decoded
    carried: pa.Schema  # columns of the input in the output, with their types there
    extra: tuple[pa.Field, ...] = ()  # of the results

    @property
    def output(self) -> pa.Schema:
        """The schema of every part: the row's id, what it carries along, what became of it."""
        row_id, *results = RESULT_FIELDS
        return pa.schema([row_id, *self.carried, *results, *self.extra])

    def carry(self, rows: pa.Table) -> pa.Table:
        """Take the carried columns of `rows`, a table with the `read` columns."""
        arrays = []
        for field in self.carried:
            column = rows[field.name]
            if pa.types.is_struct(column.type) and column.type != field.type:
                column = _narrow_struct(column, field.type)
            arrays.append(column.cast(field.type))
        return pa.Table.from_arrays(arrays, schema=self.carried)


def check_input(
    schema: pa.Schema,
    columns: InputColumns,
    *,
    carry: Sequence[str] | None = None,
    keep_media: bool = False,
    extra: Sequence[pa.Field] = (),
) -> RowSchema:
    """Decide what to read and write for an input with `schema`.

    Args:
        schema: of the input's files.
        columns: which columns hold the video, the id, the prompt and the span.
        carry: columns of the input to write beside the results; None means all.
        keep_media: write the media bytes too, where the video column holds them.
        extra: result columns beside `RESULT_FIELDS`.

    Raises:
        ValueError: a column is missing, has the wrong type, or cannot be written; the message
            names it, what is there and what to do.
    """
    _check_type(
        schema,
        columns.video,
        "media",
        _is_media,
        "string (a path or URI), binary (the media bytes), struct<bytes: binary, path: string>, or "
        "a list of one of these",
    )
    _check_type(schema, columns.id, "id", _is_id, "string or integer")
    _check_type(schema, columns.prompt, "prompt", _is_text, "string")
    for role, name in (("start", columns.start_s), ("end", columns.end_s)):
        _check_type(schema, name, role, _is_number, "integer or floating point seconds")

    names = dict.fromkeys(schema.names if carry is None else carry)
    repeated = {name for name in schema.names if schema.names.count(name) > 1}
    carried = []
    for name in names:
        field = _field(schema, name, "carried")
        if name in repeated:
            raise ValueError(f"the input has several columns named {name!r}; rename them")
        if name == columns.id == "row_id":
            continue  # the output's row_id is that column
        if name in _RESERVED.union(field.name for field in extra):
            raise ValueError(
                f"the input column {name!r} has the name of a column that the output or the "
                f"pipeline adds; rename it, or choose the columns to carry with "
                f"--columns {_others(schema, columns)}"
            )
        written = _written_type(field, is_media=name == columns.video, keep_media=keep_media)
        if written is not None:
            carried.append(pa.field(name, written, nullable=field.nullable))
        elif carry is not None:
            raise ValueError(
                f"column {name!r} holds the media bytes; add --keep-media to write them again, "
                "or leave it out of --columns"
            )
    for name in columns.fields:
        if name not in schema.names:
            (nearest,) = difflib.get_close_matches(name, schema.names, n=1, cutoff=0.0)
            raise ValueError(
                f"a prompt names {{{name}}}, and the input has no such column; the nearest is "
                f"{nearest!r}"
            )
        _check_type(schema, name, "template", _is_plain, "text, a number or a boolean")
    for name in columns.lists:
        _check_type(schema, name, "list of texts", _is_texts, "a list of strings")
    wanted = {*columns.names, *columns.fields, *columns.lists} | {field.name for field in carried}
    read = pa.schema(
        [
            pa.field(field.name, _read_type(field, is_media=field.name == columns.video))
            for field in schema
            if field.name in wanted
        ]
    )
    return RowSchema(columns=columns, read=read, carried=pa.schema(carried), extra=tuple(extra))


def plain_type(field: pa.Field) -> pa.DataType:
    """The type of `field` as `unify.plain` makes it.

    Raises:
        ValueError: the type cannot be passed through; the message names the column.
    """
    kind = plain(field.type)
    if _has_odd_part(kind):
        raise ValueError(
            f"column {field.name!r} has type {field.type}, which cannot be carried to the output; "
            "choose the columns to carry with --columns"
        )
    return kind


def _read_type(field: pa.Field, *, is_media: bool) -> pa.DataType:
    """The type in memory; wide for media, as rows of a few of them pass 2 GiB."""
    kind = plain_type(field)
    if not is_media or _is_text(kind):
        return kind
    if _is_bytes(kind):
        return pa.large_binary()
    if not pa.types.is_struct(kind):
        return kind
    parts = [kind.field(index) for index in range(kind.num_fields)]
    return pa.struct(
        [part.with_type(pa.large_binary()) if _is_bytes(part.type) else part for part in parts]
    )


def _has_odd_part(kind: pa.DataType) -> bool:
    """Whether an extension or union type, or a dictionary that stays one, is part of `kind`."""
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if pa.types.is_union(kind) or pa.types.is_dictionary(kind):
        return True
    return any(_has_odd_part(kind.field(index).type) for index in range(kind.num_fields))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_media(kind: pa.DataType) -> bool:
    if _is_list(kind):
        return not _is_list(kind.value_type) and _is_media(kind.value_type)
    if not pa.types.is_struct(kind):
        return _is_text(kind) or _is_bytes(kind)
    parts = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
    return (
        bool(parts.keys() & {"bytes", "path"})
        and _is_bytes(parts.get("bytes", pa.binary()))
        and _is_text(parts.get("path", pa.string()))
    )


def _written_type(field: pa.Field, *, is_media: bool, keep_media: bool) -> pa.DataType | None:
    """The type of a carried column in the output; None for media bytes that stay behind."""
    kind = plain_type(field)
    if not is_media or _is_text(kind) or (_is_list(kind) and _is_text(kind.value_type)):
        return kind
    if _is_list(kind):
        return kind if keep_media else None
    if _is_bytes(kind):
        return pa.large_binary() if keep_media else None
    parts = [kind.field(index) for index in range(kind.num_fields)]
    kept = [
        part.with_type(pa.large_binary()) if part.name == "bytes" else part
        for part in parts
        if part.name == "path" or (part.name == "bytes" and keep_media)
    ]
    return pa.struct(kept) if kept else None


def _narrow_struct(column: pa.ChunkedArray, kind: pa.StructType) -> pa.ChunkedArray:
    """Drop the parts of a struct column that `kind` does not have."""
    parts = [kind.field(index) for index in range(kind.num_fields)]
    chunks = [
        pa.StructArray.from_arrays(
            [chunk.field(part.name).cast(part.type) for part in parts],
            fields=parts,
            mask=chunk.is_null(),
        )
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, type=kind)


def _field(schema: pa.Schema, name: str, role: str) -> pa.Field:
    if name not in schema.names:
        raise ValueError(
            f"the input has no {role} column {name!r}; its columns are "
            f"{', '.join(f'{field.name} ({field.type})' for field in schema)}"
        )
    return schema.field(schema.names.index(name))


def _check_type(
    schema: pa.Schema,
    name: str | None,
    role: str,
    is_right: Callable[[pa.DataType], bool],
    allowed: str,
) -> None:
    if name is None:
        return
    field = _field(schema, name, role)
    if name == "row_id" and role != "id":
        raise ValueError(f"the {role} column must not be named row_id; rename it")
    if not is_right(plain_type(field)):
        raise ValueError(f"the {role} column {name!r} is {field.type}; it must be {allowed}")


def _others(schema: pa.Schema, columns: InputColumns) -> str:
    free = [name for name in schema.names if name not in _RESERVED and name != columns.video]
    return ",".join(free) or columns.video


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_texts(kind: pa.DataType) -> bool:
    return _is_list(kind) and _is_text(kind.value_type)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_id(kind: pa.DataType) -> bool:
    return _is_text(kind) or pa.types.is_integer(kind)


def _is_plain(kind: pa.DataType) -> bool:
    return _is_text(kind) or _is_number(kind) or pa.types.is_boolean(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def plain(kind: pa.DataType) -> pa.DataType:
    """A type with its dictionaries decoded, at any depth, and without views, which few take."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    if pa.types.is_struct(kind):
        parts = [kind.field(index) for index in range(kind.num_fields)]
        return pa.struct([part.with_type(plain(part.type)) for part in parts])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item = kind.value_field.with_type(plain(kind.value_type))
        return pa.list_(item) if pa.types.is_list(kind) else pa.large_list(item)
    return kind
