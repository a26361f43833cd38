"""`--dry-run`: what a run would do is known without Ray, and nothing is written."""

import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import caption_videos
from pipeline.dry_run import RowCounts, dry_run
from pipeline.output import ledger
from pipeline.output.in_flight import write_journal
from pipeline.output.poison import RUNS
from pipeline.prompts.named_prompts import NamedPrompt
from pipeline.schema import ErrorCode
from pipeline.status import TEMPORARY
from tests.pipeline.runs import answer_without_ray, small_config, store_of
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


@pytest.fixture
def config(tmp_path, checkpoint):
    return small_config(tmp_path, checkpoint)


def ahead(config, **changes):
    return dry_run(replace(config, **changes), num_gpus=0, where="here")


def files_of(config):
    output = Path(config.output)
    return {path: path.stat().st_mtime_ns for path in output.parent.rglob("*")}


def half_done(config):
    """Rows 0 and 1 are done, 2 and 3 failed in two ways, 4 and 5 are new."""
    answer_without_ray(config, [0, 1])
    answer_without_ray(config, [2], code="media_missing")
    answer_without_ray(config, [3], code="no_frames")


def test_a_new_output_is_all_new_and_is_not_made(config):
    found = ahead(config, rows_per_part=4)

    assert found.counts == RowCounts(
        all=6, new=6, done=0, failed=0, retried=0, quarantined=0, poisoned=0
    )
    assert not Path(config.output).exists()
    text = str(found)
    assert "6 rows in 1 file of" in text
    assert "parts     2 or more, of at most 4 rows" in text
    assert "machines  1 group of 1 rank on cpu" in text
    assert text.endswith("nothing was started, nothing was written")


def test_gpus_that_cannot_hold_a_group_are_part_of_the_answer(config):
    asked = replace(config, expert_parallel=4)
    assert dry_run(asked, num_gpus=4, where="here").deployment.startswith("1 group of 4 ranks")
    refused = dry_run(asked, num_gpus=2, where="here").deployment
    assert re.search(r"^REFUSED: .* 4 GPUs on one node.* 2 GPUs;.*\(here\)$", refused)


def test_rows_are_counted_as_new_done_and_failed_by_code(config):
    half_done(config)
    before = files_of(config)

    found = ahead(config)

    assert found.counts == RowCounts(
        all=6, new=2, done=2, failed=2, retried=0, quarantined=0, poisoned=0
    )
    assert found.num_todo == 2
    assert "rows      2 new, 2 done, 2 failed" in str(found)
    assert "1 media_missing, 1 no_frames; they stay; --retry-failed would" in str(found)
    assert files_of(config) == before


def test_what_retry_failed_would_do_is_told(config):
    half_done(config)

    some = ahead(config, retry_failed=(ErrorCode.NO_FRAMES,))
    all_of_them = ahead(config, retry_failed=tuple(ErrorCode))

    assert (some.counts.retried, some.num_todo) == (1, 3)
    assert (all_of_them.counts.retried, all_of_them.num_todo) == (2, 4)
    assert "--retry-failed tries 2 of them again and replaces them" in str(all_of_them)


def test_failures_that_may_pass_by_themselves_are_told(config):
    half_done(config)
    assert "--retry-failed temporary" not in str(ahead(config))
    answer_without_ray(config, [4], code="fetch_failed")

    found = ahead(config, retry_failed=TEMPORARY)

    assert found.counts.retried == 1
    assert "1 may be answered when tried again: --retry-failed temporary" in str(found)


def test_what_the_input_leaves_out_is_told(config):
    (Path(config.input) / "notes.txt").touch()
    assert "left out  7 with another suffix than" in str(ahead(config))


def test_gpus_that_are_not_there_are_told(config):
    text = str(ahead(config, device="cuda"))

    assert "machines  REFUSED: device=cuda, but there is no GPU here; use --device" in text


def test_a_limit_counts_its_rows_alone(config):
    half_done(config)

    counts = ahead(config, limit=3).counts

    assert (counts.all, counts.new, counts.done, counts.failed) == (3, 0, 2, 1)


def test_another_recipe_is_told_with_its_differences(config):
    half_done(config)
    other = replace(config, sampling=replace(config.sampling, max_tokens=9))

    refused, anew = ahead(other), ahead(other, new_recipe=True)

    assert "sampling.max_tokens: 4 -> 9" in str(refused)
    assert "the run would be REFUSED; --new-recipe would move the 4 rows" in str(refused)
    assert refused.num_todo == 0
    assert "--new-recipe moves the 4 rows to _old-<time>/ and does all 6 rows anew" in str(anew)
    assert anew.num_todo == 6


def asking(config, *questions):
    asked = tuple(NamedPrompt(name=name, text=text) for name, text in questions)
    return replace(config, instructions=replace(config.instructions, named_prompts=asked))


def test_other_prompts_are_told_by_name(config):
    before = asking(config, ("mood", "Which mood?"), ("kind", "Which kind?"))
    answer_without_ray(before, [0])

    def changes(*questions):
        return ahead(asking(config, *questions)).changes

    assert changes(("mood", "What mood?"), ("kind", "Which kind?")) == (
        'questions.mood.text: "Which mood?" -> "What mood?"',
    )
    gone = changes(("mood", "Which mood?"), ("new", "New?"))
    assert gone[0] == "questions: - kind, + new"
    assert gone[1].startswith("output_columns: - kind: large_string, + new: large_string")
    turned = changes(("kind", "Which kind?"), ("mood", "Which mood?"))
    assert turned[0] == 'questions: ["mood", "kind"] -> ["kind", "mood"]'
    assert ahead(before).changes == ()


def test_parts_without_a_recipe_are_told(config):
    half_done(config)
    (Path(config.output) / "_recipe.json").unlink()

    assert "the output holds parts and no recipe" in str(ahead(config))


def test_rows_that_killed_runs_are_told(config):
    hashes = ledger.hash_ids(pa.array([f"clips.parquet#{n}" for n in range(6)])).tolist()
    store_of(config).prepare()
    write_journal(store_of(config), {hashes[2]: RUNS.shared, hashes[3]: RUNS.total})

    text = str(ahead(config))

    assert "1 rows were in flight in killed runs and come last, each alone; 1 were so" in text


def test_what_a_run_would_refuse_is_refused(config, tmp_path):
    answer_without_ray(config, range(6))
    with pytest.raises(ValueError, match="does not exist"):
        ahead(config, input=str(tmp_path / "no.parquet"))
    with pytest.raises(ValueError, match="ranks"):
        ahead(config, expert_parallel=7)


def test_the_command_prints_it(config, capsys):
    code = caption_videos.main(
        [
            *("--input", config.input, "--output", config.output, "--dry-run"),
            *("--model", str(config.checkpoint), "--frames", "2"),
        ]
    )

    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "rows      6 new, 0 done, 0 failed" in printed.out
    assert re.search(r"machines  1 group of 1 rank on cpu.*as on this machine alone", printed.out)
    assert not Path(config.output).exists()
