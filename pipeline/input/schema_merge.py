"""Merges the schemas of input files that differ a little.

Files that several jobs wrote may have the same columns with other widths or encodings, or lack
columns that were all null. Types are widened where no value changes; others are refused by name.
pyarrow's own permissive merge is not used, since it turns int64 and double into double and string
and binary into binary without a word.
"""

from collections.abc import Collection, Sequence

import pyarrow as pa

from pipeline.column_types import cast, members, plain

_INTEGERS = (
    (pa.types.is_signed_integer, (pa.int8(), pa.int16(), pa.int32(), pa.int64())),
    (pa.types.is_unsigned_integer, (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())),
)
_DIGITS = {  # of the largest integers, in decimals
    pa.int8(): 3, pa.int16(): 5, pa.int32(): 10, pa.int64(): 19,
    pa.uint8(): 3, pa.uint16(): 5, pa.uint32(): 10, pa.uint64(): 20,
}  # fmt: skip
_MAX_DIGITS = (38, 76)  # of decimal128 and decimal256
_UNITS = ("s", "ms", "us")
_FLOATS = (pa.float16(), pa.float32(), pa.float64())


def unify(
    schemas: Sequence[tuple[str, pa.Schema]],
    wanted: Collection[str] | None,
    required: Collection[str] = (),
) -> pa.Schema:
    """Merge the schemas of files, each given with its path, into one that holds all their rows.

    `wanted` are the columns that will be read; others may differ freely, and None means all. Every
    file must have the `required` columns.

    Raises:
        ValueError: a column has types that cannot be merged, or a file lacks a column that is
            required or not nullable; the message names both files. Or a file has two columns of
            one name.
    """
    fields: dict[str, tuple[pa.Field, str]] = {}  # and the first file that has the field
    for path, schema in schemas:
        for name in schema.names:
            if schema.names.count(name) > 1:
                raise ValueError(f"{path} has several columns named {name!r}; rename them")
        for field in schema:
            if field.name not in fields:
                fields[field.name] = (field, path)
            elif wanted is None or field.name in wanted:
                known, first = fields[field.name]
                fields[field.name] = (_wider(known, first, field, path), first)
    for name, (field, first) in fields.items():
        lacking = [path for path, schema in schemas if name not in schema.names]
        matters = wanted is None or name in wanted
        if lacking and matters and (name in required or not field.nullable):
            raise ValueError(f"{lacking[0]} has no column {name!r}, which {first} has")
        fields[name] = (field.with_nullable(field.nullable or bool(lacking)), first)
    return pa.schema([field for field, _ in fields.values()])


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Cast `rows` to the columns of `schema`; columns that `rows` lacks are null."""
    columns = [
        cast(rows[field.name], field.type)
        if field.name in rows.column_names
        else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _wider(known: pa.Field, first: str, field: pa.Field, path: str) -> pa.Field:
    kind = wider(plain(known.type), plain(field.type))
    if kind is None:
        raise ValueError(
            f"column {field.name!r} is {field.type} in {path} and {known.type} in {first}, which "
            "cannot be one column; write one of the files again, or leave the column out with "
            "--columns"
        )
    return pa.field(field.name, kind, nullable=known.nullable or field.nullable)


def wider(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return the type that holds the values of both types unchanged; None if there is none."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if pa.types.is_decimal(a) or pa.types.is_decimal(b):
        return _wider_decimal(a, b)
    if pa.types.is_temporal(a) and pa.types.is_temporal(b):
        return _wider_time(a, b)
    for is_kind, ordered in _INTEGERS:
        if is_kind(a) and is_kind(b):
            return max(a, b, key=ordered.index)
    if pa.types.is_integer(a) and pa.types.is_integer(b):
        unsigned = a if pa.types.is_unsigned_integer(a) else b
        return None if unsigned == pa.uint64() else pa.int64()  # int64 holds all of uint32
    if a in _FLOATS and b in _FLOATS:
        return max(a, b, key=_FLOATS.index)
    if {a, b} == {pa.string(), pa.large_string()}:
        return pa.large_string()
    if {a, b} == {pa.binary(), pa.large_binary()}:
        return pa.large_binary()
    return _wider_nested(a, b)


def _wider_decimal(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return the decimal type with all digits of both, before and after the point."""
    digits = [
        (kind.precision - kind.scale, kind.scale)
        if pa.types.is_decimal(kind)
        else (_DIGITS.get(kind), 0)
        for kind in (a, b)
    ]
    if any(before is None for before, _ in digits):
        return None
    before, after = (max(counts) for counts in zip(*digits, strict=True))
    if before + after <= _MAX_DIGITS[0]:
        return pa.decimal128(before + after, after)
    return pa.decimal256(before + after, after) if before + after <= _MAX_DIGITS[1] else None


def _wider_time(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return the finer of two units of timestamps or durations.

    Nanoseconds are left out: they end in the year 2262, and 9999 is often written for "never".
    """
    for is_kind in (pa.types.is_timestamp, pa.types.is_duration):
        if is_kind(a) and is_kind(b) and {a.unit, b.unit} <= set(_UNITS):
            finer = max(a, b, key=lambda kind: _UNITS.index(kind.unit))
            same_zone = not pa.types.is_timestamp(a) or a.tz == b.tz
            return finer if same_zone else None
    return None


def _wider_nested(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if pa.types.is_list(a) and pa.types.is_list(b):
        item = wider(a.value_type, b.value_type)
        return None if item is None else pa.list_(item)
    if not (pa.types.is_struct(a) and pa.types.is_struct(b)):
        return None
    merged: dict[str, pa.DataType] = {}
    for kind in (a, b):
        for member in members(kind):
            known = merged.get(member.name)
            both = member.type if known is None else wider(known, member.type)
            if both is None:
                return None
            merged[member.name] = both
    return pa.struct(list(merged.items()))
