"""Each row becomes a prompt or an error, and never stops the others."""

import gc
import io
import tempfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from model.inputs.processor import Processor
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.frames import Frames
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.prompts.frame_view import FrameView, Timestamps
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.named_prompts import NamedPrompt
from pipeline.prompts.prepare import Prepare
from pipeline.prompts.prompt_builder import frame_items
from pipeline.prompts.prompt_columns import decode_prompt, row_seed
from pipeline.schema import MEDIA_FIELDS, PREPARED_FIELDS, ErrorCode, InputColumns, check_input
from tests.clips import make_video
from tests.pipeline.media.test_media import FACTS
from tests.tiny import tiny_checkpoint

FOUR = FrameSampling(num_frames=4)
COLUMNS = InputColumns(prompt="ask", start_s="from", end_s="to")
DECODER = SandboxedDecoder()  # for all rows but those of other limits
PIXELS_OF_16_TOKENS = 4 * 28 * 4 * 28


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return Processor.from_checkpoint(directory)


@pytest.fixture(scope="module")
def clip():
    return make_video(numbers=range(40))  # 4 s at 10 frames a second


def fetch(value):
    """Fetch media as the real one does, but without files."""
    if value is None:
        raise MediaError(ErrorCode.MEDIA_NULL, "the row has no video")
    return value


@pytest.fixture(scope="module", autouse=True)
def no_process_stays():
    yield
    DECODER.close()


def prepare(processor, rows, *, columns=COLUMNS, opener=fetch, **instructions):
    row_schema = check_input(rows.schema, columns)
    ids = pa.array([f"r{index}" for index in range(rows.num_rows)])
    asked = Instructions(**{"frames": FOUR, **instructions})
    decoder = DECODER if "limits" not in instructions else None
    stage = Prepare(processor, row_schema, asked, opener, decoder=decoder)
    return stage(rows.cast(row_schema.read).add_column(0, "row_id", ids))


def rows_of(*values, **more):
    names = ("video", "ask", "from", "to")
    rows = [dict(zip(names, (*value, *[None] * (4 - len(value))), strict=True)) for value in values]
    types = (pa.binary(), pa.string(), pa.float64(), pa.float64())
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(zip(names, types, strict=True))))
    for name, column in more.items():
        table = table.append_column(name, pa.array(column))
    return table


def text_of(processor, row):
    """The prompt's text with one `#` for each frame."""
    config = processor.config
    ids = row["prompt_token_ids"]
    text, in_image = "", False
    for token_id in ids:
        if token_id == config.media_token_id:
            text += "" if in_image else "#"
            in_image = True
        else:
            in_image = False
            text += processor.tokenizer.decode([token_id])
    return text


def test_pixels_are_freed_with_their_table(processor, clip):
    rows = rows_of([clip, "what moves?"])
    num_bytes = prepare(processor, rows).nbytes
    tracemalloc.start()
    for _ in range(8):
        prepare(processor, rows)
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < num_bytes


def test_a_row_becomes_a_prompt(processor, clip):
    (row,) = prepare(processor, rows_of([clip, "what moves?"])).to_pylist()

    assert row["row_id"] == "r0"
    assert row["status"] is row["error_code"] is row["error"] is None
    assert row["frame_times_s"] == pytest.approx([0.5, 1.5, 2.5, 3.5])
    grid = np.array(row["prompt_grid_hw"]).reshape(-1, 2)
    assert grid.tolist() == [[4, 6]] * 4  # 64x48 pixels, padded to 84x56
    assert len(row["prompt_patches"]) == 4 * 24 * 3 * 14 * 14
    assert row["prompt_token_ids"].count(processor.config.media_token_id) == 4 * 6
    assert "what moves?" in text_of(processor, row)
    assert row["seed"] == row_seed(0, "r0")


def test_the_prompt_is_the_one_that_the_processor_makes(processor, clip):
    rgb = np.zeros((1, 56, 56, 3), np.uint8)
    expected = processor.prompt([rgb[0], "Describe this video in detail."])

    rows = prepare(processor, rows_of([clip]), timestamps="none", max_frame_tokens=4)

    (token_ids,) = rows["prompt_token_ids"].to_pylist()
    num_prefix = token_ids.index(processor.config.media_token_id)
    assert token_ids[:num_prefix] == expected.token_ids[:num_prefix].tolist()
    suffix = expected.token_ids.tolist()[-20:]
    assert token_ids[-20:] == suffix


