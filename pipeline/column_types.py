"""The Arrow types that columns of an input may have, and the types that they get in the output.

Most functions take a type in its `plain` form: dictionaries decoded, views replaced.
"""

import pyarrow as pa


def plain(kind: pa.DataType) -> pa.DataType:
    """Decode the dictionaries of a type and replace its views, at any depth.

    Views are replaced because several kernels of pyarrow, such as `take`, do not support them.
    """
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([member.with_type(plain(member.type)) for member in members(kind)])
    if is_list(kind):
        item = kind.value_field.with_type(plain(kind.value_type))
        return pa.list_(item) if pa.types.is_list(kind) else pa.large_list(item)
    return kind


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
    """Return the type of a carried column in the output; None for media bytes that are dropped."""
    kind = carried_type(field)
    if not is_media or is_text(kind) or is_texts(kind):
        return kind
    if is_list(kind):
        return kind if keep_media else None
    if is_bytes(kind):
        return pa.large_binary() if keep_media else None
    kept = [
        member.with_type(pa.large_binary()) if member.name == "bytes" else member
        for member in members(kind)
        if member.name == "path" or (member.name == "bytes" and keep_media)
    ]
    return pa.struct(kept) if kept else None


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


def is_id(kind: pa.DataType) -> bool:
    """Whether values can name rows: text or integers."""
    return is_text(kind) or pa.types.is_integer(kind)


def is_printable(kind: pa.DataType) -> bool:
    """Whether values can be put into the text of a prompt: text, numbers or booleans."""
    return is_text(kind) or is_number(kind) or pa.types.is_boolean(kind)


def _is_unsupported(kind: pa.DataType) -> bool:
    """Whether an extension or union type, or a dictionary that `plain` left, is in `kind`."""
    return (
        isinstance(kind, pa.BaseExtensionType)
        or pa.types.is_union(kind)
        or pa.types.is_dictionary(kind)
        or any(_is_unsupported(member.type) for member in members(kind))
    )
