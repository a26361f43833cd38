"""A run as a whole: what it refuses, what it continues, what it reports."""

import json
import os
import re
import shutil
import signal
import time
import urllib.request
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from model.engine.sequence import SamplingParams
from model.json_values import CheckpointError
from parallel.experts.policy import Exchange
from pipeline.config import recipe_of
from pipeline.fetch.media_access import MediaAccess
from pipeline.input.plan import plan
from pipeline.input.source import open_source
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.windows import TimeWindows
from pipeline.monitor.metrics import COUNTERS, GAUGES
from pipeline.monitor.stage_costs import Cost
from pipeline.output import ledger
from pipeline.output.in_flight import write_journal
from pipeline.output.lock import lock_output
from pipeline.output.poison import RUNS
from pipeline.output.recipe import Recipe, checkpoint_fingerprint, claim_output
from pipeline.output.store import LocalStore
from pipeline.prompts.instructions import Instructions
from pipeline.run import RunError, run
from pipeline.schema import ErrorCode, InputColumns
from pipeline.stages.batching import Batching
from pipeline.stages.sealed import costs_of, seal, unseal
from pipeline.stages.sizing import choose_batching
from tests.conftest import EVERYWHERE, EVERYWHERE_SLOWLY, ON_RAY_SLOWLY
from tests.pipeline.runs import answer_without_ray, small_config, store_of
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


@pytest.fixture
def config(tmp_path, checkpoint):
    """Six clips in two row groups; each row names a file of its own."""
    return small_config(tmp_path, checkpoint)


def never():
    raise AssertionError("nothing is left to do, so Ray is not needed")


def rows_of(config):
    return {row["row_id"]: row for row in pq.read_table(config.output).to_pylist()}


@pytest.mark.parametrize("carry_out", EVERYWHERE_SLOWLY, indirect=True)
def test_a_run_continues_without_touching_the_media_of_done_rows(config, carry_out):
    answer_without_ray(config, [0, 1])
    before = rows_of(config)
    for number in (0, 1, 4):  # two done rows, one to do
        (Path(config.input) / f"{number}.mp4").unlink()

    report = carry_out(config)

    rows = rows_of(config)
    assert sorted(rows) == [f"clips.parquet#{number}" for number in range(6)]
    assert [row["n"] for _, row in sorted(rows.items())] == list(range(6))
    assert all(rows[row_id] == row for row_id, row in before.items())
    assert rows["clips.parquet#4"]["error_code"] == "media_missing"
    assert all(rows[f"clips.parquet#{number}"]["caption"] is not None for number in (2, 3, 5))
    assert (report.rows_in, report.rows_done_before, report.rows_written) == (6, 2, 4)
    assert report.error_codes == {"media_missing": 1}
    assert report.num_generated_tokens > 0
    truncated = [row["status"] for row in rows.values()].count("truncated")
    stored = json.loads((Path(config.output) / "_report.json").read_text())
    assert stored["rows_written"] == 4
    assert stored["output"] == {
        "rows": 6,
        "done": 5,
        "failed": 1,
        "statuses": {"ok": stored["output"]["done"] - truncated, "error": 1}
        | ({"truncated": truncated} if truncated else {}),
        "error_codes": {"media_missing": 1},
    }
    assert "output: 6 rows = 5 done + 1 failed: 1 media_missing" in str(report)


def test_a_schema_samples_and_log_probabilities_reach_the_output(config, carry_out):
    schema = json.dumps({"type": "array", "items": {"enum": ["red", 7]}, "maxItems": 3})
    sampling = SamplingParams(
        max_tokens=40, temperature=1.0, schema=schema, n=3, token_logprobs=True
    )
    config = replace(config, sampling=sampling)

    carry_out(config)

    rows = list(rows_of(config).values())
    assert len(rows) == 6
    for row in rows:
        assert row["samples"][0] == row["caption"]
        assert row["status"] == "ok"
        assert len(row["samples"]) == 3
        assert all(set(json.loads(text)) <= {"red", 7} for text in row["samples"])
        assert min(row["token_logprobs"]) == pytest.approx(row["min_logprob"])
    stored = json.loads((Path(config.output) / "_recipe.json").read_text())
    assert stored["sampling"]["schema"] == schema
    with pytest.raises(ValueError, match=r"sampling\.schema: .* -> null"):
        run(replace(config, sampling=replace(sampling, schema=None)), connect=never)


