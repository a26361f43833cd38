"""The input's columns are checked, and the output's are fixed, before a row is read."""

import shlex
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from jobs.cli.options import parse_names
from pipeline.input.schema_merge import conform
from pipeline.schema import RESULT_FIELDS, SAMPLES_FIELD, InputColumns, check_input

HF_VIDEO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        HF_VIDEO,
        pa.struct([("path", pa.large_string())]),
        pa.struct([("bytes", pa.large_binary())]),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_every_documented_form_of_the_video_column_is_taken(kind):
    row_schema = check_input(pa.schema([("video", kind)]), InputColumns())

    assert row_schema.read.names == ["video"]


def test_results_follow_the_carried_columns():
    schema = pa.schema([("video", pa.string()), ("title", pa.string()), ("clip_no", pa.int16())])

    output = check_input(schema, InputColumns()).output

    assert output.names == [
        "row_id",
        *("video", "title", "clip_no"),
        *(field.name for field in RESULT_FIELDS[1:]),
    ]
    assert output.field("clip_no").type == pa.int16()


@pytest.mark.parametrize(
    ("kind", "keep_media", "written"),
    [
        pytest.param(pa.binary(), False, None, id="bytes stay behind"),
        pytest.param(pa.binary(), True, pa.large_binary(), id="bytes are kept on request"),
        pytest.param(HF_VIDEO, False, pa.struct([("path", pa.string())]), id="a struct keeps path"),
        pytest.param(
            HF_VIDEO,
            True,
            pa.struct([("bytes", pa.large_binary()), ("path", pa.string())]),
            id="a struct keeps all on request",
        ),
        pytest.param(pa.struct([("bytes", pa.binary())]), False, None, id="a struct of bytes only"),
        pytest.param(pa.string(), False, pa.string(), id="a path"),
    ],
)
def test_media_bytes_are_written_only_on_request(kind, keep_media, written):
    row_schema = check_input(pa.schema([("video", kind)]), InputColumns(), keep_media=keep_media)

    assert row_schema.read.names == ["video"]
    assert row_schema.carried == pa.schema([] if written is None else [("video", written)])


def test_a_carried_struct_loses_its_bytes_and_keeps_its_nulls():
    video = [{"bytes": b"x", "path": "a.mp4"}, None, {"bytes": b"y", "path": None}]
    rows = pa.table({"video": pa.array(video, HF_VIDEO), "n": pa.array([1, 2, 3], pa.int8())})

    carried = check_input(rows.schema, InputColumns()).carry(rows.slice(1))

    assert carried.to_pylist() == [{"video": None, "n": 2}, {"video": {"path": None}, "n": 3}]


def test_dictionary_and_nested_columns_pass_through():
    nested = pa.list_(pa.struct([("t", pa.float32()), ("tags", pa.map_(pa.string(), pa.int8()))]))
    schema = pa.schema(
        [
            ("video", pa.string()),
            ("nested", nested),
            ("label", pa.dictionary(pa.int8(), pa.string())),
        ]
    )
    rows = pa.table(
        {
            "video": ["a"],
            "nested": pa.array([[{"t": 1.0, "tags": [("k", 1)]}]], nested),
            "label": pa.array(["cat"]).dictionary_encode().cast(schema.field("label").type),
        },
        schema=schema,
    )
    row_schema = check_input(schema, InputColumns())

    assert row_schema.output.field("label").type == pa.string()
    assert row_schema.carry(rows.cast(row_schema.read)).to_pylist() == rows.to_pylist()


def test_columns_are_chosen_by_name_and_the_rest_is_not_read():
    schema = pa.schema(
        [("video", pa.binary()), ("a", pa.int8()), ("b", pa.int8()), ("c", HF_VIDEO)]
    )

    row_schema = check_input(schema, InputColumns(), carry=["b"])

    assert row_schema.read.names == ["video", "b"]
    assert row_schema.carried.names == ["b"]


