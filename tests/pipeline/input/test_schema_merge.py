"""Files that differ a little are one input; others are refused by name."""

import pyarrow as pa
import pytest

from pipeline.column_types import plain
from pipeline.input.schema_merge import conform, unify, wider

INNER = pa.struct([("a", pa.int32()), ("b", pa.string())])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param(pa.int8(), pa.int32(), pa.int32(), id="integer widths"),
        pytest.param(pa.uint8(), pa.uint16(), pa.uint16(), id="unsigned widths"),
        pytest.param(pa.uint32(), pa.int8(), pa.int64(), id="a sign"),
        pytest.param(pa.uint64(), pa.int8(), None, id="a sign too many"),
        pytest.param(pa.float32(), pa.float64(), pa.float64(), id="float widths"),
        pytest.param(pa.int32(), pa.float64(), None, id="an integer is no float"),
        pytest.param(pa.string(), pa.large_string(), pa.large_string(), id="text"),
        pytest.param(pa.string(), pa.binary(), None, id="text is no bytes"),
        pytest.param(pa.binary(), pa.large_binary(), pa.large_binary(), id="bytes"),
        pytest.param(pa.null(), INNER, INNER, id="all null"),
        pytest.param(
            INNER,
            pa.struct([("b", pa.large_string()), ("c", pa.bool_())]),
            pa.struct([("a", pa.int32()), ("b", pa.large_string()), ("c", pa.bool_())]),
            id="structs",
        ),
        pytest.param(INNER, pa.struct([("a", pa.string())]), None, id="structs that clash"),
        pytest.param(pa.list_(pa.int8()), pa.list_(pa.int64()), pa.list_(pa.int64()), id="lists"),
        pytest.param(pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("us"), id="units of time"),
        pytest.param(pa.duration("ms"), pa.duration("us"), pa.duration("us"), id="units of spans"),
        pytest.param(pa.timestamp("us"), pa.timestamp("ns"), None, id="nanoseconds end in 2262"),
        pytest.param(pa.timestamp("s"), pa.timestamp("us", "UTC"), None, id="time zones"),
        pytest.param(pa.timestamp("s"), pa.date32(), None, id="a date is no timestamp"),
        pytest.param(
            pa.decimal128(5, 2), pa.decimal128(4, 3), pa.decimal128(6, 3), id="digits of decimals"
        ),
        pytest.param(pa.decimal128(5, 2), pa.int64(), pa.decimal128(21, 2), id="decimal, integer"),
        pytest.param(
            pa.decimal128(38, 2), pa.decimal128(38, 0), pa.decimal256(40, 2), id="many digits"
        ),
        pytest.param(pa.decimal256(76, 0), pa.decimal256(76, 1), None, id="too many digits"),
        pytest.param(pa.decimal128(5, 2), pa.float64(), None, id="a decimal is no float"),
        pytest.param(plain(pa.uuid()), pa.string(), pa.string(), id="a UUID and text"),
        pytest.param(pa.list_(pa.int8()), pa.int8(), None, id="a list is no number"),
    ],
)
def test_types_are_widened_without_loss_or_not_at_all(one, other, expected):
    assert wider(one, other) == expected
    if expected is None or not pa.types.is_struct(expected):
        assert wider(other, one) == expected


def test_dictionaries_are_decoded_at_any_depth():
    word = pa.dictionary(pa.int8(), pa.string())

    assert plain(pa.list_(pa.struct([("w", word)]))) == pa.list_(pa.struct([("w", pa.string())]))
    assert plain(pa.large_list(word)) == pa.large_list(pa.string())


def test_columns_that_a_file_lacks_are_null():
    one = pa.schema([pa.field("a", pa.int8(), nullable=False)])
    other = pa.schema([pa.field("a", pa.int16()), pa.field("b", pa.string())])

    schema = unify([("x", one), ("y", other)], None)

    assert schema == pa.schema([("a", pa.int16()), ("b", pa.string())])
    rows = conform(pa.table({"a": pa.array([1], pa.int8())}), schema)
    assert rows.to_pylist() == [{"a": 1, "b": None}]
    assert rows.schema == schema


@pytest.mark.parametrize(
    ("one", "other", "options", "message"),
    [
        pytest.param(
            pa.schema([("a", pa.string())]),
            pa.schema([("a", pa.int8())]),
            {},
            "column 'a' is int8 in y and string in x",
            id="types",
        ),
        pytest.param(
            pa.schema([pa.field("a", pa.int8(), nullable=False)]),
            pa.schema([("b", pa.int8())]),
            {},
            "y has no column 'a', which x has",
            id="never null and missing",
        ),
        pytest.param(
            pa.schema([("a", pa.int8())]),
            pa.schema([("b", pa.int8())]),
            {"required": ["b"]},
            "x has no column 'b', which y has",
            id="required",
        ),
        pytest.param(
            pa.schema([("a", pa.int8())]),
            pa.schema([("a", pa.int8()), ("a", pa.int8())]),
            {},
            "y has several columns named 'a'",
            id="twice",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_both_files(one, other, options, message):
    with pytest.raises(ValueError, match=message):
        unify([("x", one), ("y", other)], None, **options)


def test_columns_that_do_not_matter_may_clash():
    one, other = pa.schema([("a", pa.string())]), pa.schema([("a", pa.int8()), ("b", pa.int8())])

    assert unify([("x", one), ("y", other)], ["b"]).names == ["a", "b"]