@pytest.mark.parametrize("carry_out", EVERYWHERE, indirect=True)
def test_a_broken_machine_stops_the_run_with_one_line_and_keeps_what_is_committed(
    config, carry_out
):
    def broken_engine(_checkpoint, _config, _dispatch, _seat):
        raise ValueError("no such weights")

    answer_without_ray(config, [0, 1])

    with pytest.raises(RunError, match=r"no such weights.* the same command continues") as caught:
        carry_out(
            config,
            engine_factory=broken_engine,
        )

    assert "\n" not in str(caught.value)
    story = re.search(r"Details: (\S+)", str(caught.value))
    assert story is not None
    assert "Traceback" in Path(story[1]).read_text()
    assert sorted(rows_of(config)) == ["clips.parquet#0", "clips.parquet#1"]
    with lock_output(store_of(config)):
        pass  # free for the next attempt


def test_failed_rows_are_tried_again_on_request_and_replaced(config, carry_out):
    answer_without_ray(config, [0, 1, 2])
    answer_without_ray(config, [3, 4], code="media_missing")
    answer_without_ray(config, [5], code="no_frames")

    report = carry_out(replace(config, retry_failed=(ErrorCode.MEDIA_MISSING,)))

    rows = rows_of(config)
    assert len(rows) == pq.read_table(config.output).num_rows == 6
    assert [rows[f"clips.parquet#{n}"]["attempts"] for n in range(6)] == [1, 1, 1, 2, 2, 1]
    assert all(rows[f"clips.parquet#{n}"]["caption"] is not None for n in (3, 4))
    assert rows["clips.parquet#5"]["error_code"] == "no_frames"
    assert (report.rows_done_before, report.rows_written) == (4, 2)


@pytest.mark.parametrize("carry_out", EVERYWHERE_SLOWLY, indirect=True)
def test_a_row_that_killed_runs_is_tried_alone_and_another_is_given_up(config, carry_out):
    hashes = ledger.hash_ids(pa.array([f"clips.parquet#{n}" for n in range(6)])).tolist()
    store_of(config).prepare()
    starts = {hashes[1]: 1, hashes[2]: RUNS.shared, hashes[3]: RUNS.total}
    write_journal(store_of(config), starts)

    carry_out(config)

    rows = rows_of(config)
    assert [rows[f"clips.parquet#{n}"]["attempts"] for n in range(6)] == [1, 2, 4, 7, 1, 1]
    assert rows["clips.parquet#3"]["error_code"] == "poison_row"
    assert rows["clips.parquet#3"]["n"] == 3
    assert rows["clips.parquet#2"]["caption"] is not None
    assert not (Path(config.output) / "_starts.json").exists()


@pytest.mark.parametrize("carry_out", [ON_RAY_SLOWLY], indirect=True)
def test_a_row_that_kills_what_prepares_it_is_given_up_and_no_other(config, carry_out, monkeypatch):
    class Deadly(MediaAccess):
        def open(self, media):
            if media == "4.mp4":
                os.kill(os.getpid(), signal.SIGKILL)
            return MediaAccess.open(self, media)

    monkeypatch.setattr("pipeline.config.MediaAccess", Deadly)

    report = carry_out(config)

    assert report.error_codes == {"poison_row": 1}
    rows = rows_of(config)
    assert "6 processes died while they prepared this row" in rows["clips.parquet#4"]["error"]
    assert {row["status"] for key, row in rows.items() if key != "clips.parquet#4"} == {"truncated"}


def durations(config):
    return [row["media_duration_s"] for row in rows_of(config).values()]


def exported_metrics(names, output):
    """The latest line of each metric of `output` at the node's metrics port, once all are there.

    Ray sends its exporter some of the metrics at a time, every ten seconds, and a gauge stands on
    one page only.
    """
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    latest: dict[str, str] = {}  # by name and tags
    for _ in range(120):
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        latest |= {line.rpartition(" ")[0]: line for line in lines if f'output="{output}"' in line}
        if all(any(key.startswith(name) for key in latest) for name in names):
            return "\n".join(latest.values())
        time.sleep(0.5)
    raise AssertionError(f"not all of {names} of {output} in {latest}")


