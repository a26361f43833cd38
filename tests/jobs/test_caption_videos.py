"""The command: its manual, its refusals in one line, and five rows from end to end."""

import re
import stat
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import caption_videos
from jobs.cli import checkpoint as checkpoint_module
from jobs.cli.checkpoint import find_checkpoint
from tests.clips import make_video, real_clips
from tests.tiny import tiny_checkpoint

SCRIPT = Path(caption_videos.__file__)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


@pytest.fixture
def place(tmp_path, checkpoint):
    """Arguments for three real clips, a corrupt file and a missing one."""
    (tmp_path / "corrupt.mp4").write_bytes(make_video()[:500])
    clips = real_clips()
    videos = [str(clips[name]) for name in ("bigbuckbunny", "bikes", "carphone_pristine")]
    table = pa.table({"video": [*videos, "corrupt.mp4", "missing.mp4"], "key": list("abcde")})
    pq.write_table(table, tmp_path / "clips.parquet")
    return {
        "--input": str(tmp_path / "clips.parquet"),
        "--output": str(tmp_path / "out"),
        "--model": str(checkpoint),
        "--allow-folder": str(clips["bikes"].parent),
    }


def call(place, *more, **changes):
    changed = place | {f"--{name}": value for name, value in changes.items()}
    return caption_videos.main([text for pair in changed.items() for text in pair] + [*more])


def test_three_clips_are_captioned_and_two_rows_say_what_was_wrong(place, capfd):
    code = call(place, "--inline", "--id-column", "key", "--frames", "8", "--max-tokens", "8")

    printed = capfd.readouterr()
    assert code == 0, printed.err
    rows = pq.read_table(place["--output"]).sort_by("row_id").to_pylist()
    assert [row["row_id"] for row in rows] == list("abcde")
    assert all(row["status"] in ("ok", "truncated") for row in rows[:3])
    assert [row["media_width"] for row in rows] == [1280, 640, 193, None, None]
    assert [row["media_codec"] for row in rows[:3]] == ["h264"] * 3
    assert [row["num_decode_errors"] for row in rows[:3]] == [0, 0, 0]
    assert all(len(row["frame_times_s"]) == 8 and row["num_generated_tokens"] for row in rows[:3])
    assert [row["error_code"] for row in rows[3:]] == ["media_corrupt", "media_missing"]
    assert all(row["error"] and row["caption"] is None for row in rows[3:])
    assert "5 rows in = 5 written: 2 error, " in printed.out
    assert "= 3 done + 2 failed: 1 media_corrupt, 1 media_missing" in printed.out
    assert "5/5" in printed.err
    assert "Traceback" not in printed.err

    # The same run again, as the output directory remembers it.
    assert caption_videos.main(["--config", f"{place['--output']}/_run.yaml"]) == 0
    assert "nothing to do: all rows are done" in capfd.readouterr().out


def test_a_run_on_gpus_that_are_not_there_stops_at_once(place, capfd):
    assert call(place, "--inline", "--device", "cuda") == 1

    assert "error: device=cuda, but there is no GPU here" in capfd.readouterr().err
    assert not list(Path(place["--output"]).glob("part-*"))


def test_several_prompts_fill_a_column_each(place, capfd):
    prompts = Path(place["--output"]).parent / "prompts.yaml"
    prompts.write_text("mood: What is the mood of {key}?\nsure:\n  text: Yes?\n  max-tokens: 2\n")

    code = call(place, "--inline", "--prompts", str(prompts), "--frames", "2", "--max-tokens", "4")

    printed = capfd.readouterr()
    assert code == 0, printed.err
    rows = pq.read_table(place["--output"]).sort_by("row_id").to_pylist()
    assert len(rows) == 5
    assert "5 rows in = 5 written: 2 error, " in printed.out
    for row in rows[:3]:
        mood, sure = row["answers"]
        assert row["mood"] is not None
        assert row["sure"] is not None
        assert row["num_prompt_tokens"] == mood["num_prompt_tokens"] + sure["num_prompt_tokens"]
        assert sure["num_generated_tokens"] <= 2
        assert row["caption"] is None
    assert [row["error_code"] for row in rows[3:]] == ["media_corrupt", "media_missing"]


@pytest.mark.parametrize(
    ("share", "code"),
    [("1", 0), ("0.9", 3), ("0", 3)],
)
def test_a_run_of_errors_alone_says_so_and_can_fail(place, capfd, share, code):
    table = pa.table({"video": ["missing.mp4", "corrupt.mp4"], "key": list("de")})
    pq.write_table(table, place["--input"])

    ended = call(place, "--inline", "--id-column", "key", "--fail-if-errors", share)

    printed = capfd.readouterr()
    assert ended == code, printed.err
    last = printed.out.strip().splitlines()[-1]
    assert last.startswith(
        "ALL 2 ROWS OF THIS RUN FAILED: 1 media_corrupt, 1 media_missing; the first is d: "
    )
    told = "100.0% of the rows that this run wrote are errors, and --fail-if-errors allows"
    assert (told in printed.err) == (code == 3)
    assert len(pq.read_table(place["--output"])) == 2
    assert call(place, "--inline", "--id-column", "key", "--fail-if-errors", "0") == 0  # wrote none


