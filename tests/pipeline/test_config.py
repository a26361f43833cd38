"""What a run records of its configuration, under keys that no renaming may change."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import PipelineConfig, as_begun, recipe_of
from pipeline.media.frame_sampling import FrameSampling
from pipeline.output.recipe import differences
from pipeline.output.shards import Shard
from pipeline.prompts.frame_view import FrameView
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.named_prompts import NamedPrompt
from pipeline.schema import InputColumns, check_input
from tests.tiny import tiny_checkpoint

LAYOUT = check_input(pa.schema([("video", pa.string())]), InputColumns())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


def recorded(checkpoint, **instructions):
    asked = Instructions(**instructions)
    config = PipelineConfig(input="x", output="y", checkpoint=checkpoint, instructions=asked)
    return recipe_of(config, LAYOUT).plain_fields


def test_the_background_is_recorded_by_its_colour(checkpoint):
    assert recorded(checkpoint)["background"] == "#ffffff"
    assert recorded(checkpoint, background="#000080")["background"] == "#000080"


def test_an_output_from_before_backgrounds_goes_on_without_one(checkpoint):
    config = PipelineConfig(input="x", output="y", checkpoint=checkpoint)
    old = recorded(checkpoint, background="none")
    assert recipe_of(as_begun(config, old), LAYOUT).plain_fields == old
    assert as_begun(config, None) == config
    assert as_begun(config, recorded(checkpoint)) == config
    asked = replace(config, instructions=Instructions(background="#ffffff"))
    assert as_begun(asked, old) == asked
    told = list(differences(old, recipe_of(asked, LAYOUT).plain_fields))
    assert told == ['background: null -> "#ffffff"']


def test_without_a_background_a_recipe_has_the_keys_that_outputs_have_always_had(checkpoint):
    # Outputs from before the option hold captions of the colours under the transparency.
    assert list(recorded(checkpoint, background="none")) == [
        *("recipe_version", "checkpoint", "prompt", "questions", "system", "frames"),
        *("timestamps", "max_frame_tokens", "max_row_tokens", "sampling", "dtype"),
        *("max_model_len", "columns", "make_ids_unique", "output_columns"),
    ]


def test_named_prompts_are_recorded_as_questions_with_looks(checkpoint):
    view = FrameView(frames=FrameSampling(num_frames=2), timestamps="none", max_row_tokens=64)
    prompts = (NamedPrompt(name="mood", text="?", view=view), NamedPrompt(name="who", text="!"))

    mood, who = recorded(checkpoint, named_prompts=prompts)["questions"]

    assert list(mood) == list(who) == ["name", "text", "sampling", "look", "over"]
    assert (mood["name"], mood["text"], mood["over"], who["look"]) == ("mood", "?", None, None)
    assert mood["look"] == {
        "frames": {
            "num_frames": 2, "fps": None, "at_s": None, "max_frames": 128, "keyframes_only": False,
        },
        "timestamps": "none", "max_frame_tokens": 256, "max_row_tokens": 64,
    }  # fmt: skip


@pytest.mark.parametrize("rate", [-1.0, float("inf"), float("nan")])
def test_a_rate_of_failures_that_is_no_number_from_0_on_is_refused(rate):
    with pytest.raises(ValueError, match="max_group_failures must be a number and at least 0"):
        PipelineConfig(input="x", output="y", checkpoint=Path("z"), max_group_failures=rate)


def test_new_rows_and_shards_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="--new-rows cannot be used with --shard"):
        PipelineConfig(
            input="in", output="out", checkpoint=tmp_path, new_rows=True, shard=Shard(1, 2)
        )
