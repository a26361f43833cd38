"""Digests of rows depend on their values alone."""

import datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from pipeline.input.row_digest import row_digests

BAD_TEXT = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"\xfe"]).buffers())

DISTINCT = [
    ["a", "b", None, ""],
    [b"a", b"ab", None],
    [1, 2, None, -1],
    [1.5, float("nan"), None],
    [True, False, None],
    [Decimal("1.5"), Decimal("2.5")],
    [datetime.date(2020, 1, 1), None],
    pa.array([2**62, 2**62 + 1, 0], pa.timestamp("s")),
    [["a", "b"], ["ab"], [], None, ["a", None, "b"], [None]],
    [[1.0, 2.0], [1.0], [], None, [1.0, None]],
    [{"bytes": b"x", "path": None}, {"bytes": None, "path": "x"}, None],
    [[{"path": "a"}, {"path": "b"}], [{"path": "b"}, {"path": "a"}]],
    BAD_TEXT,
]


@pytest.mark.parametrize("values", DISTINCT, ids=str)
def test_distinct_values_have_distinct_digests(values):
    digests = row_digests(pa.table({"x": values})).to_pylist()

    assert len(set(digests)) == len(digests)


def test_a_digest_does_not_depend_on_place_neighbours_or_widths():
    table = pa.table({"a": ["x", "y", "x"], "v": [[1.0, 2.0], [3.0], [1.0, 2.0]], "n": [1, 2, 1]})
    wide = pa.schema(
        [("n", pa.int16()), ("v", pa.large_list(pa.float32())), ("a", pa.large_string())]
    )

    whole = row_digests(table).to_pylist()
    assert whole[0] == whole[2] != whole[1]
    assert row_digests(table.slice(1)).to_pylist() == whole[1:]
    assert row_digests(table.select(["n", "v", "a"]).cast(wide)).to_pylist() == whole


def test_a_value_does_not_move_to_another_column():
    one = row_digests(pa.table({"a": ["x"], "b": pa.array([None], pa.string())}))
    other = row_digests(pa.table({"a": pa.array([None], pa.string()), "b": ["x"]}))

    assert one != other


def test_digests_stay_from_version_to_version():
    """An output stores them, so other digests would make all its rows new."""
    table = pa.table({"video": [b"clip"], "n": [7], "tags": [["a"]], "f": [np.float32(0.5)]})

    assert row_digests(table).to_pylist() == ["462f065595b6a15f"]