@pytest.mark.parametrize("share", ["1.1", "-0.1", "many", "nan"])
def test_a_share_is_a_number_from_0_to_1(place, share, capsys):
    with pytest.raises(SystemExit):
        call(place, f"--fail-if-errors={share}")

    assert f"{share!r} is not a share from 0 to 1" in capsys.readouterr().err


def empty(place):
    pq.write_table(pa.table({"video": pa.array([], pa.string())}), place["--input"])


def without_video(place):
    pq.write_table(pa.table({"clip": ["x.mp4"]}), place["--input"])


def without_a_tensor(place):
    _copy_checkpoint(place)
    from safetensors.torch import load_file, save_file

    file = next(Path(place["--model"]).glob("*.safetensors"))
    tensors = load_file(file)
    del tensors[next(name for name in tensors if "embed_tokens" in name or "layers.0" in name)]
    save_file(tensors, file)


def with_an_unknown_setting(place):
    _copy_checkpoint(place)
    file = Path(place["--model"]) / "config.json"
    file.write_text(file.read_text().replace('"silu"', '"swish9"'))


def with_a_misspelt_field(place):
    with_no_prompts(place)
    Path(place["--prompts"]).write_text("mood: What is {keyy}?")


def with_no_prompts(place):
    place["--prompts"] = str(Path(place["--output"]).parent / "prompts.yaml")


def _copy_checkpoint(place):
    copy = Path(place["--output"]).parent / "copy"
    copy.mkdir()
    for file in Path(place["--model"]).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    place["--model"] = str(copy)


def with_an_impossible_schema(place):
    Path(place["--output"]).with_name("schema.json").write_text('{"type": "strin"}')
    place["--schema"] = str(Path(place["--output"]).with_name("schema.json"))


def with_a_schema_that_nothing_meets(place):
    schema = Path(place["--output"]).with_name("schema.json")
    schema.write_text('{"type": "integer", "minimum": 5, "maximum": 3}')
    place["--schema"] = str(schema)


def with_a_prompt_whose_schema_nothing_meets(place):
    with_no_prompts(place)
    Path(place["--prompts"]).write_text(
        "mood: Sad?\nkind:\n  text: Which?\n  as: json\n  schema: {enum: []}"
    )


def with_a_typo_in_the_prompts(place):
    with_no_prompts(place)
    Path(place["--prompts"]).write_text("mood: Sad?\nkind:\n  txt: Which?")


