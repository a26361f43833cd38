"""The commands of README and docs/, run as they stand there on small inputs, without Ray.

`--model` is the demo checkpoint in place of Kimi-VL, and jobs run `--inline`. What needs a cluster,
a GPU, the network or a person stands in `NOT_RUN` with the reason; of what is a job or a benchmark
of ours, also of a job that is submitted to a cluster, the arguments are parsed.
"""

import functools
import importlib
import io
import itertools
import json
import re

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.demo.clips import write_clips
from jobs.review_page.html_file import VERDICT_FORMAT
from jobs.review_page.row_json import result_digest
from jobs.review_page.rows import read_output
from tests.clips import make_video
from tests.conftest import ROOT
from tests.jobs.planning.test_measured import MEASURED
from tests.pages import PAGES, README, commands, fences, files
from tests.pipeline.pdfs import make_pdf

KIMI = "moonshotai/Kimi-VL-A3B-Instruct"
COOKBOOK = ROOT / "docs" / "cookbook.md"

PIPELINE = ("caption_videos", "describe_images", "parse_documents", "sweep_videos")
RUN = tuple(
    f"jobs.{name}" for name in (*PIPELINE, "doctor", "try_prompt", "review", "plan", "demo.quiz")
)

# The beginning of a command that is not run -> why not.
NOT_RUN = {
    ("make",): "sets up an environment; its targets are those of the Makefile",
    (".", ".venv/bin/activate"): "changes the shell",
    ("pip", "install"): "needs the network",
    ("hf", "download"): "needs the network, and 33 GB",
    ("ray", "start"): "starts a cluster",
    ("ray", "stop"): "ends a cluster",
    ("ray", "drain-node"): "ends a node of a cluster",
    ("ray", "job", "submit"): "needs a cluster; tests/jobs/test_submit.py has one",
    ("MOONSWEEP_REQUIRE_GPU=1", "pytest"): "needs a GPU",
    ("python", "-m", "jobs.bench.engine"): "takes minutes of a quiet machine, or a GPU",
    ("python", "-m", "jobs.bench.dispatch"): "needs eight GPUs",
    ("python", "-m", "jobs.caption_videos", "--device", "cuda"): "needs eight GPUs",
    ("python", "-m", "pdb"): "needs a person; the job behind it runs",
}
# Jobs that are planned with --dry-run in place of --inline -> why.
DRY_RUN = {"grid.yaml": "two ranks that share a copy of the model need Ray"}


def test_what_is_not_run_is_still_in_a_page():
    all_commands = [command for page in PAGES for command in commands(page)]
    for beginning in NOT_RUN:
        assert any(begins(command, beginning) for command in all_commands), beginning
    for name in DRY_RUN:
        assert any(name in command for command in all_commands)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            id=page.name,
            marks=[] if page.name in ("README.md", "frames.md") else pytest.mark.slow,
        )
        for page in PAGES
        if page != COOKBOOK
    ],
)
def test_every_command_of_a_page_runs(page, folder, capfd):
    for name, text in files(page).items():
        (folder / name).write_text(text.replace(KIMI, "demo"))
    prepare(page.name, folder)
    for command in commands(page):
        follow(command, capfd)
    for fence in fences(page):
        if fence.kind == "python" and not fence.text.startswith("# "):
            exec(fence.text, {})


def begins(command, beginning):
    return tuple(command[: len(beginning)]) == beginning


def follow(command, capfd):
    """Run a command, or check as much of it as can be."""
    if begins(command, ("python", "-m", "pdb")):
        command = ["python", *command[command.index("-m", 3) :]]
    elif begins(command, ("ray", "job", "submit")):
        script, *arguments = command[command.index("--") + 1 :]
        parse(script.removesuffix(".py").replace("/", "."), arguments)
        return
    elif begins(command, ("make",)):
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    elif any(begins(command, beginning) for beginning in NOT_RUN):
        if begins(command, ("python", "-m")):
            parse(command[2], itertools.takewhile(lambda word: word != "|", command[3:]))
        return
    assert run(command) == 0, (command, capfd.readouterr().err)


def parse(module, arguments):
    """Parse the arguments of a module of ours; SystemExit if they are wrong."""
    job_of(module).make_parser().parse_args([*arguments])


def run(command):
    """Run `python -m MODULE ...` in this process, on the demo checkpoint and without Ray."""
    python, dash_m, module, *arguments = command
    assert (python, dash_m) == ("python", "-m")
    assert module in RUN, f"{module}: run it here, or say in NOT_RUN why not"
    arguments = ["demo" if text == KIMI else text for text in arguments]
    if module.removeprefix("jobs.") in PIPELINE and not {"--inline", "--dry-run"} & {*arguments}:
        arguments.append("--dry-run" if DRY_RUN.keys() & {*arguments} else "--inline")
    return job_of(module).main(arguments)


def job_of(module):
    return importlib.import_module(module)


def prepare(page, folder):
    """Make what a page takes for granted beside its inputs."""
    if page == "proving-on-gpu.md":
        (folder / "gpu.txt").write_text(json.dumps(MEASURED))
    if page == "README.md":
        (folder / "demo-output").mkdir()
        write_clips(folder / "demo-output" / "clips.parquet", 2, seed=0)
    if page in ("review.md", "troubleshooting.md"):
        assert run(caption("captions")) == 0
    if page == "shards.md":  # the page begins the first one
        for shard in ("2/4", "3/4", "4/4"):
            assert run([*caption("captions"), "--shard", shard]) == 0
    if page == "review.md":
        assert run([*caption("captions-16"), "--frames", "4"]) == 0
        write_verdicts(folder)


