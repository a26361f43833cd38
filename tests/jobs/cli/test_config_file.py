"""Options from a file: the command line wins, mistakes are one line, a run can be repeated."""

import importlib
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from jobs import caption_videos, describe_images
from jobs.cli import config_file
from jobs.cli.pipeline_config import pipeline_config

REQUIRED = ["--input", "clips.parquet", "--output", "out", "--model", "demo"]


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write


def parse(*arguments):
    return config_file.parse(caption_videos.make_parser, arguments)


def test_a_file_gives_options_by_their_names(written):
    config = written(
        "input: a.parquet\noutput: o\nmodel: demo\nframes: 16\nframe-tokens: max\ntop-p: 0.9\n"
        "stop: [one, 'two: three']\nkeep-media: true\ncolumns: a,b\nseed:\nprompt: '-x'\n"
    )

    options = parse("--config", config)

    assert (options.input, options.frames, options.top_p) == ("a.parquet", 16, 0.9)
    assert options.frame_tokens is None
    assert options.stop == ["one", "two: three"]
    assert options.keep_media is True
    assert options.columns == ("a", "b")
    assert options.seed == 0
    assert options.prompt == "-x"


def test_a_file_goes_before_the_defaults_of_its_job(written):
    config = written("timestamps: seconds\nprompt: Which?\n")

    options = config_file.parse(describe_images.make_parser, [*REQUIRED, "--config", config])

    assert (options.timestamps, options.prompt) == ("seconds", "Which?")
    assert options.frame_tokens is None  # `max`, which the job sets for itself


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], {"num_frames": 8, "fps": None}),
        (["--tokens-per-row", "4096"], {"num_frames": None, "fps": 1.0}),
        (["--tokens-per-row", "4096", "--frames", "4"], {"num_frames": 4, "fps": None}),
        (["--at", "0,2.5"], {"num_frames": None, "at_s": (0.0, 2.5)}),
        (["--fps", "2", "--keyframes"], {"fps": 2.0, "keyframes_only": True}),
    ],
)
def test_options_choose_the_frames(more, expected):
    frames = pipeline_config(parse(*REQUIRED, *more)).instructions.frames
    assert {name: getattr(frames, name) for name in expected} == expected


def test_a_setting_that_would_unpickle_is_refused_before_a_file_is_opened(monkeypatch):
    monkeypatch.setenv("RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR", "1")
    with pytest.raises(ValueError, match="RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR=1 lets"):
        pipeline_config(parse(*REQUIRED))


@pytest.mark.parametrize(
    ("text", "more", "expected"),
    [
        pytest.param("{}", [], (None, None, None, 8192, 16384), id="chosen for the device"),
        pytest.param(
            "batch-size: 7\nmax-step-tokens: 512\nmax-vision-patches: 4096\ncache-gib: 1.5",
            ["--max-step-tokens", "600"],
            (7, 1.5, None, 600, 4096),
            id="file and command line",
        ),
        pytest.param(
            "batch-size: 7\ncache-gib: 1.5",
            ["--batch-size", "auto", "--cache-gib", "auto"],
            (None, None, None, 8192, 16384),
            id="auto over the file",
        ),
        pytest.param(
            "cache-gib: 1.5",
            ["--cache-fraction", "0.5"],
            (None, None, 0.5, 8192, 16384),
            id="a fraction over the file",
        ),
    ],
)
def test_what_an_engine_takes_on_has_options(written, text, more, expected):
    engine = pipeline_config(parse(*REQUIRED, "--config", written(text), *more)).engine
    found = (engine.max_batch_size, engine.cache_gib, engine.cache_fraction)
    assert (*found, engine.max_step_tokens, engine.max_vision_patches) == expected


@pytest.mark.parametrize("name", ["max-step-tokens", "max-vision-patches", "batch-size"])
def test_an_engine_takes_on_something(capsys, name):
    with pytest.raises(SystemExit):
        parse(*REQUIRED, f"--{name}", "0")
    assert "'0' is not a positive whole number" in capsys.readouterr().err


