"""The review page in a real headless browser; not collected by default, since it needs one.

    pip install playwright
    CHROMIUM=/usr/bin/chromium python -m pytest -s tests/jobs/browser_review.py [--basetemp DIR]

CHROMIUM is any Chromium or its headless shell (Debian: chromium-headless-shell). Screenshots are
left in the temporary directory.
"""

import importlib
import json
import os
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from jobs import review
from jobs.review_page.page import Side, write_pages
from jobs.review_page.row_frames import RowFrames, make_section_frames
from jobs.review_page.rows import read_output
from jobs.review_page.sections import sections_of_rows
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.windows import TimeWindows
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.named_prompts import NamedPrompt
from tests.jobs.outputs import write_answered, write_input, write_output
from tests.jobs.test_review import CAPTIONS, HOSTILE, clips, documents, looked  # noqa: F401


@pytest.fixture(scope="module")
def browser():
    playwright_api = importlib.import_module("playwright.sync_api")  # in no list of requirements
    with playwright_api.sync_playwright() as playwright:
        shell = playwright.chromium.launch(
            executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"]
        )
        yield shell
        shell.close()


@pytest.fixture
def watched(browser):
    """A page, and what it complained of or tried to load."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.heard = []
    page.on("console", lambda message: page.heard.append(message.text))
    page.on("pageerror", lambda error: page.heard.append(str(error)))
    page.on("requestfinished", lambda request: page.heard.append(request.url[:100]))
    yield page
    page.close()


@pytest.fixture
def captions(tmp_path):
    return write_output(tmp_path / "captions", write_input(tmp_path), CAPTIONS)


def opened(watched, captions, *more):
    path = captions.parent / "page.html"
    assert review.main([str(captions), "--page", str(path), *map(str, more)]) == 0
    watched.goto(path.as_uri())
    return watched


def loaded(watched):
    return [each for each in watched.heard if not each.startswith("data:image/jpeg")]


def test_captions_are_shown_as_text_and_nothing_else_is_loaded(watched, captions):
    page = opened(watched, captions)

    assert page.locator("article").count() == 4
    assert page.locator("article .caption").nth(1).evaluate("e => e.textContent") == HOSTILE
    assert page.locator("article").nth(1).locator(".prompt").inner_text() == "What <b>moves</b>?"
    assert page.evaluate("typeof pwned") == "undefined"
    images = page.locator("article img")
    assert images.count() == 3
    assert images.first.evaluate("e => [e.naturalWidth, e.naturalHeight]") == [4 * 64, 48]
    assert loaded(page) == [(captions.parent / "page.html").as_uri()[:100]]
    page.screenshot(path=captions.parent / "page.png", full_page=True)
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")


def test_injected_code_does_not_run(watched, captions):
    page = opened(watched, captions)

    page.evaluate(
        """() => {
        const script = document.createElement('script');
        script.append('window.pwned = 1');
        document.body.append(script);
        const image = document.createElement('img');
        image.src = 'https://example.org/x.png';
        document.body.append(image);
        }"""
    )

    assert page.evaluate("typeof pwned") == "undefined"
    assert any("Content Security Policy" in each for each in page.heard)
    assert not any(each.startswith("https://") for each in page.heard)


def test_rows_are_judged_by_keys_kept_over_a_reload_and_saved(watched, captions, capsys):
    page = opened(watched, captions)
    page.keyboard.press("a")
    page.keyboard.press("r")
    page.keyboard.press("e")
    page.keyboard.type(" and stops")
    page.keyboard.press("Control+Enter")
    assert "1 accepted, 1 rejected, 1 edited, 1 open" in page.inner_text("#judgements")
    page.reload()
    assert "1 accepted, 1 rejected, 1 edited, 1 open" in page.inner_text("#judgements")

    with page.expect_download() as download:
        page.click("#download")
    path = captions.parent / download.value.suggested_filename
    download.value.save_as(path)
    page.screenshot(path=captions.parent / "judged.png", full_page=True)

    assert path.name == "page-verdicts.json"
    assert [v["verdict"] for v in json.loads(path.read_text())["verdicts"]] == [
        *("accept", "reject", "edit")
    ]
    assert (
        review.main([str(captions), "--apply", str(path), "--export", str(captions.parent / "r")])
        == 0
    )
    assert "1 accept, 1 edit, 1 reject" in capsys.readouterr().out
    assert "left and stops" in (captions.parent / "r" / "captions.jsonl").read_text()


def test_undo_reverts_the_last_action_and_not_the_row_at_hand(watched, captions):
    page = opened(watched, captions)
    for key in "jakr":  # the second row is accepted, then the first one rejected by mistake
        page.keyboard.press(key)
        if key == "a":
            page.keyboard.press("k")
    page.keyboard.press("u")

    assert "1 accepted, 0 rejected, 0 edited, 3 open" in page.inner_text("#judgements")
    assert page.locator("article.selected .id").inner_text() == "clips.parquet#0"
    page.keyboard.press("u")
    assert "0 accepted, 0 rejected" in page.inner_text("#judgements")
    page.keyboard.press("u")
    assert page.inner_text("#say") == "nothing to undo"


def test_verdicts_on_one_output_do_not_show_up_at_another(watched, captions, tmp_path):
    page = opened(watched, captions)
    page.keyboard.press("a")
    again = tmp_path / "again" / "captions"  # the same last folders, recipe and ids
    again.parent.mkdir()
    write_output(again, captions.parent / "clips.parquet", ("another", *CAPTIONS[1:]))
    assert read_output(again).recipe_sha256 == read_output(captions).recipe_sha256
    page = opened(watched, again)
    assert "0 accepted, 0 rejected" in page.inner_text("#judgements")
    page = opened(watched, captions)
    assert "1 accepted, 0 rejected" in page.inner_text("#judgements")


def test_a_row_with_an_error_cannot_be_accepted(watched, captions):
    page = opened(watched, captions)
    for key in "jjja":
        page.keyboard.press(key)
    assert "0 accepted" in page.inner_text("#judgements")
    assert page.inner_text("#say") == "a row with an error cannot be accepted"


def test_filters_choose_by_status_text_length_and_verdict(watched, captions):
    page = opened(watched, captions)
    shown = lambda: page.locator("article .id").all_inner_texts()  # noqa: E731

    page.select_option("#status", "error: media_corrupt")
    assert shown() == ["clips.parquet#3"]
    page.select_option("#status", "")
    page.fill("#text", "RED circle")
    assert shown() == ["clips.parquet#2"]
    page.fill("#text", "")
    page.fill("#shortest", "20")
    assert shown() == ["clips.parquet#1", "clips.parquet#2"]
    page.fill("#shortest", "")
    page.select_option("#order", "longest")
    assert shown()[0] == "clips.parquet#1"
    page.locator("article").first.get_by_role("button", name="Reject").click()
    page.select_option("#judged", "reject")
    assert shown() == ["clips.parquet#1"]


def test_two_outputs_side_by_side(watched, captions):
    changed = ("a plain caption", "another", "a red square moves right fast", "")
    source = captions.parent / "clips.parquet"
    other = write_output(captions.parent / "eight", source, changed, num_frames=8)
    page = opened(watched, captions, "--against", other)

    third = page.locator("article").nth(2)
    assert third.locator("del").all_inner_texts() == [" circle", " left"]
    assert third.locator("ins").all_inner_texts() == [" square", " right", " fast"]
    assert third.locator("img").count() == 2
    page.screenshot(path=captions.parent / "sides.png", full_page=True)
    page.check("#changed")
    assert page.locator("article").count() == 2
    page.keyboard.press("Escape")
    page.locator("article").nth(1).get_by_role("button", name="Take the right one").click()
    assert "1 edited" in page.inner_text("#judgements")
    assert loaded(page) == [(captions.parent / "page.html").as_uri()[:100]]


def test_pages_stand_beside_their_text_and_the_document_is_folded(watched, tmp_path):
    output = documents(tmp_path)
    page = opened(watched, output)

    first = page.locator("article").first
    assert first.locator(".marks").all_inner_texts() == ["page 1", "page 2", "page 3"]
    assert first.locator(".answers").all_inner_texts() == ["# <b>papers.parquet#0</b>"] * 3
    picture = first.locator("img").first.bounding_box()
    text = first.locator(".answers").first.bounding_box()
    assert text["x"] > picture["x"] + picture["width"]
    assert not first.locator(".caption").is_visible()
    page.screenshot(path=tmp_path / "documents.png", full_page=True)
    page.fill("#text", "papers.parquet#1</b>")
    assert page.locator("article .id").all_inner_texts() == ["papers.parquet#1"]
    page.keyboard.press("Escape")
    page.keyboard.press("e")
    assert page.input_value("textarea").count("# <b>papers.parquet#1</b>") == 2
    assert loaded(page) == [(tmp_path / "page.html").as_uri()[:100]]


def test_what_changed_is_marked_page_by_page(watched, tmp_path):
    output, pairs = documents(tmp_path), tmp_path / "pairs"
    pairs.mkdir()
    other = documents(pairs, say=lambda request: f"# <i>{request.request_id}</i>")
    page = opened(watched, output, "--against", other)

    first = page.locator("article").first
    assert first.locator(".answers del").all_inner_texts() == [" <b>papers.parquet#0</b>"] * 3
    assert first.locator(".answers ins").all_inner_texts() == [" <i>papers.parquet#0</i>"] * 3
    assert first.locator(".caption").count() == 2
    page.keyboard.press("a")
    assert first.locator(".answers del").count() == 3
    page.screenshot(path=tmp_path / "both.png", full_page=True)


def test_windows_and_prompts_show_their_own_frames(watched, clips, tmp_path):  # noqa: F811
    windows = TimeWindows(length_s=1.0, overlap_s=0.5, merge="Sum up.")
    asked = Instructions(windows=windows, frames=FrameSampling(num_frames=2))
    opened(watched, write_answered(clips(instructions=asked), lambda request: HOSTILE))
    parts = watched.locator("article").first.locator(".section")
    assert [each.split("\n")[0] for each in parts.all_inner_texts()] == [
        *("0.0 - 1.0 s", "0.5 - 1.5 s", "1.0 - 2.0 s")
    ]
    assert parts.nth(1).locator(".text").evaluate("e => e.textContent") == HOSTILE
    watched.screenshot(path=tmp_path / "windows.png", full_page=True)

    prompts = (
        NamedPrompt(name="coarse", text="What?", view=looked(1, 2)),
        NamedPrompt(name="fine", text="What?", view=looked(4, 12)),
    )
    config = clips(instructions=Instructions(named_prompts=prompts), output=str(tmp_path / "asked"))
    opened(watched, write_answered(config, lambda request: f"{request.num_tokens} tokens"))
    images = watched.locator("article").first.locator(".section img")
    sizes = [images.nth(n).evaluate("e => e.naturalWidth / e.naturalHeight") for n in range(2)]
    assert sizes[1] > 3 * sizes[0]
    watched.screenshot(path=tmp_path / "prompts.png", full_page=True)
    assert watched.evaluate("typeof pwned") == "undefined"


def test_ten_thousand_rows_are_usable(watched, captions):
    output = read_output(captions)
    (first,) = output.rows.slice(0, 1).to_pylist()
    rows = [
        first | {"row_id": f"clips.parquet#{number}", "caption": f"{number} {'the ball ' * 60}"}
        for number in range(10_000)
    ]
    table = pa.Table.from_pylist(rows, output.rows.schema)
    output = replace(output, rows=table, num_rows=10_000)
    noise = np.random.default_rng(0).integers(0, 255, (8, 9, 16, 3))
    rgb = np.kron(noise, np.ones((1, 8, 8, 1))).astype(np.uint8)  # [8, 72, 128, 3]
    section = make_section_frames([(frame, f"{number} s") for number, frame in enumerate(rgb)], 8)
    sections = sections_of_rows(output, 16)
    side = Side(
        output=output,
        sections=sections,
        frames=dict.fromkeys(sections, RowFrames(sections=(section,))),
    )

    paths = write_pages(captions.parent / "big.html", side, None, 192 << 20)
    started = time.monotonic()
    watched.goto(paths[0].as_uri(), wait_until="load")
    loaded_s = time.monotonic() - started
    assert "10000 rows, page 1 of 400" in watched.inner_text("#place")
    started = time.monotonic()
    watched.fill("#text", "9999 the")
    searched_s = time.monotonic() - started
    assert watched.locator("article").count() == 1
    watched.fill("#text", "")
    started = time.monotonic()
    for _ in range(50):
        watched.keyboard.press("Escape")
        watched.keyboard.press("a")
    judged_s = time.monotonic() - started
    assert "50 accepted" in watched.inner_text("#judgements")
    assert watched.locator("article").count() == 25
    print(  # noqa: T201
        f"{[round(path.stat().st_size / 2**20) for path in paths]} MiB, load {loaded_s:.2f} s, "
        f"search {searched_s:.2f} s, a verdict {judged_s / 50:.3f} s"
    )
