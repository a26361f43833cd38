"""What a job says when it has ended."""

from jobs.cli.main import Done
from tests.pipeline.monitor.test_report import report


def last_lines(output, **changes):
    found = report(**changes)
    said = str(Done(report=found, output=output))
    assert said.startswith(str(found))
    return said.removeprefix(str(found)).strip().splitlines()


def test_a_run_ends_with_its_results_and_what_to_do_with_them():
    assert last_lines("/data/my captions") == [
        "results: /data/my captions",
        "look at them: python -m jobs.review '/data/my captions'",
        "try failed rows again: the same command with --retry-failed no_frames",
    ]


def test_results_on_a_store_are_not_offered_to_a_command_that_reads_disks():
    assert last_lines("s3://bucket/out")[0] == "results: s3://bucket/out"
    assert not any("jobs.review" in line for line in last_lines("s3://bucket/out"))


def test_a_run_that_answered_nothing_ends_with_its_failure():
    failed = {"statuses": {"error": 6}, "error_codes": {"no_frames": 6}}
    assert last_lines("/out", **failed) == []
