"""A sweep over generated clips: decoded once, scored, drawn; what cannot work is one line."""

import asyncio
import csv
import shlex
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import caption_videos, review, sweep_videos
from jobs.cli import config_file
from jobs.demo.quiz import main as make_quiz
from jobs.demo.quiz import write_quiz
from jobs.sweep.layouts import lettered, read_items
from model.inputs.processor import Processor
from pipeline.fetch.media_access import MediaAccess
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.preflight import open_input
from pipeline.prompts.prepare import Prepare
from pipeline.stages.generate import Generate
from tests.pipeline.stages.test_generate import Groups, caption

GRID = """\
frames: [1, 4]
timestamps: [none, seconds]
prompt: {asked: "{question}", twice: "{question} {question}"}
"""


@pytest.fixture(scope="module")
def quiz(tmp_path_factory):
    """The motions in four clips, and what is never right about a file that is not there."""
    folder = tmp_path_factory.mktemp("quiz")
    path = write_quiz(folder, 4, ["motion", "colour"])
    table = pq.read_table(path)
    missing = table.slice(0, 1).to_pylist()[0] | {"id": "no", "video": "clips/no.mp4"}
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist([missing], table.schema)]), path)
    return path


def call(path, output, grid, *more, layout="open"):
    grid_path = output.parent / "grid.yaml"
    grid_path.write_text(grid)
    return sweep_videos.main(
        [
            *("--input", str(path), "--output", str(output), "--model", "demo"),
            *("--layout", layout, "--grid", str(grid_path), *more),
        ]
    )


def test_a_sweep_is_scored_drawn_and_can_be_continued(quiz, tmp_path, capfd):
    output = tmp_path / "sweep"

    code = call(quiz, output, GRID, "--inline", layout="choice")

    printed = capfd.readouterr()
    assert code == 0, printed.err
    num_questions = pq.read_metadata(quiz).num_rows
    assert f"{num_questions} questions about 5 clips in 8 cells" in printed.out
    answers = pq.read_table(output / "answers.parquet").to_pylist()
    assert len(pd.read_parquet(output / "answers.parquet")) == len(answers) == 8 * num_questions
    assert len({(row["cell"], row["id"]) for row in answers}) == len(answers)
    good = [row for row in answers if row["id"] != "no"]
    assert all(row["status"] in ("ok", "truncated") for row in good)
    assert all(row["num_frames"] == row["frames"] for row in good)
    assert all(len(row["choice_logprobs"]) == 4 for row in good)
    assert all(row["logit_answer"] in "ABCD" for row in good)
    lost = [row for row in answers if row["id"] == "no"]
    assert {(row["status"], row["strict"], row["expected"]) for row in lost} == {("error", 0, 0.25)}
    with (output / "summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    for row in summary:
        scores = [answer["strict"] for answer in answers if answer["cell"] == row["cell"]]
        assert float(row["strict"]) == pytest.approx(sum(scores) / num_questions)
        assert row["errors"] == "1"
    assert len(summary) == 8
    for name in ("sweep.png", "tasks.png"):
        with Image.open(output / name) as picture:
            assert min(picture.size) > 400
    command = shlex.split(printed.out.strip().splitlines()[-1])
    job = config_file.parse(caption_videos.make_parser, command[3:])
    assert job.frames in (1, 4)
    assert job.timestamps in ("none", "seconds")

    page = tmp_path / "page.html"
    assert review.main([str(output / "_runs"), "--page", str(page)]) == 0
    assert "without frames" not in capfd.readouterr().out
    assert "4 frames of at most 256 tokens" in page.read_text()

    # Again: nothing is left to do, and the same is found.
    assert call(quiz, output, GRID, "--inline", layout="choice") == 0
    again = capfd.readouterr().out
    assert "nothing to do: all rows are done" in again
    assert again.strip().splitlines()[-1] == shlex.join(command)
    assert pq.read_table(output / "answers.parquet").to_pylist() == answers


def test_a_kind_of_question_that_there_is_not_is_refused_in_one_line(tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "quiz"), "--clips", "1", "--tasks", "motoin"]
    with pytest.raises(SystemExit) as caught:
        make_quiz(arguments)

    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert "error: there are no questions of the kinds motoin, only of background, c" in err
    assert err.count("\n") == 1


def test_twelve_cells_decode_each_clip_once(quiz, tmp_path, monkeypatch):
    """The very configuration of the job, prepared here: a fetch and a decoding for each clip."""
    configs, fetched, num_requests = [], [], []
    monkeypatch.setattr("pipeline.run.run", lambda config, **_: configs.append(config))
    monkeypatch.setattr("jobs.sweep.finding.conclude", lambda *_: "")
    grid = "frames: [1, 2, 4]\nframe-tokens: [16, 64]\ntimestamps: [none, seconds]\n"
    assert call(quiz, tmp_path / "sweep", grid) == 0

    class Counted(SandboxedDecoder):
        def decode(self, source, requests, **more):
            num_requests.append(len(requests))
            return super().decode(source, requests, **more)

    (config,) = configs
    assert len(config.instructions.named_prompts) == 12
    rows = prepared(config, fetched, Counted())
    num_questions = pq.read_metadata(quiz).num_rows
    assert rows.num_rows == 12 * num_questions
    assert sorted(fetched) == [*(f"clips/000{n}.mp4" for n in range(4)), "clips/no.mp4"]
    assert num_requests == [6] * 4  # twelve cells, of which six have frames of their own


