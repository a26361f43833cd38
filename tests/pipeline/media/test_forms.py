"""Forms of PDFs: what is filled in is drawn, as poppler draws it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.media.documents import decode_document
from pipeline.media.limits import MediaLimits
from tests.conftest import ROOT
from tests.pipeline.pdfs import FIELDS, make_form, make_pdf

# `pdftoppm -r 72 -gray -png` of poppler 22.12 made it of `make_form(form="/NeedAppearances true")`.
REFERENCE: Path = ROOT / "tests/data/form_by_poppler.png"
CELL_PX = 12  # letters of other fonts lie in the same cells


def drawn(document: bytes) -> np.ndarray:
    """[200, 300] the brightness of the page at 72 dpi."""
    (page,) = decode_document(document, fit=lambda *_: (300, 200), limits=MediaLimits())
    return page.media[0].rgb[0].mean(axis=-1)


def has_ink(page: np.ndarray) -> np.ndarray:
    """Whether a cell of the page has something dark."""
    rows, columns = 192 // CELL_PX, 300 // CELL_PX
    cut = page[: rows * CELL_PX, : columns * CELL_PX]
    return np.asarray((cut < 128).reshape(rows, CELL_PX, columns, CELL_PX).any(axis=(1, 3)))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """The share of cells with ink in both pages, of those with ink in one."""
    a, b = has_ink(one), has_ink(other)
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("form", ["", "/NeedAppearances true", "/XFA (x)"])
def test_fields_are_drawn_as_poppler_draws_them(form):
    poppler = np.asarray(Image.open(io.BytesIO(REFERENCE.read_bytes())).convert("L"))
    assert overlap(drawn(make_form(form=form)), poppler) > 0.75
    assert overlap(drawn(make_form(FIELDS[:1], form=form)), poppler) < 0.5


def test_a_filled_in_field_looks_as_text_of_the_page_does():
    field = drawn(make_form(["/FT /Tx /T (a) /V (ADA) /Rect [80 100 260 124]"]))
    text = drawn(make_pdf(size=(300, 200), content="BT /F 14 Tf 82 107 Td (ADA) Tj ET"))
    assert overlap(field, text) > 0.6


@pytest.mark.parametrize(
    ("form", "value"),
    [("", "OLD"), ("/NeedAppearances true", "NEW")],
    ids=["as the file draws it", "as its value asks for"],
)
def test_a_look_that_is_out_of_date_is_drawn_anew_where_the_form_says_so(form, value):
    fields = ["/FT /Tx /T (a) /V (NEW) /Rect [80 100 260 124]"]
    pages = {
        "OLD": drawn(make_form(fields, look="OLD")),
        "NEW": drawn(make_form(fields)),
    }
    assert (pages["OLD"] != pages["NEW"]).any()
    assert overlap(drawn(make_form(fields, form=form, look="OLD")), pages[value]) == 1.0


def test_a_field_of_a_document_without_a_form_is_drawn_too():
    fields = ["/FT /Tx /T (a) /Rect [80 100 260 124]"]
    page = drawn(make_form(fields, look="ADA", catalog="/Lang (en)"))
    assert has_ink(page).any()


def test_a_hidden_field_is_not_drawn():
    assert not has_ink(drawn(make_form(FIELDS[-1:]))).any()
