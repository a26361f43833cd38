"""The columns of the input and of the output.

`check_input` fixes both before the first row is read, so that every part file of an output has the
same columns and types, whatever becomes of its rows. Its error messages name the column and its
type.
"""

import csv
import difflib
import io
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline import column_types as types
from pipeline.status import ErrorCode, Status  # noqa: F401, the values of two result columns

# What the prepare stage finds out about a row's media; null where the media could not be read.
MEDIA_FIELDS = (
    pa.field("frame_times_s", pa.list_(pa.float64())),
    pa.field("frame_width", pa.int32()),  # of the frames that the model sees, in pixels
    pa.field("frame_height", pa.int32()),
    pa.field("num_visual_tokens", pa.int32()),
    pa.field("media_duration_s", pa.float64()),
    pa.field("media_fps", pa.float64()),  # the mean over the video
    pa.field("media_width", pa.int32()),  # as displayed: upright, with square pixels
    pa.field("media_height", pa.int32()),
    pa.field("media_codec", pa.string()),
    pa.field("media_stream", pa.int32()),  # the stream of the file that was taken, from 0 on
    pa.field("media_rotation", pa.int32()),  # degrees clockwise by which players turn the frames
    pa.field("media_is_vfr", pa.bool_()),
    pa.field("media_is_interlaced", pa.bool_()),
    pa.field("num_decode_errors", pa.int32()),  # damaged packets and frames met in decoding
)

# Columns that outputs of earlier versions do not have. An output stays as it was begun.
LATER_COLUMNS = ("media_stream",)