def write_verdicts(folder):
    """What reviewers have downloaded: a review, those of three people, and a blind comparison."""
    output = read_output(folder / "captions")
    row = output.rows.to_pylist()[0]
    judged = {"row_id": row["row_id"], "judged_at": "2026-01-01"}
    verdicts = {"format": VERDICT_FORMAT, "recipe_sha256": output.recipe_sha256}
    for name, mode, verdict in (
        ("review-verdicts", "review", {"verdict": "accept"}),
        *((who, "review", {"verdict": "reject"}) for who in ("ana", "ben", "eva")),
        ("blind-verdicts", "blind", {"verdict": "left", "left": result_digest(row, output)}),
    ):
        value = verdicts | {"mode": mode, "reviewer": name, "verdicts": [judged | verdict]}
        (folder / f"{name}.json").write_text(json.dumps(value))


def caption(output):
    job = ["python", "-m", "jobs.caption_videos", "--model", "demo", "--input", "clips.parquet"]
    return [*job, "--output", output]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with small inputs of the names that the pages use."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    clip = clip_of(8)
    for name in ("a.mp4", "late.mp4", "videos/v1.mp4"):
        (tmp_path / name).write_bytes(clip)
    (tmp_path / "film.mp4").write_bytes(film())
    clips = {"video": ["a.mp4", "late.mp4"], "title": ["Red", "Blue"]}
    tables = {
        "clips": clips,
        "films": {"video": ["film.mp4"]},
        "photos": {"image": [picture(200), picture(90)]},
        "products": {"photos": [[picture(200), picture(90)], [picture(10)]]},
        "papers": {"document": [make_pdf(["One", "Two", "Three"])]},
        "test": {  # as Video-MME is laid out
            "videoID": ["v1"],
            "question_id": ["q1"],
            "question": ["What colour is the circle?"],
            "options": [["A. red", "B. blue", "C. green", "D. grey"]],
            "answer": ["A"],
        },
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    return tmp_path


@functools.cache
def clip_of(num_frames):
    return make_video(numbers=range(num_frames))


@functools.cache
def film():
    """Two and a half minutes, of which a frame appears every ten seconds."""
    return make_video(numbers=range(16), times_s=[10.0 * number for number in range(16)])


@functools.cache
def picture(shade):
    file = io.BytesIO()
    Image.new("RGB", (60, 40), (shade, 30, 30)).save(file, "PNG")
    return file.getvalue()


def test_the_commands_of_the_cookbook_do_what_they_promise(folder, capfd):
    own_words, several, products, again, review = commands(COOKBOOK)  # all of them
    for name, text in files(COOKBOOK).items():
        (folder / name).write_text(text)
    (folder / "late.mp4").unlink()

    def rows(output):
        return pq.read_table(folder / output).sort_by("row_id").to_pylist()

    assert run(own_words) == 0, capfd.readouterr().err
    here, late = rows("captions")
    assert here["caption"]
    assert late["error_code"] == "media_missing"

    assert run(several) == 0, capfd.readouterr().err
    here = rows("answers")[0]
    assert here["mood"]
    tags = next(each for each in here["answers"] if each["question"] == "tags")
    if tags["status"] == "ok":
        assert here["tags"].keys() == {"objects", "indoors"}
    else:
        assert (tags["finish_reason"], here["tags"]) == ("length", None)
        assert tags["text"]

    assert run(products) == 0, capfd.readouterr().err
    two, one = rows("products")
    assert two["num_visual_tokens"] == 2 * one["num_visual_tokens"]
    assert two["caption"]

    (folder / "late.mp4").write_bytes(make_video(numbers=range(8, 16)))
    assert run([*again, "--dry-run"]) == 0
    assert "--retry-failed tries 1 of them again" in capfd.readouterr().out
    assert run(again) == 0, capfd.readouterr().err
    here, late = rows("captions")
    assert late["caption"]
    assert (here["attempts"], late["attempts"]) == (1, 2)

    assert run(review) == 0
    assert late["caption"] in (folder / "captions.html").read_text()


def test_the_row_that_the_readme_shows_is_the_row_that_comes_out(folder):
    prepare("README.md", folder)
    assert run(next(command for command in commands(README) if "shapes" in command)) == 0
    row = pandas.read_parquet("shapes").set_index("row_id", drop=False).loc["clip-0000"]
    (shown,) = [f.text for f in fences(README) if f.text.startswith("row_id")]
    for line in shown.splitlines():
        column, value = line.split(maxsplit=1)
        there = row[column].tolist() if column == "frame_times_s" else row[column]
        assert value == str(there), column


def test_windows_of_a_long_video_are_listed_and_merged(folder, capfd):
    listed, merged = commands(ROOT / "docs" / "long-videos.md")
    for command in (listed, merged):
        assert run(command) == 0, capfd.readouterr().err
        output = command[command.index("--output") + 1]
        (row,) = pq.read_table(folder / output).to_pylist()
        assert len(row["timeline"]) == 3
        assert row["caption"]


def test_a_page_with_typed_answers_gives_the_types_that_it_says(folder, capfd):
    page = ROOT / "docs" / "prompts-and-schemas.md"
    for name, text in files(page).items():
        (folder / name).write_text(text)
    typed = next(command for command in commands(page) if "prompts.yaml" in command)
    assert run(typed) == 0, capfd.readouterr().err
    kind = pq.read_table(folder / "answers").schema.field("people").type
    (shown,) = re.findall(r"`people` above is a `(.*)`", page.read_text())
    assert str(kind).replace("element: ", "").replace("large_string", "string") == shown
