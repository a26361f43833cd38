"""Which pages of a document share a prompt."""

import numpy as np
import pytest

from pipeline.media.frames import Frames, MediaFacts
from pipeline.media.limits import MediaError
from pipeline.media.windows import Window
from pipeline.prompts.pages import pack_pages
from pipeline.status import ErrorCode


def page(index, *, error=None):
    facts = MediaFacts(
        duration_s=0, fps=0, width_px=8, height_px=8, codec="pdf", rotation=0, is_vfr=False,
        is_interlaced=False, num_decode_errors=0,
    )  # fmt: skip
    frames = Frames(rgb=np.zeros((1, 8, 8, 3), np.uint8), timestamps_s=np.zeros(1), facts=facts)
    return Window(start=index, end=index + 1, media=() if error else (frames,), error=error)


@pytest.mark.parametrize(
    ("max_pages", "max_tokens", "expected"),
    [
        pytest.param(1, 1000, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)], id="one by one"),
        pytest.param(2, 1000, [(0, 2), (2, 3), (3, 4), (4, 5)], id="two, but the broken one"),
        pytest.param(None, 1000, [(0, 3), (3, 4), (4, 5)], id="as many as there are"),
        pytest.param(None, 25, [(0, 2), (2, 3), (3, 4), (4, 5)], id="as many as fit"),
        pytest.param(9, 5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)], id="none fits"),
    ],
)
def test_pages_are_packed_in_order(max_pages, max_tokens, expected):
    broken = MediaError(ErrorCode.MEDIA_CORRUPT, "page 4")
    pages = [page(0), page(1), page(2), page(3, error=broken), page(4)]

    windows = list(pack_pages(pages, max_pages, lambda frames: 10, max_tokens))

    assert [(window.start, window.end) for window in windows] == expected
    assert [len(window.media) for window in windows if not window.error] == [
        end - start for start, end in expected if start != 3
    ]
    assert list(pack_pages([], 1, lambda frames: 10, 10)) == []
