"""A few rows are answered as the job would answer them; the next prompt keeps model and frames."""

import builtins
import io
import re
import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import caption_videos, try_prompt
from pipeline.prompts.frame_loader import FrameLoader
from tests.clips import make_video
from tests.pipeline.pdfs import make_pdf

QUICK = ["--temperature", "0", "--max-tokens", "6", "--threads", "1", "--cache-gib", "0.1"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    videos = [make_video(numbers=range(n + 2)) for n in range(4)] + [b"broken"]
    table = pa.table({"video": videos, "ask": ["One?", "Two?", None, "Four?", "Five?"]})
    pq.write_table(table, folder / "clips.parquet")
    return folder / "clips.parquet"


def attempt(capsys, *arguments):
    code = try_prompt.main([*map(str, arguments), *QUICK])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def typed(monkeypatch, *prompts):
    """Be a terminal at which these prompts are typed."""
    waiting = iter(prompts)

    def read(_question):
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", read)


def test_rows_are_answered_as_the_job_that_it_prints_answers_them(clips, tmp_path, capsys):
    code, out, err = attempt(
        capsys, "--input", clips, "--output", tmp_path / "out", "--rows", "5", "--once",
        "--prompt", "What's there?", "--frames", "2",
    )  # fmt: skip

    assert (code, err) == (0, "")
    assert "prompt: What's there?" in out
    assert re.search(r"  error +media_\w+: ", out)
    assert re.search(r"  saw +2 of \d+x\d+, \d+ tokens; at 0\.\d \d", out)
    job = shlex.split(out.splitlines()[-1])
    assert job[:3] == ["python", "-m", "jobs.caption_videos"]
    assert "What's there?" in job
    assert not {"--rows", "--once"} & set(job)
    assert caption_videos.main([*job[3:], "--inline"]) == 0
    written = pq.read_table(tmp_path / "out").to_pylist()
    shown = re.findall(r"  answer +(.*(?:\n {12}.*)*)", out)
    assert sorted(" ".join(text.split()) for text in shown) == sorted(
        " ".join(row["caption"].split()) for row in written if row["caption"] is not None
    )
    assert len(shown) == 4


def test_the_next_prompt_is_asked_about_the_same_frames(clips, monkeypatch, capsys):
    typed(monkeypatch, "How many?", "Which colour?")
    loaded = []
    frames = FrameLoader.frames

    def noted(self, row, views):
        loaded.append(row.row_id)
        return frames(self, row, views)

    monkeypatch.setattr(FrameLoader, "frames", noted)
    code, out, err = attempt(
        capsys, "--input", clips, "--rows", "2", "--prompt-column", "ask", "--frames", "2"
    )

    assert (code, err) == (0, "")
    assert loaded.count("clips.parquet#3") == 1
    assert out.count("  saw ") == 3
    assert out.count("  error ") == 3  # the other row
    assert out.index("?") < out.index("prompt: How many?") < out.index("prompt: Which colour?")
    job = shlex.split(out.splitlines()[-1])
    assert job[job.index("--prompt") + 1] == "Which colour?"
    assert "--prompt-column" not in job


def test_prompts_of_a_file_are_asked_again_after_it_was_edited(
    clips, tmp_path, monkeypatch, capsys
):
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("mood: What is the mood?\n")
    typed(monkeypatch, "")
    ask = try_prompt._show

    def edited(*arguments):
        ask(*arguments)
        prompts.write_text("number: How many?\n")

    monkeypatch.setattr(try_prompt, "_show", edited)
    code, out, err = attempt(
        capsys, "--input", clips, "--rows", "1", "--prompts", prompts, "--frames", "2"
    )

    assert (code, err) == (0, "")
    assert out.index("  mood ") < out.index("  number ")
    assert f"--prompts {prompts}" in out.splitlines()[-1]


def test_pages_are_shown_one_by_one(tmp_path, capsys):
    papers = [make_pdf(["One", "Two"])]
    pq.write_table(pa.table({"document": papers}), tmp_path / "papers.parquet")

    code, out, err = attempt(capsys, "--input", tmp_path / "papers.parquet")

    assert (code, err) == (0, "")
    assert out.index("  page 1 ") < out.index("  page 2 ")
    assert "jobs.parse_documents --input" in out


def test_windows_of_a_video_are_shown_one_by_one(clips, capsys):
    more = ("--window-s", "0.1", "--frames", "1", "--merge", "--rows", "1")

    code, out, err = attempt(capsys, "--input", clips, *more)

    assert (code, err) == (0, "")
    assert "  0-0.1 s " in out
    assert "  answer  " in out


def test_the_job_follows_from_the_column_of_the_input(tmp_path, capsys):
    file = io.BytesIO()
    Image.new("RGB", (112, 84)).save(file, "PNG")
    pq.write_table(pa.table({"image": [file.getvalue()]}), tmp_path / "photos.parquet")

    code, out, err = attempt(capsys, "--input", tmp_path / "photos.parquet")

    assert (code, err) == (0, "")
    assert "jobs.describe_images --input" in out
    assert re.search(r"  saw +1 of 112x84, 12 tokens\n", out)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        pytest.param(["--input", "nowhere.parquet"], "nowhere.parquet", id="no input"),
        pytest.param(["--model", "nowhere/at/all"], "there is no such directory", id="no model"),
        pytest.param(["--video-column", "film"], "film", id="no such column"),
    ],
)
def test_what_a_job_would_refuse_is_refused_in_one_line(clips, arguments, reason, capsys):
    given = [] if "--input" in arguments else ["--input", clips]

    code, _, err = attempt(capsys, *given, *arguments)

    assert code == 2
    assert len(err.splitlines()) == 1
    assert reason in err


def test_text_of_a_model_cannot_control_the_terminal(clips, capsys):
    from jobs.tryout.session import Answer
    from jobs.tryout.show import answer_lines

    row = {
        "row_id": "a\x1b[2J", "frame_times_s": None, "status": "ok", "caption": "b\x1b[2Jc\nd" * 99,
        "num_generated_tokens": None,
    }  # fmt: skip
    answer = Answer(row=row, own_prompt=None, prepare_s=0.0, answer_s=0.0)

    text = "\n".join(answer_lines(answer, [], 60))

    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 60