@pytest.mark.parametrize(
    ("timestamps", "span_s", "expected"),
    [
        pytest.param("none", (0, 4), "####", id="none"),
        pytest.param("seconds", (0, 4), "0.5s #1.5s #2.5s #3.5s #", id="seconds"),
        pytest.param("mm:ss", (2, 4), "[00:02] #[00:02] #[00:03] #[00:03] #", id="clock"),
    ],
)
def test_each_frame_has_its_time_before_it(processor, clip, timestamps, span_s, expected):
    rows = prepare(processor, rows_of([clip, "?", *span_s]), timestamps=timestamps)

    assert expected in text_of(processor, rows.to_pylist()[0]).replace("image", "")


def test_hours_are_told_from_minutes_on():
    times_s = np.array([59.9, 3725.2])
    frames = Frames(rgb=np.zeros((2, 28, 28, 3), np.uint8), timestamps_s=times_s, facts=FACTS)

    texts = [item for item in frame_items([frames], "mm:ss") if isinstance(item, str)]
    assert texts == ["[00:59] ", "[1:02:05] "]


def test_a_span_limits_the_frames(processor, clip):
    rows = prepare(processor, rows_of([clip, None, 1.0, 2.0], [clip, None, 3.0, None]))

    times_s = rows["frame_times_s"].to_pylist()
    assert all(1.0 <= time_s < 2.0 for time_s in times_s[0])
    assert all(3.0 <= time_s < 4.0 for time_s in times_s[1])


