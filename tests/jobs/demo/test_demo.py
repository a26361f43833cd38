"""The embedded checkpoint really sees: what a job says of held-out clips is right often enough."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli.checkpoint import find_checkpoint
from jobs.demo.__main__ import OWN_CLIPS, next_commands, show
from jobs.demo.clips import encode, write_clips
from jobs.demo.evaluate import Row, judge, make_clips, questions_about, run_engine
from jobs.demo.judge import Accuracy, judge_caption
from jobs.demo.language import caption, questions
from jobs.demo.scenes import SPLITS, Difficulty, first_seed, random_scene
from tests.conftest import ROOT

NUM_CLIPS = 32
# Below what the evaluation measures, by what so few clips may differ.
FLOORS = {"colour": 0.95, "count": 0.95, "background": 0.95, "shape": 0.95, "motion": 0.9}


def test_captions_of_held_out_clips_are_right_often_enough():
    clips = make_clips("test", NUM_CLIPS)
    rows = [Row(clip=clip, form="caption") for clip in clips]
    accuracy = judge(rows, run_engine(find_checkpoint("demo"), clips).captions)
    for kind, floor in FLOORS.items():
        assert accuracy.fraction(kind) >= floor, (kind, accuracy.fractions())


def test_held_out_clips_are_not_those_of_training():
    for clip in make_clips("test", 4):
        assert clip.scene.seed in SPLITS["test"]
        assert clip.scene.seed not in SPLITS["train"]
    assert first_seed("train", 0, 10**7) in SPLITS["train"]


def test_a_caption_is_judged_attribute_by_attribute():
    scene = random_scene(3, Difficulty(num_shapes=(0.0, 1.0, 0.0), event=0.0, text=0.0))
    truth = caption(scene)
    accuracy = Accuracy()
    judge_caption(accuracy, truth, truth)
    assert set(accuracy.fractions().values()) == {1.0}

    wrong = Accuracy()
    judge_caption(wrong, truth, truth.replace(scene.shapes[0].shape, "hexagon"))
    assert wrong.fraction("count") == 0.0
    assert wrong.fraction("background") == 1.0
    nothing = Accuracy()
    judge_caption(nothing, truth, "")
    assert nothing.right.total() == nothing.asked["no_event"] + nothing.asked["no_text"]


def test_every_clip_is_asked_an_open_question_and_one_with_letters():
    clips = make_clips("validation", 5)
    rows = questions_about(clips)
    assert [row.form for row in rows] == ["open", "choice"] * 5
    for row in rows:
        assert row.question is not None
        assert row.prompt == row.question.text
        assert (row.question.answer in "ABCD") == (row.form == "choice")
    open_texts = {question.text for question in questions(clips[0].scene)}
    assert rows[0].prompt in open_texts
    right = judge(rows, [row.question.answer for row in rows if row.question])
    assert right.fraction("questions") == right.fraction("choice") == 1.0


def test_the_demo_shows_captions_beside_truths(tmp_path, capsys):
    video = encode(np.full((8, 56, 84, 3), 90, np.uint8), 4)
    scene = random_scene(1)
    clips = [
        {"id": "right", "video": video, "truth": caption(scene)},
        {"id": "wrong", "video": video, "truth": caption(scene)},
        {"id": "unknown", "video": video, "truth": ""},
    ]
    said = [caption(scene), "A cat\x1b[31m.", None]
    output = pa.table(
        {
            "id": ["right", "wrong", "unknown"],
            "caption": said,
            "status": ["ok", "ok", "error"],
            "error_code": [None, None, "media_corrupt"],
            "error": [None, None, "broken"],
        }
    )
    (tmp_path / "captions").mkdir()
    pq.write_table(output, tmp_path / "captions" / "part-0.parquet")

    show(pa.Table.from_pylist(clips), tmp_path / "captions", tmp_path / "sheet.png")

    printed = capsys.readouterr().out
    assert f"caption  {caption(scene)}\n  truth    {caption(scene)}" in printed
    assert "\x1b" not in printed
    assert "media_corrupt: broken" in printed
    assert "1 of 2" in printed
    assert str(tmp_path / "captions") in printed
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 300


@pytest.mark.slow
def test_the_next_commands_of_the_demo_run_as_they_are_shown(tmp_path):
    clips, captions = tmp_path / "clips.parquet", tmp_path / "captions"
    write_clips(clips, 1, 0)
    shutil.copy(clips, tmp_path / OWN_CLIPS)
    commands = [words[1:] for _, words in next_commands(clips, captions)]

    for command in reversed(commands):  # the last one makes captions, which the first one shows
        alone = ["--inline"] if "jobs.caption_videos" in command else []
        done = subprocess.run(
            [sys.executable, *command, *alone],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert list(captions.glob("*.parquet"))
