"""The Arrow types that columns of an input may have, and the types that they get in the output.

Most functions take a type in its `plain` form: dictionaries decoded, views and Arrow's own
extension types replaced.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_STORED = ("arrow.uuid", "arrow.json", "arrow.fixed_shape_tensor")
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_NO_DASH = [place for place in range(36) if place not in (8, 13, 18, 23)]  # of a UUID's text
_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def plain(kind: pa.DataType) -> pa.DataType:
    """Decode the dictionaries of a type, and replace its views and Arrow's own extension types.

    A UUID becomes text, and its 16 bytes within lists and structs. JSON becomes text, a tensor a
    list. Views are replaced because several kernels of pyarrow, such as `take`, do not support
    them.
    """
    return pa.string() if is_uuid(kind) else _plain(kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.bool8":
        return pa.bool_()
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name in _STORED:
        return _plain(kind.storage_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([member.with_type(_plain(member.type)) for member in members(kind)])
    if is_list(kind):
        item = kind.value_field.with_type(_plain(kind.value_type))
        return pa.list_(item) if pa.types.is_list(kind) else pa.large_list(item)
    return kind


def cast(column: pa.ChunkedArray | pa.Array, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    """Cast a column as a file has it to a type that `plain` or a merge of schemas gave it."""
    if not is_uuid(column.type) or not is_text(kind):
        return column.cast(kind)
    # pyarrow would make text of the 16 bytes themselves.
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    texts = pa.chunked_array([_uuid_texts(each.storage) for each in chunks], pa.string()).cast(kind)
    return texts if isinstance(column, pa.ChunkedArray) else texts.combine_chunks()


def _uuid_texts(values: pa.FixedSizeBinaryArray) -> pa.StringArray:
    """Write UUIDs of 16 bytes as text of 36 characters; null stays null."""
    num = len(values)
    whole = pa.concat_arrays([values.fill_null(bytes(16)), pa.array([bytes(16)], values.type)])
    raw = np.frombuffer(whole.buffers()[1], np.uint8)[: 16 * num].reshape(num, 16)
    texts = np.full((num + 1, 36), ord("-"), np.uint8)
    texts[:num, _NO_DASH] = _HEX[np.stack([raw >> 4, raw & 15], axis=-1)].reshape(num, 32)
    wide = pa.Array.from_buffers(pa.binary(36), num, [None, pa.py_buffer(texts)])
    text = wide.cast(pa.binary()).cast(pa.string())
    return pc.call_function("if_else", [values.is_valid(), text, pa.scalar(None, pa.string())])


def seconds_of(value: pa.Scalar) -> float | None:
    """Return a number, a decimal, a duration or a time of day as seconds; None for null."""
    kind = value.type
    if not value.is_valid:
        return None
    if pa.types.is_duration(kind) or pa.types.is_time(kind):
        return value.value / _PER_S[kind.unit]
    return float(value.as_py()) if pa.types.is_decimal(kind) else value.as_py()


def text_of(value: pa.Scalar) -> object:
    """Return a value for the text of a prompt, whose `str` is what is written; None for null.

    Raises:
        ValueError, OverflowError, pa.ArrowException: a time cannot be written, such as one in a
            time zone that is not known here.
    """
    is_clock = pa.types.is_timestamp(value.type) or pa.types.is_time(value.type)
    if not is_clock or not value.is_valid:
        return value.as_py()
    text = value.cast(pa.string()).as_py()  # to the nanosecond, which Python's times do not have
    if text.startswith("<"):  # Arrow's own remark in place of an error
        raise ValueError(text.strip("<>"))
    return text


def carried_type(field: pa.Field) -> pa.DataType:
    """Return the `plain` type of a column that is copied to the output.

    Raises:
        ValueError: the output cannot hold such a type; the message names the column.
    """
    kind = plain(field.type)
    if _is_unsupported(kind):
        raise ValueError(
            f"column {field.name!r} has type {field.type}, which cannot be carried to the output; "
            "choose the columns to carry with --columns"
        )
    return kind


def read_type(field: pa.Field, *, is_media: bool) -> pa.DataType:
    """Return the type of a column in memory.

    Media bytes get 64-bit offsets, since a few rows of long videos exceed the 2 GiB that 32-bit
    offsets can address.
    """
    kind = carried_type(field)
    if not is_media or is_text(kind):
        return kind
    if is_bytes(kind):
        return pa.large_binary()
    if not pa.types.is_struct(kind):
        return kind
    return pa.struct(
        member.with_type(pa.large_binary()) if is_bytes(member.type) else member
        for member in members(kind)
    )


def written_type(field: pa.Field, *, is_media: bool, keep_media: bool) -> pa.DataType | None:
    """Return the type of a carried column in the output; None for media bytes that are dropped.

    Of structs with the bytes of media, all other members stay, in lists too.
    """
    kind = carried_type(field)
    if keep_media:
        return read_type(field, is_media=is_media)
    return _without_bytes(kind) if is_media else kind


def former_media_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type that former versions wrote for media of a written type; None for no column.

    They wrote only `path` and `bytes` of a struct, and lists of structs only with their bytes.
    """
    if is_list(kind):
        item = kind.value_type
        has_bytes = any(member.name == "bytes" for member in members(item))
        return kind if has_bytes or not pa.types.is_struct(item) else None
    if not pa.types.is_struct(kind):
        return kind
    kept = [member for member in members(kind) if member.name in ("bytes", "path")]
    return pa.struct(kept) if kept else None


