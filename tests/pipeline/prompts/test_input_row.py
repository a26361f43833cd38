"""A row's values are read by their roles, whatever types their columns have."""

from datetime import time, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest

from pipeline.input.schema_merge import conform
from pipeline.prompts.input_row import read_row
from pipeline.prompts.template import fill
from pipeline.schema import InputColumns, check_input


def row_of(index=0, *, roles=None, **columns):
    names = {name: pa.array(values) for name, values in columns.items()}
    rows = pa.table({"video": ["a.mp4"] * 2, **names})
    roles = InputColumns(**(roles or {}))
    read = conform(rows, check_input(rows.schema, roles).read)
    return read_row(read.add_column(0, "row_id", pa.array(["r0", "r1"])), index, roles)


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        pytest.param([2, None], 2, id="integers"),
        pytest.param([Decimal("2.250"), None], 2.25, id="decimals"),
        pytest.param(pa.array([2250, None], pa.duration("ms")), 2.25, id="durations"),
        pytest.param([timedelta(hours=1, seconds=2.5), None], 3602.5, id="long durations"),
        pytest.param([time(0, 1, 2, 500_000), None], 62.5, id="times of day"),
        pytest.param(pa.array([2_000_000_001, None], pa.time64("ns")), 2.000000001, id="ns"),
        pytest.param(pa.nulls(2), None, id="null throughout"),
    ],
)
def test_spans_are_seconds(values, seconds):
    roles = {"start_s": "at", "end_s": "at"}

    assert row_of(0, roles=roles, at=values).span_s == (seconds, seconds)
    assert row_of(1, roles=roles, at=values).span_s == (None, None)


def test_a_prompt_column_that_is_null_throughout_leaves_the_prompt_to_the_run():
    row = row_of(roles={"prompt": "ask"}, ask=pa.nulls(2))

    assert row.prompt is None
    row.require_usable()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        pytest.param([Decimal("1.50"), None], "1.50", id="decimals"),
        pytest.param(
            pa.array([1, None], pa.timestamp("ns", "UTC")),
            "1970-01-01 00:00:00.000000001Z",
            id="timestamps",
        ),
        pytest.param(pa.array([1, None], pa.date32()), "1970-01-02", id="dates"),
        pytest.param(pa.array([1, None], pa.time64("ns")), "00:00:00.000000001", id="times"),
        pytest.param(pa.array([90, None], pa.duration("s")), "0:01:30", id="durations"),
        pytest.param(pa.array([bytes(16), None], pa.uuid()), f"{'0' * 8}-0000", id="UUIDs"),
        pytest.param([True, None], "True", id="booleans"),
        pytest.param([0.1, None], "0.1", id="floats"),
    ],
)
def test_values_are_written_into_prompts(values, text):
    row = row_of(roles={"fields": ("the.value",)}, **{"the.value": values})

    assert fill("{the.value}", row.values).startswith(text)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(pa.array([0, None], pa.timestamp("s", "Nowhere/At_All")), id="time zone"),
        pytest.param(pa.array([2**62, None], pa.timestamp("s")), id="no year of the calendar"),
        pytest.param(pa.array([2**62, None], pa.duration("s")), id="longer than Python's"),
    ],
)
def test_a_value_that_cannot_be_read_is_its_rows_error(values):
    roles = {"fields": ("x",)}
    row = row_of(roles=roles, x=values)

    assert row.error is not None
    assert row.error.message.startswith("the value in column 'x' cannot be read: ")
    assert row_of(1, roles=roles, x=values).error is None