def prepared(config, fetched, decoder):
    """What the prepare stage makes of a run's input."""
    source = open_input(config)
    access = MediaAccess(base=config.media_folder)

    def fetch(value):
        fetched.append(value)
        return access.open(value)

    rows = pq.read_table(config.input)
    table = rows.select(source.row_schema.read.names).cast(source.row_schema.read)
    processor = Processor.from_checkpoint(config.checkpoint)
    stage = Prepare(processor, source.row_schema, config.instructions, fetch, decoder=decoder)
    try:
        return stage(table.add_column(0, "row_id", rows["clip"]))
    finally:
        stage.close()


def test_what_runs_answered_is_scored_and_drawn(quiz, tmp_path, monkeypatch, capsys):
    """Without Ray: an engine that knows the answers to two of four frames, votes and letters."""
    monkeypatch.setattr("pipeline.run.run", lambda config, **_: answer_all(config, quiz))
    grid = "frames: [1, 4]\nsamples: 3\ntemperature: 1\nexpert-parallel: [1, 2]\n"

    code = call(quiz, tmp_path / "sweep", grid, "--score", "expected", layout="choice")

    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    answers = pq.read_table(tmp_path / "sweep" / "answers.parquet").to_pylist()
    num_questions = pq.read_metadata(quiz).num_rows
    assert len(answers) == 4 * num_questions
    for row in answers:
        if row["id"] == "no":
            assert (row["status"], row["strict"], row["expected"]) == ("error", 0, 0.25)
        elif row["frames"] == 1:
            assert (row["answer"], row["is_unparsed"]) == (None, True)
            assert (row["strict"], row["expected"]) == (0, 0.25)
            assert row["logit_answer"] == "A"
            assert row["logit"] == float(row["truth"] == "A")
        else:
            assert row["answer"] == row["truth"]
            assert row["samples"] == 3
            assert row["texts"] == ["?", row["truth"], f"({row['truth']})"]
            assert (row["strict"], row["expected"], row["logit"]) == (1, 1, 1)
        assert row["expert-parallel"] in (1, 2)
    lines = printed.out.strip().splitlines()
    assert "4 cells: " in printed.out
    assert "in 2 runs" in printed.out
    assert "--frames=4" in lines[-1]
    assert "--samples=3" in lines[-1]


def answer_all(config, quiz):
    """Write the part that a run would: with four frames every answer is right, with one none."""
    items = read_items(str(quiz), "choice").items
    truths = {f"{item.question}\n{lettered(item.options)}": item.truth for item in items}

    def answered(request, lease):
        text = Processor.from_checkpoint(config.checkpoint).tokenizer.decode(
            request.prompt.token_ids.tolist()
        )
        asked = next(question for question in truths if question in text)
        is_known = len(request.prompt.grid_hw) == 4
        letter = truths[asked] if is_known else "A"
        texts = ["?", letter, f"({letter})"] if is_known else ["?", "none", "no"]
        first, *others = (replace(caption(request), text=text) for text in texts)
        logprobs = tuple(-0.1 if choice == letter else -3.0 for choice in request.params.choices)
        return replace(first, others=tuple(others), choice_logprobs=logprobs)

    stage = Generate(Groups(answered), config.sampling, config.instructions.named_prompts)
    rows = prepared(config, [], SandboxedDecoder())

    async def generate():
        return [part async for part in stage(rows)]

    (result,) = asyncio.run(generate())
    Path(config.output).mkdir(parents=True)
    written = open_input(config).row_schema.output
    pq.write_table(result.select(written.names).cast(written), f"{config.output}/part-0-x.parquet")
    return "done"


@pytest.mark.parametrize(
    ("grid", "more", "message"),
    [
        ("framez: [1]", [], "there is no axis 'framez'; the nearest is 'frames'"),
        ("frames: []", [], "frames has no values, so the grid has no cells"),
        ("prompt: '{x}'", [], "prompt '{x}' contains {x}; it may contain {question} and {options}"),
        ("samples: [3]", [], "cell all: n=3 samples at temperature 0 would all be the same text"),
        ("frames: [1]", ["--score", "logit"], "--score logit needs options to choose from"),
        ("frames: [1]", ["--prompts", "p.yaml"], "--prompts cannot be used in sweeps"),
        ("frames: [1]", ["--shard", "1/2"], "--shard and --check-shards cannot be used in sweeps"),
        ("frames: [1]", ["--video-path", "{a"], "is not a template"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_starts(
    quiz, tmp_path, capsys, grid, more, message
):
    code = call(quiz, tmp_path / "sweep", grid, *more)

    err = capsys.readouterr().err
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_an_unknown_layout_is_one_line(quiz, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        call(quiz, tmp_path / "sweep", "frames: [1]", layout="video-mm")

    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert "invalid choice: 'video-mm'" in err
    assert err.count("\n") == 1


def test_an_answer_that_is_no_option_is_one_line(tmp_path, capsys):
    row = {"video": "a.mp4", "question": "?", "options": ["a", "b"], "answer": "c"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "set.parquet")

    code = call(tmp_path / "set.parquet", tmp_path / "sweep", "frames: [1]", layout="choice")

    err = capsys.readouterr().err
    assert code == 2
    assert "question 0: the answer 'c' is not among its options (A. a, B. b)" in err
    assert err.count("\n") == 1


def test_videos_in_the_rows_are_written_once_for_all_questions(tmp_path, monkeypatch):
    rows = [
        {"video": b"x" * 9, "question": f"{n}?", "answer": "yes", "task": "t"} for n in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    monkeypatch.setattr("pipeline.run.run", lambda config, **_: None)
    monkeypatch.setattr("jobs.sweep.finding.conclude", lambda *_: "")

    assert call(tmp_path / "set.parquet", tmp_path / "sweep", "frames: [1]") == 0

    (clip,) = pq.read_table(tmp_path / "sweep" / "_clips.parquet").to_pylist()
    assert clip["video"] == b"x" * 9
    assert clip["asked_0"] == ["0?", "1?", "2?"]