def test_every_limit_has_an_option(capsys):
    more = ["--max-media-bytes", "500M", "--max-pixels", "7", "--max-duration-s", "1.5"]
    more += ["--max-stream-frames", "8", "--max-pages", "9", "--max-rgb-bytes", "1GiB"]
    more += [
        "--max-windows",
        "6",
        "--max-decode-s",
        "2",
        "--max-decode-bytes",
        "12k",
        "--allow-folder",
        "/data",
    ]
    config = pipeline_config(parse(*REQUIRED, *more))
    assert asdict(config.instructions.limits) == {
        "max_bytes": 500 << 20,
        "max_pixels": 7,
        "max_duration_s": 1.5,
        "max_stream_frames": 8,
        "max_pages": 9,
        "max_windows": 6,
        "max_rgb_bytes": 1 << 30,
        "max_decode_s": 2.0,
        "max_decode_bytes": 12 << 10,
    }
    assert config.allowed_folders == ("/data",)
    for value in ("0", "-1", "8X", "G", ""):
        with pytest.raises(SystemExit):
            parse(*REQUIRED, f"--max-media-bytes={value}")
        assert "is not a size such as 500M or 8G" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "more", "expected"),
    [
        ("frames: 16", ["--frames", "4"], {"frames": 4, "fps": None}),
        ("fps: 2", ["--frames", "4"], {"frames": 4, "fps": None}),
        ("frames: 4", ["--fps", "2"], {"frames": None, "fps": 2.0}),
        ("stop: [a, b]", ["--stop", "c"], {"stop": ["c"]}),
        ("keep-media: false", ["--keep-media"], {"keep_media": True}),
        ("top-k: 3", ["--top-k=5"], {"top_k": 5}),
        ("", [], {"max_frames": 128}),
    ],
)
def test_the_command_line_wins(written, text, more, expected):
    text = text or "{}"

    options = parse(*REQUIRED, "--config", written(text), *more)

    assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frame: 3", "there is no option 'frame'; the nearest is 'frames'"),
        ("frame_tokens: 3", "the nearest is 'frame-tokens'"),
        ("7: 3", "there is no option 7; the nearest is"),
        ("config: x.yaml", "'config' cannot be set in a file; give --config on the command line"),
        (
            "retry-failed: all",
            "'retry-failed' cannot be set in a file; give --retry-failed on the command line",
        ),
        ("frames: 0", "argument --frames: '0' is not a positive whole number"),
        ("frames: [1, 2]", "frames takes one value of text or numbers, got [1, 2]"),
        ("prompt: yes", "prompt takes one value of text or numbers, got True; quote text"),
        ("stop: [{a: 1}]", "stop takes values of text or numbers"),
        ("keep-media: 1", "keep-media must be true or false, got 1"),
        ("frames: 3\nfps: 1", "argument --fps: not allowed with argument --frames"),
        ("frames: 3\nfps: 1\nframes: 4", "line 3: 'frames' is given twice"),
        ("frames: 3\n fps: 1", "line 2: not valid YAML"),
        ("frames: [3", "line 1: not valid YAML"),
        ("- frames", "must be a mapping of names to values"),
        ("", "must be a mapping"),
        (
            "input: !!python/name:os.system x",
            "line 1: not valid YAML, could not determine a constructor",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_names_it(written, capsys, text, message):
    config = written(text)

    with pytest.raises(SystemExit) as caught:
        parse(*REQUIRED, "--config", config)

    printed = capsys.readouterr().err
    assert caught.value.code == 2
    assert printed.startswith(f"caption_videos: error: {config}: ")
    assert message in printed
    assert printed.count("\n") == 1


def test_a_file_may_lie_on_an_object_store(bucket, capsys):
    with bucket.filesystem.open_output_stream(f"{bucket.name}/out/_run.yaml") as stream:
        stream.write(b"frames: 16")

    assert parse(*REQUIRED, "--config", bucket.uri("out/_run.yaml")).frames == 16
    missing = (bucket.uri("out/no.yaml"), "cannot be read: Path does not exist")
    for uri, reason in (missing, ("no://b/x", "Protocol not known: no")):
        with pytest.raises(SystemExit):
            parse(*REQUIRED, "--config", uri)
        printed = capsys.readouterr().err
        assert printed.startswith(f"caption_videos: error: {uri}: {reason}")
        assert printed.count("\n") == 1


def test_a_missing_file_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(*REQUIRED, "--config", str(tmp_path / "no.yaml"))

    assert "no.yaml: cannot be read: No such file" in capsys.readouterr().err


def test_what_is_required_may_stand_in_the_file_and_must_stand_somewhere(written, capsys):
    config = written("input: a.parquet\nmodel: demo")

    assert parse("--config", config, "--output", "o").input == "a.parquet"
    with pytest.raises(SystemExit):
        parse("--config", config)
    assert "the following arguments are required: --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--fps", "0.5", "--max-frames", "64", "--frame-tokens", "max", "--stop", "a", "--stop=b"],
        ["--frames", "4", "--keep-media", "--columns", "a,b", "--prompt", "Say: 'yes' \u00e9\n- 3"],
        ["--seed", "007", "--prompt", "12", "--groups", "auto", "--temperature", "1e-1"],
        ["--allow-folder", "/data/a", "--allow-folder", "/data/b", "--allow-uri", "s3://b/a"],
    ],
)
def test_what_is_written_back_repeats_the_run(written, tmp_path, monkeypatch, more):
    (tmp_path / "clips.parquet").touch()
    monkeypatch.chdir(tmp_path)
    first = parse(*REQUIRED, *more)

    again = parse("--config", written(first.run_yaml))

    assert again.run_yaml == first.run_yaml
    assert again.input == str(tmp_path / "clips.parquet")
    first.input, first.output = again.input, again.output
    first.config = again.config
    assert vars(again) == vars(first)
    assert pipeline_config(again) == pipeline_config(first)