def test_an_id_column_named_row_id_becomes_the_output_row_id():
    schema = pa.schema([("row_id", pa.int64()), ("video", pa.string())])

    output = check_input(schema, InputColumns(id="row_id")).output

    assert output.names[:2] == ["row_id", "video"]
    assert output.field("row_id").type == pa.string()


@pytest.mark.parametrize(
    ("fields", "columns", "message"),
    [
        pytest.param(
            {"clip": pa.string(), "n": pa.int64()},
            {},
            r"no media column 'video'; its columns are clip \(string\), n \(int64\)",
            id="no video column",
        ),
        pytest.param(
            {"video_path": pa.string(), "n": pa.int64()},
            {},
            r"its columns are video_path \(string\), n \(int64\); did you mean 'video_path'\?",
            id="another name for the video column",
        ),
        pytest.param(
            {"video": pa.list_(pa.list_(pa.binary()))},
            {},
            r"'video' is list<.*>; it must be string .* binary .* struct.* or a list",
            id="video of a wrong type",
        ),
        pytest.param(
            {"video": pa.struct([("url", pa.string())])},
            {},
            "it must be string",
            id="struct without bytes or path",
        ),
        pytest.param(
            {"video": pa.string(), "q": pa.int64()},
            {"prompt": "q"},
            "the prompt column 'q' is int64; it must be string",
            id="prompt of a wrong type",
        ),
        pytest.param(
            {"video": pa.string(), "key": pa.float64()},
            {"id": "key"},
            "the id column 'key' is double; it must be string, integer, decimal, UUID",
            id="id of a wrong type",
        ),
        pytest.param(
            {"video": pa.string(), "t": pa.string()},
            {"end_s": "t"},
            "the end column 't' is string; it must be seconds .*, a duration or a time of day",
            id="end of a wrong type",
        ),
        pytest.param(
            {"video": pa.string(), "caption": pa.string(), "title": pa.string()},
            {},
            "'caption' has the name of a column that the output .* --columns title",
            id="a column with an output's name",
        ),
        pytest.param(
            {"video": pa.string(), "x": pa.dense_union([pa.field("a", pa.int8())])},
            {},
            "'x' has type .*union.*, which cannot be carried .* --columns",
            id="a union",
        ),
        pytest.param(
            {"video": pa.string(), "x": pa.dense_union([pa.field("a", pa.int8())])},
            {"id": "x"},
            "the id column 'x' is dense_union.*; it must be string, integer",
            id="an id that is a union",
        ),
        pytest.param(
            {"video": pa.null()},
            {},
            "the media column 'video' is null; it must be string",
            id="media null throughout",
        ),
        pytest.param(
            {"row_id": pa.string()},
            {"video": "row_id"},
            "the media column must not be named row_id",
            id="video column named row_id",
        ),
    ],
)
def test_a_wrong_input_is_refused_by_name(fields, columns, message):
    with pytest.raises(ValueError, match=message):
        check_input(pa.schema(list(fields.items())), InputColumns(**columns))


@pytest.mark.parametrize("as_video", [True, False])
def test_a_column_of_pickled_objects_is_refused(as_video):
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    pickled = ArrowPythonObjectType()
    fields = [("video", pickled)] if as_video else [("video", pa.string()), ("x", pickled)]
    message = "the media column 'video' is extension" if as_video else "cannot be carried"
    with pytest.raises(ValueError, match=message):
        check_input(pa.schema(fields), InputColumns())


LEROBOT = [("path", pa.string()), ("timestamp", pa.float64())]


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("keep_media", [False, True])
def test_all_members_of_a_media_struct_but_its_bytes_are_carried(as_list, keep_media):
    kind, kept = pa.struct([("bytes", pa.binary()), *LEROBOT]), pa.struct(LEROBOT)
    value = {"bytes": b"x", "path": "a.mp4", "timestamp": 1.5}
    if as_list:
        kind, kept, value = pa.list_(kind), pa.list_(kept), [value]
    rows = pa.table({"video": pa.array([value, None], kind)})

    row_schema = check_input(rows.schema, InputColumns(), keep_media=keep_media)
    carried = row_schema.carry(conform(rows, row_schema.read))["video"]

    without = {"path": "a.mp4", "timestamp": 1.5}
    if not keep_media:
        assert carried.type == kept
        value = [without] if as_list else without
    assert carried.to_pylist() == [value, None]