def _without_bytes(kind: pa.DataType) -> pa.DataType | None:
    if is_bytes(kind):
        return None
    if is_list(kind):
        item = _without_bytes(kind.value_type)
        if item is None:
            return None
        field = kind.value_field.with_type(item)
        return pa.list_(field) if pa.types.is_list(kind) else pa.large_list(field)
    if pa.types.is_struct(kind):
        kept = [member for member in members(kind) if member.name != "bytes"]
        return pa.struct(kept) if kept else None
    return kind


def members(kind: pa.DataType) -> list[pa.Field]:
    """Return the fields of a nested type; a type that is not nested has none."""
    return [kind.field(index) for index in range(kind.num_fields)]


def is_media(kind: pa.DataType) -> bool:
    """Whether a column can hold media: paths, bytes, structs of the two, or lists of one of these.

    The struct is the one of Hugging Face's `datasets`: `bytes`, `path` or both; others are ignored.
    """
    if is_list(kind):
        return not is_list(kind.value_type) and is_media(kind.value_type)
    if not pa.types.is_struct(kind):
        return is_text(kind) or is_bytes(kind)
    types = {member.name: member.type for member in members(kind)}
    return (
        bool(types.keys() & {"bytes", "path"})
        and is_bytes(types.get("bytes", pa.binary()))
        and is_text(types.get("path", pa.string()))
    )


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists of any length."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether values are text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_texts(kind: pa.DataType) -> bool:
    """Whether values are lists of texts."""
    return is_list(kind) and is_text(kind.value_type)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes of any length."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def is_number(kind: pa.DataType) -> bool:
    """Whether values are integers or floating point numbers."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def is_uuid(kind: pa.DataType) -> bool:
    """Whether values are UUIDs, by Arrow's extension type."""
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.uuid"


def is_id(kind: pa.DataType) -> bool:
    """Whether values can name rows: each has one text, and equal texts are equal values."""
    return (
        is_text(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_date(kind)
        or pa.types.is_timestamp(kind)
        or pa.types.is_null(kind)
    )


def is_prompt(kind: pa.DataType) -> bool:
    """Whether values are texts, or all null."""
    return is_text(kind) or pa.types.is_null(kind)


def is_seconds(kind: pa.DataType) -> bool:
    """Whether `seconds_of` understands values; null is no bound."""
    return (
        is_number(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_duration(kind)
        or pa.types.is_time(kind)
        or pa.types.is_null(kind)
    )


def is_printable(kind: pa.DataType) -> bool:
    """Whether values can be put into the text of a prompt: text, numbers, booleans, times."""
    return (
        is_text(kind)
        or is_number(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_temporal(kind)
    )


def _is_unsupported(kind: pa.DataType) -> bool:
    """Whether an extension or union type, or a dictionary that `plain` left, is in `kind`."""
    return (
        isinstance(kind, pa.BaseExtensionType)
        or pa.types.is_union(kind)
        or pa.types.is_dictionary(kind)
        or any(_is_unsupported(member.type) for member in members(kind))
    )