def test_folders_are_written_back_absolute_so_that_a_run_repeats_from_elsewhere(
    written, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    first = parse(*REQUIRED, "--allow-folder", "media", "--allow-folder", "~/clips")
    allowed = (str(tmp_path / "media"), "/home/me/clips")

    assert pipeline_config(first).allowed_folders == allowed
    again = parse("--config", written(first.run_yaml))
    monkeypatch.chdir("/")
    assert pipeline_config(again).allowed_folders == allowed


def test_what_travelled_with_a_submitted_job_is_written_back_by_its_place_there(
    written, tmp_path, monkeypatch
):
    copies = [tmp_path / "runtime_resources" / "working_dir_files" / name for name in "ab"]
    for copy in copies:
        copy.mkdir(parents=True)
        (copy / "clips.parquet").touch()
        (copy / "prompts.yaml").write_text("mood: What is the mood?")
    monkeypatch.chdir(copies[0])
    required = ["--input", "clips.parquet", "--output", "/data/out", "--model", "demo"]
    first = parse(*required, "--prompts", "prompts.yaml", "--expert-placement", "load.parquet")

    assert str(tmp_path) not in first.run_yaml
    monkeypatch.chdir(copies[1])
    again = parse("--config", written(first.run_yaml))
    assert again.run_yaml == first.run_yaml
    assert len(pipeline_config(again).instructions.named_prompts) == 1


def test_what_is_written_back_has_no_credentials_and_still_says_where_things_are():
    secret = "s3://KEY:SECRET@bucket/clips"
    arguments = ["--input", f"{secret}?region=eu-west-1&endpoint_override=host:9000&token=SECRET"]
    arguments += ["--output", secret, "--model", "demo", "--expert-placement", secret]
    arguments += ["--allow-uri", secret, "--allow-uri", "https://user:SECRET@host/"]

    options = parse(*arguments, "--prompt", "What is a://b@c?")

    assert "SECRET" not in options.run_yaml
    assert "KEY" not in options.run_yaml
    again = yaml.safe_load(options.run_yaml)
    assert again["input"] == "s3://bucket/clips?region=eu-west-1&endpoint_override=host:9000"
    assert again["output"] == again["expert-placement"] == "s3://bucket/clips"
    assert again["allow-uri"] == ["s3://bucket/clips", "https://host/"]
    assert again["prompt"] == "What is a://b@c?"
    assert options.input.startswith(secret)  # the run itself has them


def row_jobs():
    """Every module of `jobs` whose parser takes rows, found by looking."""
    for file in sorted(Path(caption_videos.__file__).parent.glob("*.py")):
        if "def make_parser()" in file.read_text():
            parser = importlib.import_module(f"jobs.{file.stem}").make_parser()
            if "--input" in parser.format_help() and "--model" in parser.format_help():
                yield pytest.param(parser, id=file.stem)


@pytest.mark.parametrize("parser", list(row_jobs()))
def test_every_job_over_rows_has_the_shared_options_and_teaches_them(parser):
    text = parser.format_help()

    shared = "--config --dry-run --retry-failed --new-recipe --new-rows --expert-parallel"
    for flag in shared.split():
        assert f"  {flag} " in text or f"  {flag}\n" in text
    assert "_run.yaml" in text
    assert "examples:" in text
    assert "exit codes:" in text
    assert all(action.help for action in parser._actions)