def test_frames_have_a_bounded_number_of_tokens(processor):
    large = make_video(numbers=range(10), size=(640, 480))

    rows = prepare(processor, rows_of([large]), max_frame_tokens=6).to_pylist()

    grid = np.array(rows[0]["prompt_grid_hw"]).reshape(-1, 2)
    assert (grid.prod(axis=1) // 4 <= 6).all()


@pytest.mark.parametrize(
    ("duration_s", "budget", "num_frames", "most_tokens"),
    [
        pytest.param(3, 4096, 3, 160, id="a short clip has frames as large as may be"),
        pytest.param(10, 1000, 10, 100, id="the frames of a longer one share the tokens"),
        pytest.param(30, 640, 10, 64, id="those of a long one are fewer rather than tiny"),
        pytest.param(30, 64, 1, 64, id="at least one"),
    ],
)
def test_a_budget_chooses_frames_and_size_from_the_duration(
    processor, duration_s, budget, num_frames, most_tokens
):
    times_s = [float(second) for second in range(duration_s)]
    clip = make_video(numbers=range(duration_s), times_s=times_s, size=(640, 480))
    one_a_second = FrameSampling(num_frames=None, fps=1.0)

    first, again = (
        prepare(processor, rows_of([clip]), frames=one_a_second, max_row_tokens=budget)
        for _ in range(2)
    )

    assert first.equals(again)
    (row,) = first.to_pylist()
    assert len(row["frame_times_s"]) == num_frames
    tokens = row["num_visual_tokens"] // num_frames
    assert 0.75 * most_tokens <= tokens <= most_tokens
    assert row["num_visual_tokens"] <= budget
    assert row["prompt_token_ids"].count(processor.config.media_token_id) == tokens * num_frames
    assert -(-row["frame_width"] // 28) * -(-row["frame_height"] // 28) == tokens


def test_a_row_tells_what_its_media_are(processor, clip):
    still = io.BytesIO()
    Image.new("RGB", (50, 30), "red").save(still, "PNG")
    rows = prepare(processor, rows_of([clip], [still.getvalue()], [b"junk"])).to_pylist()

    names = [field.name for field in MEDIA_FIELDS]
    assert [rows[0][name] for name in names[1:]] == [
        *(64, 48, 24),
        *(4.0, 10.0, 64, 48, "h264", 0, 0, False, False, 0),
    ]
    assert rows[1]["media_stream"] is None  # a picture has none
    assert rows[1]["media_codec"] == "png"
    assert rows[1]["media_duration_s"] == 0.0
    assert rows[1]["frame_times_s"] == [0.0]
    assert all(rows[2][name] is None for name in names)


def test_every_bad_row_is_answered_and_the_good_ones_go_on(processor, clip):
    rows = prepare(
        processor,
        rows_of(
            [clip],
            [None],
            [b""],
            [clip, "  "],
            [clip, None, 3.0, 2.0],
            [clip, None, 99.0, None],
            [clip, "long " * 5000],
            [clip],
            n=range(8),
        ),
    )

    assert rows["error_code"].to_pylist() == [
        None,
        "media_null",
        "media_corrupt",
        "bad_prompt",
        "bad_span",
        "no_frames",
        "prompt_too_long",
        None,
    ]
    assert rows["n"].to_pylist() == list(range(8))
    for row in rows.to_pylist():
        is_bad = row["error_code"] is not None
        assert (row["status"] == "error") == bool(row["error"]) == is_bad
        assert (row["prompt_token_ids"] is None) == (row["seed"] is None) == is_bad


def no_text(*values):
    """A column of text as Parquet reads it, although its bytes are not UTF-8."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values).buffers())


def test_text_that_is_not_utf8_is_an_error_of_its_row(processor, clip):
    paths = pa.table({"video": no_text(b"good.mp4", b"caf\xe9.mp4")})
    rows = prepare(processor, paths, columns=InputColumns(), opener=lambda _: clip)
    assert rows["error_code"].to_pylist() == [None, "media_unreadable"]
    assert "the text in column 'video' is not UTF-8: " in rows["error"][1].as_py()

    prompts = rows_of([clip], [clip]).set_column(1, "ask", no_text(b"\xff", b"What is it?"))
    rows = prepare(processor, prompts)
    assert rows["error_code"].to_pylist() == ["bad_prompt", None]
    assert "the text in column 'ask' is not UTF-8: " in rows["error"][0].as_py()

    columns = InputColumns(start_s="from", end_s="to", fields=("title",))
    titles = rows_of([clip], [clip]).append_column("title", no_text(b"\xff", b"a film"))
    rows = prepare(processor, titles, columns=columns, named_prompts=ASKED)
    assert rows["error_code"].to_pylist() == ["bad_prompt", "bad_prompt", None, None]
    assert rows["prompt_question"].to_pylist() == [0, 1, 0, 1]


def test_an_error_may_quote_a_name_that_is_no_text(processor):
    def opener(value):
        raise MediaError(ErrorCode.MEDIA_UNREADABLE, "there is no caf\udce9.mp4")

    rows = prepare(processor, rows_of([b"x"]), opener=opener)
    assert rows["error"].to_pylist() == ["there is no caf?.mp4"]


def test_limits_are_given_to_the_decoder(processor, clip):
    rows = prepare(processor, rows_of([clip]), limits=MediaLimits(max_duration_s=1.0))

    assert rows["error_code"].to_pylist() == ["media_too_large"]


def test_an_opened_file_is_closed_whatever_happens(processor, clip):
    opened = []

    def opener(value):
        file = tempfile.TemporaryFile()  # noqa: SIM115, the stage closes it
        file.write(value)
        opened.append(file)
        return file

    prepare(processor, rows_of([clip], [b"junk"]), opener=opener)

    assert [file.closed for file in opened] == [True, True]


def test_the_output_has_the_carried_columns_and_what_was_prepared(processor, clip):
    rows = prepare(processor, rows_of([clip], n=[5]))

    assert rows.schema.names == [
        "row_id",
        *("ask", "from", "to", "n"),
        *(field.name for field in PREPARED_FIELDS),
    ]


def test_the_schema_does_not_depend_on_what_happened(processor, clip):
    good, bad = prepare(processor, rows_of([clip])), prepare(processor, rows_of([None]))

    assert good.schema == bad.schema


def test_seeds_depend_on_the_row_and_the_base_seed_alone():
    seeds = {row_seed(base, row_id) for base in (0, 1) for row_id in ("a", "b", "a#1")}

    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert row_seed(0, "a") == 8281872861307171038  # stored: restarts on other machines agree


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"timestamps": "ms"}, "timestamps must be one of none, seconds, mm:ss, got 'ms'"),
        ({"max_frame_tokens": 0}, "max_frame_tokens must be at least 1, got 0"),
        ({"max_row_tokens": 63}, "max_row_tokens must be at least 64, which is one frame, got 63"),
    ],
)
def test_wrong_instructions_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Instructions(**wrong)


ASKED = (
    NamedPrompt(name="mood", text="What is the mood of {title}?"),
    NamedPrompt(name="count", text="How many?"),
)


def test_each_named_prompt_is_the_prompt_that_it_would_be_alone(processor, clip):
    rows = rows_of([clip], [b"junk"], [clip], title=["a film", "b", None])
    columns = InputColumns(start_s="from", end_s="to", fields=("title",))

    together = prepare(processor, rows, columns=columns, named_prompts=ASKED)

    assert together["row_id"].to_pylist() == ["r0", "r0", "r1", "r1", "r2", "r2"]
    assert together["prompt_question"].to_pylist() == [0, 1] * 3
    codes = [None, None, "media_corrupt", "media_corrupt", "bad_prompt", None]
    assert together["error_code"].to_pylist() == codes
    assert together["title"].to_pylist() == ["a film", None, "b", None, None, None]
    assert [value is not None for value in together["prompt_patches"].to_pylist()] == [
        *(True, False),  # the second prompt shows the pixels of the first
        *(False, False),
        *(False, True),  # of which there are none where the first failed
    ]
    for place, text in ((0, "What is the mood of a film?"), (1, "How many?"), (5, "How many?")):
        alone = prepare(processor, rows_of([clip, text]))
        expected, got = decode_prompt(alone, 0), decode_prompt(together, place)
        assert expected is not None
        assert got is not None
        assert np.array_equal(got.token_ids, expected.token_ids)
        assert np.array_equal(got.patches, expected.patches)
        assert len(got.image_digests) == len(got.grid_hw)
        assert got.image_digests == expected.image_digests  # so an engine encodes frames once
    seeds = together["seed"].to_pylist()
    assert seeds[0] == row_seed(0, "r0/mood")
    assert len({*seeds} - {None}) == 3


def test_media_that_are_kept_stand_once_beside_all_prompts_of_a_row(processor, clip):
    rows = rows_of([clip], [b"junk"])
    row_schema = check_input(rows.schema, InputColumns(), keep_media=True)
    nine = tuple(NamedPrompt(name=f"q{number}", text="How many?") for number in range(9))
    asked = Instructions(frames=FOUR, named_prompts=nine)
    stage = Prepare(processor, row_schema, asked, fetch, decoder=DECODER)
    prompted = stage(rows.cast(row_schema.read).add_column(0, "row_id", pa.array(["r0", "r1"])))

    assert prompted["video"].to_pylist() == [clip, *[None] * 8, b"junk", *[None] * 8]
    assert prompted["row_id"].to_pylist() == ["r0"] * 9 + ["r1"] * 9


def view(num_frames, tokens, timestamps: Timestamps = "seconds"):
    frames = FrameSampling(num_frames=num_frames)
    return FrameView(frames=frames, max_frame_tokens=tokens, timestamps=timestamps)


def test_twelve_cells_decode_each_clip_once_and_see_what_each_would_alone(processor, clip):
    """Of twelve views, six show frames of their own and six the same with other times."""
    grid = [(n, tokens) for n in (1, 2, 4) for tokens in (2, 6)]
    styles: tuple[Timestamps, ...] = ("seconds", "none")
    views = [view(*cell, timestamps) for cell in grid for timestamps in styles]
    prompts = tuple(
        NamedPrompt(name=str(number), text="what moves?", view=each)
        for number, each in enumerate(views)
    )
    fetched, num_requests = [], []

    class Counted(SandboxedDecoder):
        def decode(self, source, requests, **more):
            num_requests.append(len(requests))
            return DECODER.decode(source, requests, **more)

    def opener(value):
        fetched.append(value)
        return fetch(value)

    row_schema = check_input(rows_of([clip]).schema, COLUMNS)
    asked = Instructions(named_prompts=prompts)
    stage = Prepare(processor, row_schema, asked, opener, decoder=Counted())
    rows = rows_of([clip], [clip])
    together = stage(rows.cast(row_schema.read).add_column(0, "row_id", pa.array(["r0", "r1"])))

    assert len(fetched) == 2
    assert num_requests == [6, 6]  # frames that two cells show are there once
    assert together.num_rows == 24
    has_pixels = [value is not None for value in together["prompt_patches"].to_pylist()]
    assert has_pixels == [True, False] * 12
    for place, each in enumerate(views):
        alone = prepare(
            processor,
            rows_of([clip, "what moves?"]),
            frames=each.frames,
            max_frame_tokens=each.max_frame_tokens,
            timestamps=each.timestamps,
        )
        expected, got = decode_prompt(alone, 0), decode_prompt(together, place)
        assert expected is not None
        assert got is not None
        assert np.array_equal(got.token_ids, expected.token_ids)
        assert np.array_equal(got.patches, expected.patches)
        for name in ("frame_times_s", "num_visual_tokens"):
            assert together[name][place] == alone[name][0]


def test_a_prompt_over_a_list_is_asked_for_each_of_its_texts(processor, clip):
    lists = pa.array([["a?", "b?"], ["c?"], [], None, ["d?", "e?"]], pa.list_(pa.string()))
    rows = rows_of(*[[clip]] * 4, [b"junk"]).append_column("asks", lists)
    columns = InputColumns(lists=("asks",))
    prompts = (
        NamedPrompt(name="each", text="Say {asks}", over="asks"),
        NamedPrompt(name="once", text="and?"),
    )

    prompted = prepare(processor, rows, columns=columns, named_prompts=prompts)

    ids = ["r0", "r0", "r0", "r1", "r1", "r2", "r2", "r3", "r3", "r4", "r4", "r4"]
    assert prompted["row_id"].to_pylist() == ids
    assert prompted["prompt_part"].to_pylist() == [0, 1, 2, 0, 1, 0, 1, 0, 1, 0, 1, 2]
    assert prompted["prompt_question"].to_pylist() == [0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 1]
    codes = [None] * 5 + ["bad_prompt", None] * 2 + ["media_corrupt"] * 3
    assert prompted["error_code"].to_pylist() == codes
    row = prompted.slice(1, 1).to_pylist()[0]
    assert "Say b?" in text_of(processor, row)
    assert row["seed"] == row_seed(0, "r0/each/1")
    with pytest.raises(ValueError, match="the list of texts column 'ask' is string"):
        prepare(processor, rows, columns=InputColumns(lists=("ask",)), named_prompts=prompts)


def png(shade, size=(56, 28)):
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(pa.list_(pa.binary()), id="bytes"),
        pytest.param(pa.large_list(pa.struct([("bytes", pa.binary())])), id="structs"),
    ],
)
def test_the_images_of_a_list_stand_in_one_prompt_in_their_order(processor, kind):
    images = [[png(10), png(200, (28, 28))], [], [png(10), b"junk"], None]
    is_struct = pa.types.is_large_list(kind)
    values = [row and [{"bytes": i} if is_struct else i for i in row] for row in images]
    table = pa.table({"video": pa.array(values, kind)})
    opener = fetch if not is_struct else lambda value: fetch(value and value["bytes"])

    rows = prepare(processor, table, columns=InputColumns(), opener=opener, timestamps="none")

    codes = [None, "media_null", "media_corrupt", "media_null"]
    assert rows["error_code"].to_pylist() == codes
    got = decode_prompt(rows, 0)
    first = np.full((28, 56, 3), (10, 0, 0), np.uint8)
    second = np.full((28, 28, 3), (200, 0, 0), np.uint8)
    expected = processor.prompt([first, second, "Describe this video in detail."])
    assert got is not None
    assert np.array_equal(got.token_ids, expected.token_ids)
    assert np.array_equal(got.patches, expected.patches)
    assert got.grid_hw.tolist() == [[2, 4], [2, 2]]
    assert rows["frame_times_s"][0].as_py() == [0.0, 0.0]
    assert rows["num_visual_tokens"][0].as_py() == 3


def test_the_images_of_a_row_share_its_tokens(processor):
    table = pa.table({"video": [[png(1, (560, 560)), png(2, (560, 560))]]})

    (one,) = prepare(
        processor, table, columns=InputColumns(), max_row_tokens=100, max_frame_tokens=None
    ).to_pylist()

    assert 80 <= one["num_visual_tokens"] <= 100


def test_the_images_of_a_row_share_the_limit_on_memory_and_no_more_of_them_are_opened(processor):
    table = pa.table({"video": [[png(1)] * 600, [png(2)] * 3]})
    opened = []

    def opener(value):
        opened.append(value)
        return fetch(value)

    rows = prepare(
        processor,
        table,
        columns=InputColumns(),
        opener=opener,
        limits=MediaLimits(max_rgb_bytes=3 * 28 * 56 * 3),
    )

    assert rows["error_code"].to_pylist() == ["media_too_large", None]
    assert rows["error"][0].as_py() == (
        "the frames of 4 media take 18816 bytes, the limit is 14112 (--max-rgb-bytes)"
    )
    assert len(opened) == 4 + 3


@pytest.mark.parametrize("prompts", [pytest.param((), id="one"), pytest.param(ASKED, id="many")])
def test_more_images_than_any_prompt_can_show_are_refused_before_one_is_opened(processor, prompts):
    most = processor.max_images
    table = pa.table({"video": [[b""] * (most + 1)], "title": ["a film"]})
    columns = InputColumns(fields=("title",) if prompts else ())

    def opener(_value):
        raise AssertionError("nothing is opened")

    rows = prepare(processor, table, columns=columns, opener=opener, named_prompts=prompts)

    assert set(rows["error_code"].to_pylist()) == {"prompt_too_long"}
    assert rows["error"][0].as_py() == (
        f"the row has {most + 1} media, and a prompt has room for at most {most} "
        "images; give it fewer"
    )
