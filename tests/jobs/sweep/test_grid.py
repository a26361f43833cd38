"""A grid in YAML becomes cells with the options of the job; what is no grid is refused."""

import re
import shlex

import pytest

from jobs import caption_videos, sweep_videos
from jobs.cli import config_file
from jobs.sweep import grid
from jobs.sweep.finding import full_command
from jobs.sweep.grid import read_grid


@pytest.fixture
def cells(tmp_path):
    def make(grid, *more, prompt="{question}"):
        path = tmp_path / "grid.yaml"
        path.write_text(grid)
        arguments = [
            *("--input", "q.parquet", "--output", "o", "--model", "demo", "--layout", "open"),
            *("--grid", str(path), *more),
        ]
        options = config_file.parse(sweep_videos.make_parser, arguments)
        return read_grid(str(path), sweep_videos.make_parser, options, prompt), options

    return make


def test_cells_are_the_product_of_the_axes_with_the_options_of_the_job(cells):
    made, options = cells(
        "frames: [1, 4]\nfps: 2\ntimestamps: [none, 'mm:ss']\nprompt: {a: 'x {question}', b: y}\n"
        "temperature: 0.5\nsamples: 3\nframe-tokens: max\n",
        "--max-tokens",
        "9",
    )

    assert len(made) == 3 * 2 * 2
    first, last = made[0], made[-1]
    assert first.name == "frames=1 timestamps=none prompt=a"
    assert first.settings == {
        "frames": 1, "frame-tokens": "max", "timestamps": "none", "prompt": "a",
        "temperature": 0.5, "samples": 3,
    }  # fmt: skip
    assert (first.options.frames, first.options.fps, first.options.prompt) == (
        1,
        None,
        "x {question}",
    )
    assert (last.options.frames, last.options.fps, last.options.prompt) == (None, 2.0, "y")
    assert (last.options.samples, last.options.frame_tokens, last.options.max_tokens) == (
        3,
        None,
        9,
    )
    assert options.frames is None
    assert len({cell.name for cell in made}) == 12


def test_one_cell_and_the_prompt_of_the_layout(cells):
    (cell,), _ = cells("frames: 4", prompt="from the layout")

    assert (cell.name, cell.options.prompt) == ("all", "from the layout")


def test_the_manual_names_every_axis_and_last_those_with_runs_of_their_own():
    text = sweep_videos._DESCRIPTION.partition("axes: ")[2]
    named = [name.strip() for name in re.sub(r"\([^)]*\)", "", text).split(",")]

    assert sorted(named) == sorted(grid._AXES)
    assert set(named[-len(grid.MACHINE) :]) == set(grid.MACHINE)


def test_machine_layouts_are_runs_of_their_own(cells):
    made, _ = cells("expert-parallel: [1, 2]\nwire-dtype: float8\nframes: [1, 2]")

    one, two = (1, None, None, "float8"), (2, None, None, "float8")
    assert [cell.machine for cell in made] == [one, one, two, two]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("{}", "the file is empty; name at least one option"),
        ("", "must be a mapping"),
        ("frames: []", "frames has no values, so the grid has no cells"),
        ("framez: [1]", "there is no axis 'framez'; the nearest is 'frames'"),
        ("seed: [1, 2]", "there is no axis 'seed'"),
        ("frames: [1, 1]", "frames has 1 twice"),
        ("frames: [[1]]", "frames takes values of text or numbers, got [1]"),
        ("frames: [1\n", "not valid YAML"),
    ],
)
def test_what_is_no_grid_is_refused(cells, grid, message):
    with pytest.raises(ValueError, match=r"^--grid .*grid\.yaml: ") as caught:
        cells(grid)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_that_its_option_does_not_take_is_told_with_the_file(cells, capsys):
    with pytest.raises(SystemExit) as caught:
        cells("frames: [0]")

    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert "grid.yaml: argument --frames: '0' is not a positive whole number" in err
    assert err.count("\n") == 1


def test_the_full_job_has_the_settings_of_the_cell(cells):
    made, options = cells(
        "fps: [1, 2]\ntimestamps: [none]\nexpert-parallel: [2]", "--frame-tokens", "64"
    )

    command = shlex.split(full_command(made[1], options, caption_videos.make_parser()))

    assert command[:7] == [
        *("python", "-m", "jobs.caption_videos", "--input", "CLIPS.parquet"),
        *("--output", "CAPTIONS"),
    ]
    job = config_file.parse(caption_videos.make_parser, command[3:])
    assert (job.fps, job.frames, job.timestamps, job.frame_tokens) == (2.0, None, "none", 64)
    assert (job.expert_parallel, job.model, job.temperature, job.max_tokens) == (
        2,
        "demo",
        0.0,
        512,
    )
    assert job.prompt == "Describe this video in detail."


def test_the_full_job_has_room_for_what_the_grid_gave_room_for(cells):
    made, options = cells("max-tokens: [16, 32]\nprompt: What moves?")

    commands = [
        shlex.split(full_command(cell, options, caption_videos.make_parser())) for cell in made
    ]

    jobs = [config_file.parse(caption_videos.make_parser, command[3:]) for command in commands]
    assert [job.max_tokens for job in jobs] == [16, 32]
    assert jobs[0].prompt == "What moves?"
