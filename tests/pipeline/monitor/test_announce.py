"""What a run tells before its first row."""

import re
from contextlib import nullcontext
from threading import Event

import pytest

from pipeline.monitor import announce
from pipeline.run import run
from tests.pipeline.runs import small_config
from tests.tiny import tiny_checkpoint


def test_what_is_over_soon_is_not_told(capsys, monkeypatch):
    monkeypatch.setattr(announce, "_SLOW_S", 60.0)
    with announce.announced_if_slow("checking"):
        pass
    assert capsys.readouterr().err == ""


def test_what_lasts_is_told_meanwhile(monkeypatch):
    written = Event()
    monkeypatch.setattr(announce, "_SLOW_S", 0.0)
    lines = []
    monkeypatch.setattr(announce, "announce", lambda text: (lines.append(text), written.set()))
    with announce.announced_if_slow("checking"):
        assert written.wait(30.0)
    assert lines == ["checking"]


@pytest.mark.parametrize("show_progress", [True, False])
def test_a_run_tells_what_it_waits_for_until_its_first_row_comes(tmp_path, capsys, show_progress):
    tiny_checkpoint(tmp_path / "checkpoint")
    config = small_config(tmp_path, tmp_path / "checkpoint")

    run(config, connect=nullcontext, inline=True, show_progress=show_progress)

    lines = capsys.readouterr().err
    expected = (
        r"6 of 6 rows to do; starting here\n.*waiting for an engine to load\n.*"
        r"waiting for the first row to be read, prepared and answered\nthe first row came .* later"
    )
    assert bool(re.search(expected, lines, re.DOTALL)) == show_progress
    assert show_progress or not lines