@pytest.mark.parametrize(
    ("spoil", "more", "message"),
    [
        pytest.param(empty, [], "has no rows", id="empty Parquet"),
        pytest.param(without_video, [], "no media column 'video'", id="no video column"),
        pytest.param(without_a_tensor, [], "lacks|do(es)? not hold", id="missing tensor"),
        pytest.param(with_an_unknown_setting, [], "swish9", id="unknown config value"),
        pytest.param(with_an_impossible_schema, [], "Invalid type: strin", id="bad schema"),
        pytest.param(None, ["--schema", "x.json"], "x.json cannot be read", id="no schema"),
        pytest.param(None, ["--cache-fraction", "2"], r"must be in \(0, 1\], got 2.0", id="cache"),
        pytest.param(None, ["--thinking"], "there is none", id="thinking without schema"),
        pytest.param(None, ["--input", "no.parquet"], "does not exist", id="no input"),
        pytest.param(None, ["--output", "no://b/o"], "cannot write to the output", id="output"),
        pytest.param(None, ["--model", "no-such"], "no such directory", id="no checkpoint"),
        pytest.param(None, ["--temperature", "-1"], "between 0 and 10", id="temperature"),
        pytest.param(
            None, ["--max-decode-s", "inf"], "must be positive and finite, got inf", id="no limit"
        ),
        pytest.param(None, ["--cache-gib", "inf"], "cache_gib must be .* got inf", id="cache size"),
        pytest.param(
            None, ["--merge-prompt", "x", "--window-s", "1"], "needs --merge", id="no merge"
        ),
        pytest.param(None, ["--merge-prompt", "x"], "needs --merge", id="no windows to merge"),
        pytest.param(None, ["--retry-failed", ","], "',' names no error code", id="no codes"),
        pytest.param(None, ["--retry-failed", "x"], "no error code 'x'.*temporary", id="code"),
        pytest.param(None, ["--fps", "0"], "fps must be a positive", id="fps"),
        pytest.param(None, ["--prompt", " "], "the prompt is empty", id="no prompt"),
        pytest.param(with_a_misspelt_field, [], "{keyy}.*the nearest is 'key'", id="template"),
        pytest.param(
            with_a_schema_that_nothing_meets, [], "minimum .5. is greater than maximum", id="unmet"
        ),
        pytest.param(
            with_a_prompt_whose_schema_nothing_meets,
            [],
            "schema of the prompt 'kind' is refused: .*Unsatisfiable",
            id="unmet in prompts",
        ),
        pytest.param(with_a_typo_in_the_prompts, [], "kind: it must be", id="typo in prompts"),
        pytest.param(with_no_prompts, [], "prompts.yaml cannot be read|cannot be read", id="file"),
        pytest.param(None, ["--seed", "-1"], "seed must be in", id="seed"),
        pytest.param(None, ["--allow-uri", "s3"], "is not a prefix", id="prefix"),
        pytest.param(None, ["--frames", "1000000"], "1,000,000 frames of a row", id="frames"),
        pytest.param(None, ["--columns", "nothing"], "no carried column 'nothing'", id="column"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(place, capsys, monkeypatch, spoil, more, message):
    monkeypatch.setattr("pipeline.monitor.announce._SLOW_S", 60.0)  # a busy machine is no news
    if spoil is not None:
        spoil(place)

    assert call(place, *more) == 2

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("caption_videos: error: ")
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err), printed.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--frames", "0"], "argument --frames: '0' is not a positive whole number"),
        (["--frames", "4", "--fps", "1"], "argument --fps: not allowed with argument --frames"),
        (["--frame-tokens", "many"], "argument --frame-tokens: 'many' is not a positive"),
        (["--timestamps", "hh"], "argument --timestamps: invalid choice: 'hh'"),
        (["--flames", "3"], "unrecognized arguments: --flames 3; did you mean --frames? (see"),
        (["--temprature=1"], "--temprature=1; did you mean --temperature? (see --help)"),
        (["--zebra", "3"], "unrecognized arguments: --zebra 3 (see --help)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_refused_in_one_line(place, capsys, more, message):
    with pytest.raises(SystemExit) as caught:
        call(place, *more)

    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_the_manual_names_every_option_output_and_exit_code(capsys):
    with pytest.raises(SystemExit) as caught:
        caption_videos.main(["--help"])

    text = capsys.readouterr().out
    assert caught.value.code == 0
    for word in ("--input", "--timestamps", "mean_logprob", "examples:", "ray job submit", "130"):
        assert word in text
    assert "None" not in text


def test_it_runs_as_a_file_from_anywhere(tmp_path):
    assert SCRIPT.stat().st_mode & stat.S_IXUSR
    assert SCRIPT.read_text().startswith("#!/usr/bin/env python\n")

    done = subprocess.run(
        [sys.executable, SCRIPT, "--input", "x.parquet", "--output", "o", "--model", "/nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]  # a busy machine says before that it is checking
    assert last.startswith("caption_videos: error: --model /nowhere: there is no such")


def test_every_module_that_says_how_it_runs_as_a_file_is_executable():
    with_shebang = [
        file for file in SCRIPT.parent.rglob("*.py") if file.read_text().startswith("#!")
    ]

    assert SCRIPT.with_name("parse_documents.py") in with_shebang
    assert [file.name for file in with_shebang if not file.stat().st_mode & stat.S_IXUSR] == []


def test_a_model_is_a_directory_or_a_name(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    assert find_checkpoint(checkpoint.name) == checkpoint

    monkeypatch.setattr(checkpoint_module, "DEMO", tmp_path)
    assert find_checkpoint("demo") == tmp_path
    monkeypatch.setattr(checkpoint_module, "DEMO", tmp_path / "gone")
    with pytest.raises(ValueError, match="the demo checkpoint is missing"):
        find_checkpoint("demo")

    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ValueError, match="is a file; name the directory"):
        find_checkpoint(str(file))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        pytest.param("a/b", "LocalEntryNotFoundError", "cannot be reached; connect", id="offline"),
        pytest.param("a/b", "RepositoryNotFoundError", "check the spelling, or run", id="404"),
        pytest.param("a/b", "GatedRepoError", "accept its terms .*hf auth login", id="gated"),
        pytest.param("a/b", "OSError", r"\(disk full\); download it elsewhere", id="disk full"),
        pytest.param("a b/c", None, "neither a directory nor a Hugging Face id", id="not an id"),
        pytest.param("a/b/c", None, "not a Hugging Face id like", id="too many slashes"),
    ],
)
def test_a_checkpoint_that_cannot_be_fetched_says_what_to_do(monkeypatch, name, error, message):
    import huggingface_hub.errors

    def download(*_args, **options):
        assert not any(
            pattern.endswith((".py", ".bin", "*")) for pattern in options["allow_patterns"]
        )
        kind = OSError if error == "OSError" else getattr(huggingface_hub.errors, error)
        if issubclass(kind, huggingface_hub.errors.HfHubHTTPError):
            raise kind("disk full", response=Mock())
        raise kind("disk full")

    if error is not None:
        monkeypatch.setattr(checkpoint_module, "snapshot_download", download)

    with pytest.raises(ValueError, match=message):
        find_checkpoint(name)
