"""Windows and pages through prepare and generate: one row in, one row out, with all answers."""

import asyncio

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.engine.sequence import Completion, FinishReason, SamplingParams
from model.inputs.processor import Processor
from parallel.ranks.requests import Failure
from pipeline.config import PipelineConfig, recipe_of
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.media.windows import PageWindows, TimeWindows
from pipeline.preflight import open_input
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.named_prompts import NamedPrompt
from pipeline.prompts.prepare import Prepare
from pipeline.prompts.prompt_columns import decode_prompt, row_seed
from pipeline.prompts.window_answers import window_fields
from pipeline.schema import RESULT_FIELDS, ErrorCode, InputColumns, check_input
from pipeline.stages.generate import Generate
from pipeline.stages.merge import Merger
from tests.clips import make_video
from tests.pipeline.pdfs import make_pdf
from tests.pipeline.stages.test_generate import Groups
from tests.tiny import tiny_checkpoint

SECONDS = TimeWindows(length_s=1.0)
TWO = FrameSampling(num_frames=2)
SAMPLING = SamplingParams(max_tokens=8, seed=5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def processor(checkpoint):
    return Processor.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def decoder():
    decoder = SandboxedDecoder()
    yield decoder
    decoder.close()


def fetch(value):
    if value is None:
        raise MediaError(ErrorCode.MEDIA_NULL, "the row has no media")
    return value


def prepare(processor, decoder, media, kind=None, limits=None, **instructions):
    """The table of a prepare stage over rows of media, and how often each was fetched."""
    opened = []

    def opener(value):
        opened.append(value)
        return fetch(value)

    rows = pa.table({"video": pa.array(media, kind or pa.binary())})
    row_schema = check_input(rows.schema, InputColumns())
    own = SandboxedDecoder(limits) if limits else decoder
    more = {"limits": limits} if limits else {}
    asked = Instructions(**{"frames": TWO, "max_frame_tokens": 6, **instructions, **more})
    stage = Prepare(processor, row_schema, asked, opener, decoder=own)
    ids = pa.array([f"r{index}" for index in range(rows.num_rows)])
    table = stage(rows.cast(row_schema.read).add_column(0, "row_id", ids))
    if limits:
        own.close()
    return table, opened


def generate(table, answer, windows, merger=None):
    stage = Generate(Groups(answer), SAMPLING, windows=windows, merger=merger)

    async def run():
        return [answered async for answered in stage(table)]

    (result,) = asyncio.run(run())
    return result


def completion(text, finish_reason: FinishReason = "stop", num_prompt_tokens=10):
    return Completion(
        text=text,
        token_ids=(1, 2),
        finish_reason=finish_reason,
        num_prompt_tokens=num_prompt_tokens,
        num_generated_tokens=2,
        mean_logprob=-0.25,
        min_logprob=-0.5,
    )


def text_of(processor, prompt):
    """The text of a prompt, with its control tokens."""
    return processor.tokenizer.decode(prompt.token_ids.tolist())


def test_each_window_is_the_prompt_that_its_span_would_be(processor, decoder):
    clip = make_video(numbers=range(25))

    table, opened = prepare(processor, decoder, [clip, b"junk", None], windows=SECONDS)

    assert table["row_id"].to_pylist() == ["r0"] * 3 + ["r1", "r2"]
    assert table["prompt_part"].to_pylist() == [0, 1, 2, 0, 0]
    assert table["error_code"].to_pylist() == [None] * 3 + ["media_corrupt", "media_null"]
    assert len(opened) == 3  # once for each row
    spans = table["prompt_window"].to_pylist()
    assert spans[:2] == [{"start": 0.0, "end": 1.0}, {"start": 1.0, "end": 2.0}]
    assert spans[3:] == [None, None]
    assert table["frame_times_s"].to_pylist()[1] == pytest.approx([1.2, 1.7])
    columns = InputColumns(start_s="a", end_s="b")
    rows = pa.table({"video": [clip], "a": [1.0], "b": [2.0]})
    row_schema = check_input(rows.schema, columns)
    alone = Prepare(
        processor, row_schema, Instructions(frames=TWO, max_frame_tokens=6), fetch, decoder=decoder
    )(rows.cast(row_schema.read).add_column(0, "row_id", pa.array(["x"])))
    expected, got = decode_prompt(alone, 0), decode_prompt(table, 1)
    assert expected is not None
    assert got is not None
    assert np.array_equal(got.token_ids, expected.token_ids)
    assert np.array_equal(got.patches, expected.patches)
    assert table["seed"].to_pylist()[:2] == [row_seed(0, "r0/0"), row_seed(0, "r0/1")]


def test_a_timeline_is_one_row_whatever_fails_in_it(processor, decoder):
    clip = make_video(numbers=range(30))
    table, _ = prepare(processor, decoder, [clip, b"junk", clip], windows=SECONDS)
    answers = iter(["one", "two", "three", "four", Failure(code="boom", message="no"), "six"])

    def answer(request, lease):
        text = next(answers)
        if isinstance(text, Failure):
            return text
        return completion(text, "length" if text == "two" else "stop")

    rows = generate(table, answer, SECONDS)

    assert set(rows.column_names) == {*(field.name for field in RESULT_FIELDS), "timeline"}
    first, junk, third = rows.to_pylist()
    assert [row["row_id"] for row in (first, junk, third)] == ["r0", "r1", "r2"]
    assert [window["start_s"] for window in first["timeline"]] == [0.0, 1.0, 2.0]
    assert [window["caption"] for window in first["timeline"]] == ["one", "two", "three"]
    assert [window["status"] for window in first["timeline"]] == ["ok", "truncated", "ok"]
    assert (first["status"], first["error"]) == ("truncated", None)
    lines = ["0.0 - 1.0 s: one", "1.0 - 2.0 s: two", "2.0 - 3.0 s: three"]
    assert first["caption"].splitlines() == lines
    assert (first["num_prompt_tokens"], first["num_generated_tokens"]) == (30, 6)
    assert first["frame_times_s"] == pytest.approx([0.2, 0.7, 1.2, 1.7, 2.2, 2.7])
    assert first["num_visual_tokens"] == sum(w["num_visual_tokens"] for w in first["timeline"])
    assert (junk["status"], junk["error_code"]) == ("error", "media_corrupt")
    assert junk["timeline"] is junk["caption"] is None
    assert (third["status"], third["error_code"]) == ("error", "engine_error")
    assert third["error"] == "1.0 - 2.0 s: boom: no"
    assert [window["caption"] for window in third["timeline"]] == ["four", None, "six"]
    assert "four" in third["caption"]


def test_a_merge_asks_for_one_caption_of_the_list(processor, decoder):
    clip, short = make_video(numbers=range(30)), make_video(numbers=range(8))
    table, _ = prepare(processor, decoder, [clip, short, b"junk"], windows=SECONDS)
    asked = []

    def answer(request, lease):
        if "/merge/" in request.request_id:
            asked.append(request)
            return completion("the whole", num_prompt_tokens=100)
        return completion(f"seen <|im_end|> at {len(request.prompt.token_ids)}")

    merger = Merger(processor, "Write one text.", SAMPLING)
    rows = generate(table, answer, TimeWindows(length_s=1.0, merge="Write one text."), merger)

    whole, alone, junk = rows.to_pylist()
    assert (whole["caption"], whole["status"]) == ("the whole", "ok")
    assert (whole["num_prompt_tokens"], whole["num_generated_tokens"]) == (130, 8)
    assert (whole["finish_reason"], whole["mean_logprob"]) == ("stop", -0.25)
    assert [window["caption"] is None for window in whole["timeline"]] == [False] * 3
    (request,) = asked
    assert request.prompt.num_patches == 0
    text = text_of(processor, request.prompt)
    assert "Write one text.\n\n0.0 - 1.0 s: seen" in text
    assert "2.0 - 3.0 s: seen" in text
    end_ids = [i for i in request.prompt.token_ids if processor.tokenizer.is_special(int(i))]
    plain = processor.prompt(["x"]).token_ids
    assert len(end_ids) == sum(processor.tokenizer.is_special(int(i)) for i in plain)
    assert request.params.seed == row_seed(5, "r0/merge/0/0")
    assert alone["caption"].startswith("seen")  # one window needs no merge
    assert (junk["caption"], junk["status"]) == (None, "error")


def merging(processor, monkeypatch, room, answer, num_windows=9):
    """Merge a made-up timeline, in prompts that have room for some tokens of captions."""
    merger = Merger(processor, "Sum up.", SAMPLING)
    monkeypatch.setattr(merger, "_room", room)
    timeline = [
        {"start_s": float(n), "end_s": n + 1.0, "caption": "abc", "status": "ok"}
        for n in range(num_windows)
    ]
    fields = [*RESULT_FIELDS, *window_fields(SECONDS)]
    row = {"row_id": "r", "timeline": timeline, "status": "ok", "num_prompt_tokens": 1}
    table = pa.Table.from_pylist([row], schema=pa.schema(fields))

    async def answers(requests):
        return {number: answer(request) for number, request in requests.items()}

    return asyncio.run(merger.merge(table, answers)).to_pylist()[0]


def test_captions_that_do_not_fit_one_prompt_are_merged_in_levels(processor, monkeypatch):
    size = len(processor.tokenizer.encode("0.0 - 1.0 s: abc\n"))
    texts = []

    def answer(request):
        texts.append(text_of(processor, request.prompt))
        return completion("abc")

    row = merging(processor, monkeypatch, 4 * size, answer)

    assert row["caption"] == "abc"
    assert row["status"] == "ok"
    assert len(texts) == 3  # two summaries of four captions each, then one of those and the ninth
    assert row["num_generated_tokens"] == 3 * 2
    assert "0.0 - 4.0 s: abc" in texts[-1]


def test_a_merge_that_fails_is_the_rows_error_and_keeps_the_timeline(processor, monkeypatch):
    broken = merging(
        processor, monkeypatch, 1000, lambda request: Failure(code="poison_row", message="it died")
    )
    cramped = merging(processor, monkeypatch, 3, lambda request: completion("x"))
    cut = merging(processor, monkeypatch, 1000, lambda request: completion("x", "length"))

    assert (broken["status"], broken["error_code"]) == ("error", "poison_row")
    assert broken["error"] == "merging the captions: it died"
    assert broken["caption"] is None
    assert len(broken["timeline"]) == 9
    assert (cramped["status"], cramped["error_code"]) == ("error", "prompt_too_long")
    assert (cut["status"], cut["caption"]) == ("truncated", "x")


def test_pages_are_asked_about_one_by_one_or_together(processor, decoder):
    document = make_pdf(["One", "Two", "Three"])

    alone, opened = prepare(processor, decoder, [document], windows=PageWindows())
    together, _ = prepare(
        processor, decoder, [document], windows=PageWindows(pages_per_prompt=2), prompt="Read."
    )

    assert alone["prompt_part"].to_pylist() == [0, 1, 2]
    assert len(opened) == 1
    assert together["prompt_window"].to_pylist() == [
        {"start": 0.0, "end": 2.0},
        {"start": 2.0, "end": 3.0},
    ]
    first, rest = decode_prompt(together, 0), decode_prompt(together, 1)
    assert first is not None
    assert rest is not None
    assert len(first.grid_hw) == 2
    text = text_of(processor, first)
    assert text.index("[page 1]") < text.index("[page 2]") < text.index("Read.")
    assert "[page" not in text_of(processor, rest)


def test_a_prompt_holds_no_more_pages_than_the_context(processor, decoder):
    context_len = processor.config.text.max_position_embeddings
    windows = PageWindows(pages_per_prompt=None, answer_tokens=64)

    document = make_pdf(["x"] * 80)

    table, _ = prepare(processor, decoder, [document], windows=windows, max_frame_tokens=99)

    lens = [len(ids) for ids in table["prompt_token_ids"].to_pylist()]
    assert len(lens) > 1
    assert table["error_code"].null_count == len(lens)
    assert max(lens) <= max(context_len - 64, context_len // 2)
    assert table["prompt_window"].to_pylist()[-1]["end"] == 80


def test_the_pages_of_a_list_follow_each_other_and_limits_hold_for_the_row(processor, decoder):
    lists = [[make_pdf(["a", "b"]), make_pdf(["c"])], [], [make_pdf(), b"junk"], [make_pdf()] * 6]
    limits = MediaLimits(max_pages=5)

    table, _ = prepare(
        processor, decoder, lists, pa.list_(pa.binary()), limits=limits, windows=PageWindows()
    )

    assert [window and window["end"] for window in table["prompt_window"].to_pylist()] == [
        1, 2, 3, None, None, None,
    ]  # fmt: skip
    codes = [None] * 3 + ["media_null", "media_unsupported", "media_too_large"]
    assert table["error_code"].to_pylist() == codes
    assert "--max-pages" in table["error"].to_pylist()[-1]


def test_a_document_is_one_row_with_the_markdown_of_each_page(processor, decoder):
    document = make_pdf(["One", "Two", "Three", "Four", "Five"])
    windows = PageWindows(pages_per_prompt=2)
    table, _ = prepare(processor, decoder, [document, b"%PDF-1.4"], windows=windows)
    answers = iter(["[page 1]\n# One\n\n[page 2]\nTwo\n", "no lines", "[page 5]"])

    def answer(request, lease):
        text = next(answers)
        return completion(text, "length" if text == "no lines" else "stop")

    rows = generate(table, answer, windows)

    whole, broken = rows.to_pylist()
    assert whole["pages"] == ["# One", "Two", "no lines", None, "[page 5]"]
    assert whole["caption"] == "# One\n\nTwo\n\nno lines\n\n[page 5]"
    assert whole["num_pages"] == 5
    assert whole["truncated_pages"] == [3, 4]
    assert (whole["status"], whole["media_codec"]) == ("truncated", "pdf")
    assert [(w["first_page"], w["last_page"]) for w in whole["page_windows"]] == [
        (1, 2), (3, 4), (5, 5),
    ]  # fmt: skip
    assert [window["status"] for window in whole["page_windows"]] == ["ok", "truncated", "ok"]
    assert whole["num_prompt_tokens"] == 30
    assert whole["frame_times_s"] is None
    assert (broken["status"], broken["error_code"]) == ("error", "media_corrupt")
    assert broken["pages"] is broken["num_pages"] is broken["truncated_pages"] is None
    names = {field.name for field in window_fields(windows)}
    assert names <= set(rows.column_names)


def test_a_page_that_fails_is_named_and_the_others_keep_their_text(processor, decoder):
    small, huge = make_pdf(["a"]), make_pdf(["b"], size=(1e6, 1e6))
    table, _ = prepare(
        processor, decoder, [[small, huge, small]], pa.list_(pa.binary()), windows=PageWindows()
    )

    (row,) = generate(table, lambda request, lease: completion("x"), PageWindows()).to_pylist()

    assert row["pages"] == ["x", None, "x"]
    assert (row["status"], row["error_code"]) == ("error", "media_too_large")
    assert row["error"].startswith("page 2: the page measures 1000000 x 1000000 points")
    assert row["caption"] == "x\n\nx"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"named_prompts": (NamedPrompt(name="a", text="?"),)}, "--prompts"),
        ({"max_row_tokens": 100}, "--tokens-per-row"),
    ],
)
def test_what_does_not_go_with_windows_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Instructions(windows=SECONDS, **options)


def test_a_list_of_videos_has_no_windows_of_time(tmp_path, checkpoint):
    pq.write_table(pa.table({"video": [["a.mp4"]]}), tmp_path / "x.parquet")
    config = PipelineConfig(
        input=str(tmp_path / "x.parquet"),
        output=str(tmp_path / "out"),
        checkpoint=checkpoint,
        instructions=Instructions(windows=SECONDS),
    )
    with pytest.raises(ValueError, match="--window-s cuts one video a row, and column 'video' is"):
        open_input(config)


def test_outputs_without_windows_keep_their_recipe(tmp_path, checkpoint):
    row_schema = check_input(pa.schema([("video", pa.string())]), InputColumns())
    config = PipelineConfig(input="x", output="y", checkpoint=checkpoint)
    cut = PipelineConfig(
        input="x", output="y", checkpoint=checkpoint, instructions=Instructions(windows=SECONDS)
    )
    assert "windows" not in recipe_of(config, row_schema).fields
    assert recipe_of(cut, row_schema).fields["windows"] == {
        "length_s": 1.0, "overlap_s": 0.0, "merge": None,
    }  # fmt: skip