@pytest.mark.parametrize("carry_out", [ON_RAY_SLOWLY], indirect=True)
def test_a_report_says_what_the_run_took(config, carry_out):
    report = carry_out(config)

    costs = report.usage.costs
    media_bytes = sum(path.stat().st_size for path in Path(config.input).glob("*.mp4"))
    assert costs.stages["prepare"].num_bytes == media_bytes
    assert all(costs.stages[name].seconds > 0 for name in ("read", "prepare", "generate"))
    peaks = costs.peak_bytes
    assert peaks.keys() == {"read", "prepare", "decoder", "generate", "rank", "driver"}
    assert all(20e6 < peak < 10e9 for peak in peaks.values())
    stored = json.loads((Path(config.output) / "_report.json").read_text())
    assert stored["peak_bytes"] == peaks
    assert stored["spilled_bytes"] == 0
    assert 0 < stored["engine_time_used"] < 1
    (waits,) = stored["rank_waits"]
    assert (waits["group"], waits["rank"], waits["peers"]) == (0, 0, 0)
    assert 0 < waits["data"] < 1
    assert stored["video_seconds"] == pytest.approx(sum(durations(config)))
    names = [*(f"ray_{name}_total" for name in COUNTERS), *(f"ray_{name}" for name in GAUGES)]
    exported = exported_metrics(names, config.output)
    counts = re.findall(r"^ray_moonsweep_rows_total{.*} (\S+)$", exported, re.MULTILINE)
    assert sum(map(float, counts)) == 6
    assert re.search(r"prepare +\d+\.\d +\d+\.\d +\d+\.\d\n", str(report))


@pytest.mark.parametrize("carry_out", [ON_RAY_SLOWLY], indirect=True)
def test_a_run_records_how_busy_experts_were_and_another_places_them_by_it(config, carry_out):
    carry_out(config)
    record = Path(config.output) / "_expert_load.parquet"
    before = pq.read_table(record)
    assert before.num_rows == 2 * 16  # layers with experts, experts
    assert sum(before["tokens"].to_pylist()) > 6 * 4 * 2
    assert record.with_suffix(".png").exists()
    placed = replace(
        config,
        output=f"{config.output}-placed",
        expert_parallel=2,
        expert_placement=str(record),
        expert_copies=1,
    )

    report = carry_out(placed)

    assert "experts placed by" in report.usage.deployment
    captions, same = rows_of(config), rows_of(placed)
    assert {name: row["caption"] for name, row in captions.items()} == {
        name: row["caption"] for name, row in same.items()
    }
    run(replace(config, retry_failed=(ErrorCode.MEDIA_MISSING,)), connect=never)
    assert pq.read_table(record) == before  # nothing was to do, nothing is added
    with pytest.raises(ValueError, match="room for 0 to 8 copies on each, not 9"):
        run(replace(placed, expert_copies=9), connect=never)


@pytest.mark.parametrize("carry_out", EVERYWHERE_SLOWLY, indirect=True)
def test_rows_keep_their_order_on_request(config, carry_out):
    carry_out(replace(config, keep_order=True, rows_per_part=2))

    assert pq.read_table(config.output)["n"].to_pylist() == list(range(6))


def test_what_the_input_leaves_out_is_said(config, capsys):
    answer_without_ray(config, range(6))

    run(config, connect=never)

    assert "left out of the input: 6 with another suffix than" in capsys.readouterr().err


def test_a_finished_output_needs_no_ray(config):
    answer_without_ray(config, range(6))

    report = run(config, connect=never, show_progress=False)

    assert str(report).splitlines() == [
        "6 rows in = 6 done before + 0 written",
        "output: 6 rows = 6 done + 0 failed",
        "nothing to do: all rows are done",
    ]


def test_an_output_below_its_input_is_continued_with_the_same_rows(config):
    config = replace(config, output=f"{config.input}/captions")
    answer_without_ray(config, range(6))

    report = run(config, connect=never, show_progress=False)

    assert (report.rows_in, report.rows_done_before, report.rows_written) == (6, 6, 0)