RESULT_FIELDS = (
    pa.field("row_id", pa.string(), nullable=False),
    pa.field("caption", pa.large_string()),
    pa.field("reasoning", pa.large_string()),  # the thoughts of a thinking model
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

# Columns that the output has if options ask for them.
SAMPLES_FIELD = pa.field("samples", pa.list_(pa.large_string()))
TOKEN_LOGPROBS_FIELD = pa.field("token_logprobs", pa.list_(pa.float32()))
CHOICE_LOGPROBS_FIELD = pa.field("choice_logprobs", pa.list_(pa.float32()))

# What the prepare stage adds to a row: a prompt, or a status, an error code and a message.
PREPARED_FIELDS = (
    pa.field("prompt_token_ids", pa.list_(pa.int32())),  # [S]
    pa.field("prompt_patches", pa.large_binary()),  # [P, 3, patch, patch] uint8
    pa.field("prompt_grid_hw", pa.list_(pa.int32())),  # [I, 2], flattened
    pa.field("prompt_image_digests", pa.list_(pa.binary(16))),  # [I]
    pa.field("seed", pa.int64()),
    *MEDIA_FIELDS,
    pa.field("status", pa.string()),
    pa.field("error_code", pa.string()),
    pa.field("error", pa.string()),
)

# Where a row of the input becomes several prompts: the number of each prompt in its row, from 0 on,
# the number of the named prompt that it asks, and the seconds or pages that it shows. The last one
# is null for a row that failed before it had windows.
PROMPT_NUMBER_FIELD = pa.field("prompt_part", pa.int32())
NAMED_PROMPT_FIELD = pa.field("prompt_question", pa.int32())
WINDOW_FIELD = pa.field(
    "prompt_window", pa.struct([("start", pa.float64()), ("end", pa.float64())])
)

# Of inputs without an id column: a digest of what was read of the row, by which the rows of a file
# that changes between runs are recognized.
DIGEST_FIELD = pa.field("row_digest", pa.string())

_ADDED = (
    DIGEST_FIELD,
    *RESULT_FIELDS,
    *PREPARED_FIELDS,
    PROMPT_NUMBER_FIELD,
    NAMED_PROMPT_FIELD,
    WINDOW_FIELD,
)
_RESERVED = frozenset(field.name for field in _ADDED)


@dataclass(frozen=True, kw_only=True)
class InputColumns:
    """The roles of the columns of an input; None where no column has the role."""

    video: str = "video"
    id: str | None = None
    prompt: str | None = None
    start_s: str | None = None
    end_s: str | None = None
    fields: tuple[str, ...] = ()  # columns that the texts of prompts name
    lists: tuple[str, ...] = ()  # columns with lists of texts, each text a prompt of its own

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that have a role."""
        roles = (self.video, self.id, self.prompt, self.start_s, self.end_s)
        return tuple(name for name in roles if name is not None)

    @property
    def required(self) -> tuple[str, ...]:
        """The columns that every file of the input must have."""
        return (self.video,) if self.id is None else (self.video, self.id)


@dataclass(frozen=True, kw_only=True)
class RowSchema:
    """The columns that a run reads of each row, and those that it writes."""

    columns: InputColumns
    read: pa.Schema  # columns of the input, with their types in memory
    carried: pa.Schema  # columns of the input that the output repeats, with their types there
    extra: tuple[pa.Field, ...] = ()  # result columns beside `RESULT_FIELDS`
    # What versions wrote that did not carry partition columns, further members of media structs,
    # nor digests; None if that is the same.
    former: "RowSchema | None" = None

    @property
    def output(self) -> pa.Schema:
        """The schema of every part file: the row's id, the carried columns, the results."""
        row_id, *results = RESULT_FIELDS
        return pa.schema([row_id, *self.carried, *results, *self.extra])

    def carry(self, rows: pa.Table) -> pa.Table:
        """Take the carried columns, cast for the output, from a table with the `read` columns."""
        # Casting a struct to fewer members drops the others, here the media bytes.
        arrays = [rows[field.name].cast(field.type) for field in self.carried]
        return pa.Table.from_arrays(arrays, schema=self.carried)


def check_input(
    schema: pa.Schema,
    columns: InputColumns,
    *,
    carry: Sequence[str] | None = None,
    keep_media: bool = False,
    extra: Sequence[pa.Field] = (),
    partitions: Collection[str] = (),
    has_digests: bool = False,
) -> RowSchema:
    """Decide what to read and write for an input with the merged `schema` of its files.

    `carry` are the columns of the input to write beside the results, None means all; `keep_media`
    writes the media bytes too. `extra` are result columns beside `RESULT_FIELDS`. `partitions` are
    the columns that the names of folders give. `has_digests` adds `DIGEST_FIELD`.

    Raises:
        ValueError: a column is missing, has the wrong type, or cannot be written; the message
            names the column, its type and what to do.
    """
    _check_roles(schema, columns)
    carried = list(_carried_fields(schema, columns, carry, extra, keep_media=keep_media))
    _check_template_columns(schema, columns)

    def row_schema(fields: Sequence[pa.Field], former: RowSchema | None) -> RowSchema:
        return RowSchema(
            columns=columns,
            read=_read_schema(schema, columns, fields),
            carried=pa.schema(fields),
            extra=tuple(extra),
            former=former,
        )

    was_carried = [
        was
        for field in carried
        if field.name not in partitions
        and (was := _as_before(field, is_media=field.name == columns.video)) is not None
    ]
    if has_digests:
        carried.append(DIGEST_FIELD)
    return row_schema(carried, row_schema(was_carried, None) if was_carried != carried else None)


def _as_before(field: pa.Field, *, is_media: bool) -> pa.Field | None:
    """Return a carried column as former versions wrote it; None if they did not."""
    if not is_media:
        return field
    kind = types.former_media_type(field.type)
    return None if kind is None else field.with_type(kind)


def _check_roles(schema: pa.Schema, columns: InputColumns) -> None:
    """Refuse columns that are missing, or whose type does not fit their role."""
    media = (
        "string (a path or URI), binary (the media bytes), struct<bytes: binary, path: string>, or "
        "a list of one of these"
    )
    _check_type(schema, columns.video, "media", types.is_media, media)
    whole = "string, integer, decimal, UUID, date or timestamp"
    _check_type(schema, columns.id, "id", types.is_id, whole)
    _check_type(schema, columns.prompt, "prompt", types.is_prompt, "string")
    for role, name in (("start", columns.start_s), ("end", columns.end_s)):
        seconds = "seconds (integer, floating point or decimal), a duration or a time of day"
        _check_type(schema, name, role, types.is_seconds, seconds)


def _carried_fields(
    schema: pa.Schema,
    columns: InputColumns,
    carry: Sequence[str] | None,
    extra: Sequence[pa.Field],
    *,
    keep_media: bool,
) -> Iterator[pa.Field]:
    """Yield the fields of the output that copy input columns; arguments as in `check_input`."""
    # `dict.fromkeys` keeps a name that --columns repeats once, at its first place.
    for name in dict.fromkeys(schema.names if carry is None else carry):
        field = _field(schema, name, "carried")
        if schema.names.count(name) > 1:
            raise ValueError(f"the input has several columns named {name!r}; rename them")
        if name == columns.id == "row_id":
            continue  # the output's own row_id column has its values
        if name in _RESERVED.union(field.name for field in extra):
            raise ValueError(
                f"the input column {name!r} has the name of a column that the output or the "
                f"pipeline adds; rename it, or choose the columns to carry with "
                f"--columns {_carriable_names(schema, columns)}"
            )
        kind = types.written_type(field, is_media=name == columns.video, keep_media=keep_media)
        if kind is not None:
            yield pa.field(name, kind, nullable=field.nullable)
        elif carry is not None:
            raise ValueError(
                f"column {name!r} holds the media bytes; add --keep-media to write them again, "
                "or leave it out of --columns"
            )


def _check_template_columns(schema: pa.Schema, columns: InputColumns) -> None:
    """Refuse columns that prompts name and that are missing or cannot be put into a text."""
    for name in columns.fields:
        if name not in schema.names:
            (nearest,) = difflib.get_close_matches(name, schema.names, n=1, cutoff=0.0)
            raise ValueError(
                f"a prompt names {{{name}}}, and the input has no such column; the nearest is "
                f"{nearest!r}"
            )
        _check_type(
            schema, name, "template", types.is_printable, "text, a number, a boolean or a time"
        )
    for name in columns.lists:
        _check_type(schema, name, "list of texts", types.is_texts, "a list of strings")


def _read_schema(
    schema: pa.Schema, columns: InputColumns, carried: Sequence[pa.Field]
) -> pa.Schema:
    """Return the columns that have a role, are named by prompts or are carried; others cost I/O."""
    wanted = {*columns.names, *columns.fields, *columns.lists} | {field.name for field in carried}
    digest = [DIGEST_FIELD] if DIGEST_FIELD.name in wanted else []
    return pa.schema(
        [
            *(
                pa.field(field.name, types.read_type(field, is_media=field.name == columns.video))
                for field in schema
                if field.name in wanted and field.name != DIGEST_FIELD.name
            ),
            *digest,
        ]
    )


def _field(schema: pa.Schema, name: str, role: str) -> pa.Field:
    if name not in schema.names:
        nearest = difflib.get_close_matches(name, schema.names, n=1)
        raise ValueError(
            f"the input has no {role} column {name!r}; its columns are "
            f"{', '.join(f'{field.name} ({field.type})' for field in schema)}"
            + "".join(f"; did you mean {name!r}?" for name in nearest)
        )
    # By index, since `schema.field(name)` refuses a name that several columns have.
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
    if not is_right(types.plain(field.type)):
        raise ValueError(f"the {role} column {name!r} is {field.type}; it must be {allowed}")


def _carriable_names(schema: pa.Schema, columns: InputColumns) -> str:
    """Return names that --columns could be given, as it is typed in a shell."""
    free = [name for name in schema.names if name not in _RESERVED and name != columns.video]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(free or [columns.video])
    return shlex.quote(line.getvalue())