UUIDS = [uuid.UUID(int=7 << 120), None, uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")]


def test_what_casts_without_loss_is_carried():
    ids = pa.array([None if each is None else each.bytes for each in UUIDS], pa.uuid())
    columns = {
        "video": pa.array(["a", "b", "c"]),
        "id": pa.chunked_array([ids.slice(0, 1), ids.slice(1), ids.slice(0, 0)]),
        "within": pa.ListArray.from_arrays([0, 1, 1, 3], ids),
        "json": pa.array(['{"a": 1}', None, "2"], pa.json_()),
        "flag": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0, 1, None], pa.int8())),
        "gone": pa.nulls(3),
        "price": pa.array([Decimal("1.50"), None, Decimal("2.00")], pa.decimal128(5, 2)),
        "at": pa.array([1, 2, None], pa.timestamp("ns", "UTC")),
    }
    rows = pa.table(columns)

    row_schema = check_input(rows.schema, InputColumns())
    carried = row_schema.carry(conform(rows, row_schema.read))

    assert carried["id"].to_pylist() == [each and str(each) for each in UUIDS]
    within = [each and each.bytes for each in UUIDS]
    assert carried["within"].to_pylist() == [within[:1], [], within[1:]]
    assert carried["json"].to_pylist() == ['{"a": 1}', None, "2"]
    assert carried["flag"].to_pylist() == [False, True, None]
    assert carried["gone"].null_count == 3
    assert carried.select(["price", "at"]) == rows.select(["price", "at"])


@pytest.mark.parametrize("role", ["id", "prompt", "start_s", "end_s"])
def test_a_column_with_a_role_may_be_null_throughout(role):
    schema = pa.schema([("video", pa.string()), ("x", pa.null())])

    roles: dict[str, Any] = {role: "x"}
    assert check_input(schema, InputColumns(**roles)).carried.names == ["video", "x"]


def test_the_advice_can_be_typed():
    schema = pa.schema([(name, pa.string()) for name in ("video", "caption", "task, goal", "it's")])

    with pytest.raises(ValueError, match="--columns ") as refused:
        check_input(schema, InputColumns())
    (names,) = shlex.split(str(refused.value).rpartition("--columns ")[2])
    assert parse_names(names) == ("task, goal", "it's")


def test_choosing_the_media_bytes_needs_keep_media():
    schema = pa.schema([("video", pa.binary())])

    with pytest.raises(ValueError, match="add --keep-media"):
        check_input(schema, InputColumns(), carry=["video"])


def test_a_result_column_that_is_asked_for_stands_last_and_takes_its_name():
    schema = pa.schema([("video", pa.string()), ("samples", pa.int8())])

    assert check_input(schema, InputColumns()).output.field("samples").type == pa.int8()
    with pytest.raises(ValueError, match="the input column 'samples' has the name of a column"):
        check_input(schema, InputColumns(), extra=[SAMPLES_FIELD])
    output = check_input(schema, InputColumns(), carry=[], extra=[SAMPLES_FIELD]).output
    assert output.field(len(output) - 1) == SAMPLES_FIELD


def test_a_column_that_is_chosen_twice_is_written_once():
    schema = pa.schema([("video", pa.string()), ("n", pa.int8())])

    assert check_input(schema, InputColumns(), carry=("n", "video", "n")).carried.names == [
        "n",
        "video",
    ]


def test_views_become_plain_columns():
    schema = pa.schema([("video", pa.string_view()), ("tags", pa.list_(pa.binary_view()))])

    row_schema = check_input(schema, InputColumns())
    assert row_schema.carried.types == [pa.large_string(), pa.list_(pa.large_binary())]


def test_repeated_column_names_are_refused():
    schema = pa.schema([("video", pa.string()), ("a", pa.int8()), ("a", pa.int8())])

    with pytest.raises(ValueError, match="several columns named 'a'"):
        check_input(schema, InputColumns())