def test_another_recipe_is_refused_and_each_difference_is_named(config):
    answer_without_ray(config, range(3))
    other = replace(
        config,
        sampling=replace(config.sampling, max_tokens=9),
        instructions=replace(config.instructions, prompt="What moves?"),
    )

    with pytest.raises(ValueError, match="begun under another recipe") as caught:
        run(other, connect=never)

    assert 'prompt: "Describe this video in detail." -> "What moves?"' in str(caught.value)
    assert "sampling.max_tokens: 4 -> 9" in str(caught.value)
    assert "temperature" not in str(caught.value)


def test_another_checkpoint_is_another_recipe(config, tmp_path):
    answer_without_ray(config, range(3))
    other = tmp_path / "other"
    tiny_checkpoint(other, seed=1)

    with pytest.raises(ValueError, match=r'checkpoint: "\w{64}" -> "\w{64}"'):
        run(replace(config, checkpoint=other), connect=never)


def test_how_a_run_is_carried_out_is_not_part_of_the_recipe(config):
    row_schema = open_source(config.input, config.columns).row_schema
    otherwise = replace(
        config,
        engine=replace(config.engine, max_batch_size=3, num_threads=2),
        device="cpu",
        num_groups=5,
        exchange=Exchange("all_gather"),
        rows_per_part=7,
        limit=3,
    )

    assert recipe_of(otherwise, row_schema).sha256 == recipe_of(config, row_schema).sha256


def test_rows_that_travel_rounded_are_another_recipe(config):
    row_schema = open_source(config.input, config.columns).row_schema
    rounded = replace(config, exchange=Exchange(wire_dtype="float8"))
    assert recipe_of(rounded, row_schema).fields["wire_dtype"] == "float8"
    assert "wire_dtype" not in recipe_of(config, row_schema).fields


def test_a_second_driver_is_refused(config):
    with (
        lock_output(store_of(config)),
        pytest.raises(ValueError, match="another job writes to"),
    ):
        run(config, connect=never)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        pytest.param(
            lambda path: (path / "config.json").unlink(),
            CheckpointError,
            "config.json is missing",
            id="no config",
        ),
        pytest.param(
            lambda path: next(path.glob("*.safetensors")).write_bytes(b"x"),
            CheckpointError,
            "is damaged or not safetensors",
            id="damaged weights",
        ),
        pytest.param(
            lambda path: (path / "tiktoken.model").unlink(),
            CheckpointError,
            "tiktoken.model",
            id="no tokenizer",
        ),
    ],
)
def test_a_bad_checkpoint_is_refused_before_anything_is_started(
    config, tmp_path, damage, error, message
):
    copy = tmp_path / "copy"
    shutil.copytree(config.checkpoint, copy)
    damage(copy)

    with pytest.raises(error, match=message):
        run(replace(config, checkpoint=copy), connect=never)


def test_a_missing_input_is_told_before_a_checkpoint_is_read(config):
    with pytest.raises(ValueError, match="/nowhere does not exist"):
        run(replace(config, checkpoint=Path("/nowhere"), input="/nowhere"), connect=never)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"limit": 0}, "limit must be positive, got 0"),
        ({"device": "tpu"}, "device must be auto, cpu or cuda, got 'tpu'"),
    ],
)
def test_wrong_configurations_are_refused(config, wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **wrong)


@pytest.mark.parametrize(
    ("num_groups", "num_frames", "max_frame_tokens", "num_rows", "num_small_rows"),
    [
        pytest.param(1, 2, 4, 1, 8, id="one copy of the model"),
        pytest.param(4, 2, 4, 4, 8, id="four"),
        pytest.param(100, 2, 4, 8, 8, id="many"),
        pytest.param(1, 8, 1024, 1, 3, id="19 MB a row"),
        pytest.param(100, 8, 1024, 3, 3, id="many, and 19 MB a row"),
        pytest.param(100, 128, None, 1, 1, id="many, and 300 MB a row"),
    ],
)
def test_rows_travel_alone_where_that_is_fast_enough(
    config, num_groups, num_frames, max_frame_tokens, num_rows, num_small_rows
):
    instructions = Instructions(
        frames=FrameSampling(num_frames=num_frames), max_frame_tokens=max_frame_tokens
    )
    config = replace(config, instructions=instructions)

    assert choose_batching(config, num_groups, "cpu") == Batching(
        num_rows=num_rows, num_small_rows=num_small_rows
    )
    asked = replace(config, rows_per_batch=5)
    assert choose_batching(asked, num_groups, "cpu") == Batching(num_rows=5, num_small_rows=5)


