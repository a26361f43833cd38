"""The review page in a real headless Chromium: each key, and the two ways in which work was lost.

It needs a Chromium (Debian: `apt-get install chromium`); where there is none, these tests say that
they were not run. Screenshots are left in the temporary directory (`--basetemp DIR`).
"""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import sync_playwright

from jobs import review
from jobs.review_page.html_file import PageSettings
from jobs.review_page.page import write_pages
from jobs.review_page.row_frames import RowFrames, make_section_frames
from jobs.review_page.row_json import Side
from jobs.review_page.rows import read_output
from jobs.review_page.sections import sections_of_rows
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.windows import TimeWindows
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.named_prompts import NamedPrompt
from tests.jobs.outputs import write_answered, write_input, write_output
from tests.jobs.test_review import CAPTIONS, HOSTILE, clips, documents, looked  # noqa: F401

pytestmark = pytest.mark.slow
NAMES = ("chromium", "chromium-headless-shell", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("the review page was not tried in a browser: there is no chromium")
    with sync_playwright() as playwright:
        shell = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield shell
        shell.close()


@pytest.fixture
def watched(browser):
    """A page, and what it complained of or tried to load."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
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
    assert page.locator("article").nth(1).locator(".prompt").inner_text() == (
        "prompt What <b>moves</b>?"
    )
    assert page.evaluate("typeof pwned") == "undefined"
    images = page.locator("article img")
    assert images.count() == 3 * 4
    assert images.first.evaluate("e => [e.naturalWidth, e.naturalHeight]") == [64, 48]
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


def press(page, keys):
    for key in keys.split():
        page.keyboard.press(key)


def states(page):
    """The verdict of each row shown; "" if it is open."""
    return page.locator("article").evaluate_all(
        "all => all.map(e => ['accept', 'reject', 'edit', 'unsure', 'left', 'right', 'tie', "
        "'neither'].find(kind => e.classList.contains(kind)) ?? '')"
    )


def selected(page):
    return page.locator("article.selected .id").inner_text().removeprefix("clips.parquet#")


def saved(page, folder):
    with page.expect_download() as download:
        page.click("#download")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_rows_are_judged_by_keys_kept_over_a_reload_and_saved(watched, captions, capsys):
    page = opened(watched, captions)
    press(page, "a r e")
    page.keyboard.type(" and stops")
    press(page, "Control+Enter s")
    assert states(page) == ["accept", "reject", "edit", "unsure"]
    assert "4 of 4 judged" in page.inner_text("#judgements")
    assert page.is_visible("#done")
    page.reload()
    assert states(page) == ["accept", "reject", "edit", "unsure"]

    path = saved(page, captions.parent)
    page.screenshot(path=captions.parent / "judged.png")

    assert path.name == "page-verdicts.json"
    value = json.loads(path.read_text())
    assert [v["verdict"] for v in value["verdicts"]] == ["accept", "reject", "edit", "unsure"]
    to = captions.parent / "r"
    assert review.main([str(captions), "--apply", str(path), "--export", str(to)]) == 0
    assert "4 verdicts: 1 accept, 1 edit, 1 reject, 1 unsure" in capsys.readouterr().out
    assert "left and stops" in (to / "captions.jsonl").read_text()


def test_undo_reverts_the_last_action_and_not_the_row_at_hand(watched, captions):
    page = opened(watched, captions)
    press(page, "j a k k r")  # the second row is accepted, then the first one rejected by mistake
    assert states(page)[:2] == ["reject", "accept"]
    press(page, "u")

    assert states(page)[:2] == ["", "accept"]
    assert selected(page) == "0"
    assert page.inner_text("#say") == "undone: reject, clips.parquet#0"
    press(page, "Shift+U")
    assert states(page)[:2] == ["reject", "accept"]
    press(page, "Control+z Control+z")
    assert states(page)[:2] == ["", ""]
    press(page, "Control+Shift+z")
    assert states(page)[:2] == ["", "accept"]
    page.reload()  # the history lasts as long as the tab
    press(page, "u u")
    assert states(page)[:2] == ["", ""]
    assert page.inner_text("#say") == "nothing to undo"


def test_undo_shows_a_row_that_a_filter_hides(watched, captions):
    page = opened(watched, captions)
    press(page, "f")
    page.select_option("#judged", "none")
    press(page, "r r")  # each leaves the list of open rows, and the next one takes its place
    assert page.locator("article").count() == 2
    assert selected(page) == "2"
    press(page, "u")
    assert page.locator("article").count() == 3
    assert selected(page) == "1"
    page.select_option("#judged", "reject")
    press(page, "u")
    assert states(page) == [""] * 4
    assert selected(page) == "0"


def test_verdicts_on_one_output_do_not_show_up_at_another(watched, captions, tmp_path):
    page = opened(watched, captions)
    press(page, "a")
    again = tmp_path / "again" / "captions"  # the same last folders, recipe and ids
    again.parent.mkdir()
    write_output(again, captions.parent / "clips.parquet", ("another", *CAPTIONS[1:]))
    assert read_output(again).recipe_sha256 == read_output(captions).recipe_sha256
    page = opened(watched, again)
    assert states(page) == [""] * 4
    page = opened(watched, captions)
    assert states(page) == ["accept", "", "", ""]


def test_a_row_with_an_error_cannot_be_accepted(watched, captions):
    page = opened(watched, captions)
    press(page, "j j j a")
    assert states(page) == [""] * 4
    assert page.inner_text("#say").startswith("a row with an error cannot be accepted")
    assert page.locator("article").nth(3).get_by_role("button", name="Accept").is_disabled()


def test_a_text_that_is_not_saved_survives_filters_pages_and_reloads(watched, captions):
    page = opened(watched, captions)
    press(page, "e")
    page.keyboard.type(" never lost")
    page.fill("#text", "red circle") if page.is_visible("#text") else press(page, "Escape f")
    page.fill("#text", "red circle")
    page.fill("#text", "")
    page.reload()
    assert page.locator("article .badge.draft").count() == 1
    press(page, "e")
    assert page.input_value("textarea") == "a plain caption never lost"
    page.get_by_role("button", name="Discard").click()
    assert page.locator("article .badge.draft").count() == 0


def test_a_comment_that_is_being_written_survives_a_reload(watched, captions):
    page = opened(watched, captions)
    press(page, "c")
    page.keyboard.type("half a word")
    page.reload()
    assert page.locator("article .comment").first.input_value() == "half a word"


def test_a_browser_that_keeps_nothing_says_so(watched, captions):
    watched.add_init_script(
        "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }"
    )
    page = opened(watched, captions)
    assert not page.is_visible("#warning")
    press(page, "a")
    assert "QuotaExceededError" in page.inner_text("#warning")
    assert states(page)[0] == "accept"


def test_two_tabs_do_not_overwrite_each_other(browser, captions):
    path = captions.parent / "page.html"
    assert review.main([str(captions), "--page", str(path)]) == 0
    context = browser.new_context()
    first, second = context.new_page(), context.new_page()
    for page in (first, second):
        page.goto(path.as_uri())
    press(first, "a")
    second.wait_for_selector("article.accept")
    press(second, "j r")
    first.wait_for_selector("article.reject")
    assert states(first) == states(second) == ["accept", "reject", "", ""]
    first.reload()
    assert states(first) == ["accept", "reject", "", ""]
    context.close()


def test_each_key_does_what_the_help_says(watched, captions):
    page = opened(watched, captions, "--tag", "funny")
    opens = {"h": "health", "y": "history", "?": "help"}
    for key, name in opens.items():
        press(page, key)
        assert page.locator(f"dialog#{name}").is_visible()
        press(page, "Escape")
    press(page, "?")
    listed = page.locator("#keys kbd").all_inner_texts()
    press(page, "Escape")
    assert {"j", "k", "Enter", "a", "r", "s", "e", "t", "w", "W", "n", "c", "x", "u", "U"} <= {
        *listed
    }
    # Two arrows go with j and k; reasons and tags are given by digits, which the table lacks.
    assert page.evaluate("Object.keys(KEYS).length") - 2 == len(listed) - 2

    press(page, "j j k")
    assert selected(page) == "1"
    press(page, "ArrowDown ArrowUp")
    assert selected(page) == "1"
    press(page, "1 3 Shift+Digit1")
    second = page.locator("article").nth(1)
    pressed = second.locator(".chip[aria-pressed=true]").all_inner_texts()
    assert pressed == ["wrong", "missing", "funny"]
    press(page, "3")
    assert second.locator(".chip[aria-pressed=true]").all_inner_texts() == ["wrong", "funny"]
    press(page, "c")
    page.keyboard.type("blurred & dark")
    press(page, "Enter r")
    assert states(page)[1] == "reject"
    press(page, "k r")  # the same verdict again takes it back
    assert states(page)[1] == ""
    page.fill("#reviewer", "Ana B.")
    press(page, "Tab")
    page.locator("article").nth(0).locator(".id").click()
    press(page, "s k n")
    assert selected(page) == "1"
    value = json.loads(saved(page, captions.parent).read_text())
    assert value["reviewer"] == "Ana B."
    noted = next(v for v in value["verdicts"] if v["row_id"] == "clips.parquet#1")
    assert (noted["verdict"], noted["reasons"], noted["tags"]) == (None, ["wrong"], ["funny"])
    assert noted["comment"] == "blurred & dark"
    press(page, "x")
    assert second.locator(".comment").input_value() == ""
    press(page, "f")
    assert page.is_visible("#filters")
    press(page, "/")
    page.keyboard.type("plain")
    press(page, "Escape")
    assert page.locator("article").count() == 1
    press(page, "f v")
    assert page.inner_text("#say").startswith("this row has no clip")


def test_a_file_of_verdicts_continues_in_another_browser(watched, captions):
    page = opened(watched, captions)
    press(page, "a r")
    path = saved(page, captions.parent)
    page.evaluate("localStorage.clear(); sessionStorage.clear()")
    page.reload()
    assert states(page) == [""] * 4
    page.click("#show-about")
    page.set_input_files("#upload", path)
    page.wait_for_function("document.querySelectorAll('article.reject').length === 1")
    press(page, "Escape")
    assert states(page) == ["accept", "reject", "", ""]


def test_frames_are_enlarged_by_click_and_key(watched, captions):
    page = opened(watched, captions)
    press(page, "Enter")
    assert page.locator("dialog#larger").is_visible()
    press(page, "ArrowRight")
    assert page.inner_text("#picture-text").startswith("0.7 s, 2 of 4: 64 x 48 pixels")
    press(page, "Escape")
    page.locator("article").nth(1).locator(".picture").nth(3).click()
    assert page.inner_text("#picture-text").startswith("1.7 s, 4 of 4")
    assert page.locator("#picture").evaluate("e => e.clientHeight > 400")


def test_filters_choose_by_status_text_length_and_verdict(watched, captions):
    page = opened(watched, captions)
    shown = lambda: page.locator("article .id").all_inner_texts()  # noqa: E731
    press(page, "f")

    page.select_option("#status", "error: media_corrupt")
    assert shown() == ["clips.parquet#3"]
    press(page, "r")  # judges, and does not change the filter
    assert states(page) == ["reject"]
    page.select_option("#status", "")
    page.fill("#text", "RED circle")
    assert shown() == ["clips.parquet#2"]
    page.fill("#text", "nothing like this")
    assert "No row matches" in page.inner_text("#rows")
    page.get_by_role("button", name="Show all rows").last.click()
    page.fill("#shortest", "20")
    assert shown() == ["clips.parquet#1", "clips.parquet#2"]
    page.fill("#shortest", "")
    page.select_option("#order", "longest")
    assert shown()[0] == "clips.parquet#1"
    page.locator("article").first.get_by_role("button", name="Reject").click()
    page.select_option("#judged", "reject")
    assert sorted(shown()) == ["clips.parquet#1", "clips.parquet#3"]


def test_a_fold_stays_open_when_its_row_is_judged(watched, captions):
    page = opened(watched, captions)
    page.locator("article").first.get_by_text("columns").click()
    page.keyboard.press("a")
    assert page.locator("article").first.locator("details[open]").count() == 1


def test_caption_health_counts_what_the_filters_show(watched, tmp_path):
    loop = "the dog runs on grass and " * 4
    texts = ("same words", "same words", loop, "")
    page = opened(watched, write_output(tmp_path / "captions", write_input(tmp_path), texts))
    press(page, "h")
    health = page.inner_text("#health-text")
    assert "repeat themselves: 1 (25.0 %)" in health
    assert "same as another row's: 2 (50.0 %)" in health
    assert "errors: 1 (25.0 %)" in health
    assert "2 same words" in health
    assert f"shortest 10, half are below 10, nine of ten below 10, longest {len(loop)}" in health
    page.get_by_role("button", name="show").first.click()
    assert page.locator("article .id").all_inner_texts() == ["clips.parquet#2"]
    press(page, "h")
    assert "1 row of 4" in page.inner_text("#health-text")


def test_a_clip_is_played(watched, captions):
    page = opened(watched, captions, "--with-clips")
    press(page, "v")
    page.wait_for_function("document.querySelector('#clip').readyState >= 2")
    length_s = page.evaluate("document.querySelector('#clip').duration")
    assert 1.5 < length_s < 2.5
    assert page.evaluate("document.querySelector('#clip').videoWidth") == 64


@pytest.mark.parametrize("size", [(1400, 900), (800, 900), (390, 800)], ids=str)
def test_rows_fit_the_window(watched, tmp_path, size):
    sentence = "A red circle moves slowly from the left to the right while the camera stays still. "
    texts = ((sentence * 8)[:600],) * 5
    output = write_output(tmp_path / "captions", write_input(tmp_path, 5), texts, num_frames=8)
    watched.set_viewport_size({"width": size[0], "height": size[1]})
    page = opened(watched, output)
    page.screenshot(path=tmp_path / f"page-{size[0]}.png")

    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    boxes = [page.locator("article").nth(n).bounding_box() for n in range(3)]
    picture = page.locator("article .picture").first.bounding_box()
    caption = page.locator("article .caption").first.bounding_box()
    if size[0] == 1400:
        assert page.locator("header").bounding_box()["height"] < 50
        assert boxes[2]["y"] + boxes[2]["height"] <= size[1]
        assert caption["x"] > picture["x"] + picture["width"]
    else:
        assert caption["y"] > picture["y"] + picture["height"]
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=tmp_path / f"dark-{size[0]}.png")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 20, 22)"


def test_the_page_says_to_screen_readers_what_it_is(watched, captions):
    page = opened(watched, captions)
    assert page.get_by_role("progressbar").get_attribute("aria-valuenow") == "0"
    assert page.locator("article[aria-current=true]").count() == 1
    press(page, "a")
    assert page.get_by_role("progressbar").get_attribute("aria-valuenow") == "1"
    assert page.locator("article").first.get_attribute("aria-label") == (
        "row clips.parquet#0, accept"
    )
    assert page.evaluate("document.activeElement.tagName") == "ARTICLE"
    press(page, "Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    unnamed = "b => !(b.getAttribute('aria-label') || b.textContent.trim())"
    assert not page.evaluate(f"[...document.querySelectorAll('button')].some({unnamed})")


def test_sides_are_hidden_in_a_blind_comparison(watched, captions, capsys):
    changed = ("a plain caption", "another", "a red square moves right fast", "")
    source = captions.parent / "clips.parquet"
    other = write_output(captions.parent / "eight", source, changed, num_frames=8)
    page = opened(watched, captions, "--against", other, "--blind")
    capsys.readouterr()

    assert page.locator("article .id").all_inner_texts() == ["clips.parquet#1", "clips.parquet#2"]
    text = page.inner_text("body")
    assert "captions" not in page.title().lower()
    assert "eight" not in text
    press(page, "b n")
    assert states(page) == ["tie", "neither"]
    press(page, "k x o")
    assert states(page) == ["", "neither"]
    assert page.locator("article.selected .id").inner_text() == "clips.parquet#1"
    # The second output is chosen in both rows, wherever it is.
    for row in range(2):
        left = page.locator("article").nth(row).locator(".side .caption").first.inner_text()
        press(page, "l" if left in changed else "r")
    assert "" not in states(page)
    path = saved(page, captions.parent)
    apply = [str(captions), "--apply", str(path), "--export", str(captions.parent / "r")]
    assert review.main(apply) == 2
    assert "name the second output with --against" in capsys.readouterr().err
    assert review.main([*apply, "--against", str(other)]) == 0
    out = capsys.readouterr().out
    assert f"2 rows compared: {other.absolute()} is better in 2," in out
    assert "1.00 of 2 decided rows, 95 % interval 0.34 to 1.00" in out
    assert pq.read_table(captions.parent / "r" / "comparison.parquet")["better"].to_pylist() == [
        *("second", "second")
    ]


def test_two_outputs_side_by_side(watched, captions):
    changed = ("a plain caption", "another", "a red square moves right fast", "")
    source = captions.parent / "clips.parquet"
    other = write_output(captions.parent / "eight", source, changed, num_frames=8)
    page = opened(watched, captions, "--against", other)

    third = page.locator("article").nth(2)
    assert third.locator("del").all_inner_texts() == [" circle", " left"]
    assert third.locator("ins").all_inner_texts() == [" square", " right", " fast"]
    assert third.locator("img").count() == 4 + 8
    page.screenshot(path=captions.parent / "sides.png", full_page=True)
    press(page, "f")
    page.check("#changed")
    assert page.locator("article").count() == 2
    press(page, "Escape t")
    assert states(page) == ["edit", ""]
    page.locator("article").nth(1).get_by_role("button", name="Take the right one").click()
    assert states(page) == ["edit", "edit"]
    assert loaded(page) == [(captions.parent / "page.html").as_uri()[:100]]


def test_pages_stand_beside_their_text_and_the_document_is_folded(watched, tmp_path):
    output = documents(tmp_path)
    page = opened(watched, output)

    first = page.locator("article").first
    assert first.locator(".mark").all_inner_texts() == ["page 1", "page 2", "page 3"]
    assert first.locator(".answer .text").all_inner_texts() == ["# <b>papers.parquet#0</b>"] * 3
    picture = first.locator("img").first.bounding_box()
    text = first.locator(".answer").first.bounding_box()
    assert text["x"] > picture["x"] + picture["width"]
    assert not first.locator(".caption").is_visible()
    page.screenshot(path=tmp_path / "documents.png", full_page=True)
    press(page, "Enter s")  # a page is read larger than the model saw it
    small = page.inner_text("#picture-text")
    press(page, "s")
    assert "no finer than the model saw it" in small
    assert "from the source" in page.inner_text("#picture-text")
    assert page.locator("#picture").evaluate("e => e.naturalHeight") == 1200
    press(page, "Escape w w Shift+W r a")  # the first page is rejected, the second accepted
    assert first.locator(".answer.reject").get_attribute("data-part") == "page 1"
    assert first.locator(".answer.accept").get_attribute("data-part") == "page 2"
    assert "0 of 3 judged" in page.inner_text("#judgements")
    press(page, "f")
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
    assert first.locator(".answer del").all_inner_texts() == [" <b>papers.parquet#0</b>"] * 3
    assert first.locator(".answer ins").all_inner_texts() == [" <i>papers.parquet#0</i>"] * 3
    assert first.locator(".caption").count() == 2
    page.keyboard.press("a")
    assert first.locator(".answer del").count() == 3
    page.screenshot(path=tmp_path / "both.png", full_page=True)


def test_windows_and_prompts_show_their_own_frames(watched, clips, tmp_path):  # noqa: F811
    windows = TimeWindows(length_s=1.0, overlap_s=0.5, merge="Sum up.")
    asked = Instructions(windows=windows, frames=FrameSampling(num_frames=2))
    opened(watched, write_answered(clips(instructions=asked), lambda request: HOSTILE))
    parts = watched.locator("article").first.locator(".answer")
    assert parts.locator(".label").all_inner_texts() == [
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
    images = watched.locator("article").first.locator(".seen img")
    sizes = [images.nth(n).evaluate("e => e.naturalWidth") for n in range(5)]
    assert sizes[1] > sizes[0]
    assert sizes[1:] == sizes[1:2] * 4
    assert watched.locator("article").first.locator(".answer .label").all_inner_texts() == [
        *("coarse", "fine")
    ]
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

    paths = write_pages(captions.parent / "big.html", side, None, PageSettings())
    started = time.monotonic()
    watched.goto(paths[0].as_uri(), wait_until="load")
    loaded_s = time.monotonic() - started
    assert "rows 1 to 25 of 10,000" in watched.inner_text("#place")
    press(watched, "ArrowRight")
    assert "rows 26 to 50 of 10,000" in watched.inner_text("#place")
    press(watched, "ArrowLeft f")
    assert "rows 1 to 25 of 10,000" in watched.inner_text("#place")
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
    assert "50 of 10,000 judged" in watched.inner_text("#judgements")
    assert watched.locator("article").count() == 25
    print(  # noqa: T201
        f"{[round(path.stat().st_size / 2**20) for path in paths]} MiB, load {loaded_s:.2f} s, "
        f"search {searched_s:.2f} s, a verdict {judged_s / 50:.3f} s"
    )