def test_rows_with_an_unknown_number_of_windows_travel_alone(config):
    instructions = replace(config.instructions, windows=TimeWindows(length_s=1.0))
    config = replace(config, instructions=instructions)
    assert choose_batching(config, 1, "cpu") == Batching(num_rows=1, num_small_rows=1)


def test_a_fingerprint_sees_every_file_that_matters(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    same = checkpoint_fingerprint(copy)
    assert same == checkpoint_fingerprint(checkpoint)

    (copy / "README.md").write_text("words")
    assert checkpoint_fingerprint(copy) == same

    weights = next(copy.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert checkpoint_fingerprint(copy) != same


def test_parts_without_a_recipe_are_not_continued(tmp_path):
    (tmp_path / "part-0.parquet").touch()

    with pytest.raises(ValueError, match="holds parts and no _recipe"):
        claim_output(LocalStore(tmp_path), Recipe({}))


def test_an_output_without_rows_takes_a_new_recipe(tmp_path):
    store = LocalStore(tmp_path)
    claim_output(store, Recipe({"prompt": "a"}))
    claim_output(store, Recipe({"prompt": "b"}))
    (tmp_path / "part-0.parquet").touch()
    claim_output(store, Recipe({"prompt": "b"}))

    with pytest.raises(ValueError, match='prompt: "b" -> "a"'):
        claim_output(store, Recipe({"prompt": "a"}))


@pytest.mark.parametrize("stop_after", range(5))
def test_a_new_recipe_sets_the_old_rows_aside_though_it_is_stopped_half_way(
    tmp_path, monkeypatch, stop_after
):
    store = LocalStore(tmp_path)
    claim_output(store, Recipe({"prompt": "a"}))
    for name in ("part-0.parquet", "part-1.parquet", "_report.json", "_starts.json"):
        (tmp_path / name).write_text(name)
    moves = []

    def move_or_die(self, name, folder):
        if len(moves) == stop_after:
            raise KeyboardInterrupt
        moves.append(name)
        return move(self, name, folder)

    move = LocalStore.move
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "move", move_or_die)
        with pytest.raises(KeyboardInterrupt):
            claim_output(store, Recipe({"prompt": "b"}), new_recipe=True)
        if stop_after < 2:  # until then the old recipe guards what is left
            with pytest.raises(ValueError, match="--new-recipe"):
                claim_output(store, Recipe({"prompt": "b"}))

    claim_output(store, Recipe({"prompt": "b"}), new_recipe=True)
    claim_output(store, Recipe({"prompt": "b"}), new_recipe=True)  # no more to do

    assert ledger.committed_parts(store) == []
    aside = {path.name: path.read_text() for path in tmp_path.glob("_old-*/*")}
    assert aside["part-0.parquet"] == "part-0.parquet"
    assert aside["part-1.parquet"] == "part-1.parquet"
    assert json.loads((tmp_path / "_recipe.json").read_text()) == {"prompt": "b"}


def test_sealed_rows_come_back_as_they_were():
    rows = pa.table(
        {
            "a": pa.array([[1], None], pa.list_(pa.int8())),
            "m": pa.array(
                [[("k", datetime(2024, 1, 1))], []], pa.map_(pa.string(), pa.timestamp("us"))
            ),
            "b": pa.array([b"x" * 100, None], pa.large_binary()),
        }
    )

    assert seal(rows).num_rows == 1
    assert costs_of(seal(rows, [Cost("read", 1.5, 2, 3)])) == [Cost("read", 1.5, 2, 3)]
    assert unseal(seal(rows)).equals(rows)
    assert unseal(seal(rows.slice(1))).equals(rows.slice(1))
    assert unseal(seal(rows.slice(2))).schema == rows.schema


def test_ids_of_another_input_are_refused(config, tmp_path):
    answer_without_ray(config, range(6))
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"video": ["0.mp4"], "n": [0]}), other)

    with pytest.raises(ValueError, match="holds 6 rows that are not in this input"):
        run(replace(config, input=str(other)), connect=never)


def test_a_plan_counts_the_whole_input(config):
    source = open_source(config.input, InputColumns())

    assert plan(source, ledger.OutputIndex.empty()).num_todo == source.num_rows == 6
