"""Several pages of a document in one prompt.

    pages 1 2 3 4 5 --pack--> prompt of 1-3, prompt of 4-5 --answers--> text of each page

Each page of a prompt of several stands behind a line such as `[page 4]`. The model is asked to
write the same line before the text of that page, so that its answer can be split again.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from model.inputs.images import image_size
from model.inputs.processor import Item
from pipeline.media.frames import Frames
from pipeline.media.windows import PageWindows, Window
from pipeline.prompts.frame_view import FrameView
from pipeline.prompts.prompt_builder import PromptBuilder

PAGES_REQUEST = (
    "\nWrite the pages in their order, and before the text of each the line that stands before its "
    "picture, such as [page 1]."
)
_PAGE_LINE = re.compile(r"^[ \t]*\[page (\d+)\][ \t]*$\n?", re.MULTILINE)
_LONGEST_NUMBER = 9999  # at least as many tokens as the number of any page


def page_line(page: int) -> str:
    """The line before a page in a prompt of several, and before its text in the answer."""
    return f"[page {page}]\n"


def page_items(window: Window) -> Iterator[Item]:
    """Yield each page of a window as an image, with its page line before it."""
    for page, frames in enumerate(window.media, int(window.start) + 1):
        yield page_line(page)
        yield frames.rgb[0]


def split_answer(answer: str | None, start: float, end: float) -> list[str | None]:
    """Split the answer about pages `start + 1` to `end` into the text of each page.

    Returns:
        None for each page that the answer does not reach. An answer whose page lines are missing or
        out of order stands whole at its first page.
    """
    num_pages = int(end - start)
    if answer is None or num_pages == 1:
        return [answer] + [None] * (num_pages - 1)
    before, *found = _PAGE_LINE.split(answer)
    numbers = [int(number) for number in found[::2]]
    texts: list[str | None] = [text.rstrip("\n") for text in found[1::2]]
    expected = range(int(start) + 1, int(end) + 1)
    if before.strip() or not numbers or numbers != list(expected[: len(numbers)]):
        texts = [answer]
    return texts + [None] * (num_pages - len(texts))


def pack_for_context(
    pages: Iterable[Window],
    windows: PageWindows,
    text: str,
    view: FrameView,
    builder: PromptBuilder,
) -> Iterator[Window]:
    """Join neighbouring pages, one a window so far, to windows that fit the model's context.

    `text` is what is asked about each window.

    Raises:
        PromptError: the text alone fills the context.
    """
    processor, system = builder.processor, builder.system
    config = processor.config
    context_len = config.text.max_position_embeddings
    room = max(context_len - windows.answer_tokens, context_len // 2)
    asked = text + PAGES_REQUEST
    # What a page takes beside its pixels: a prompt with one page of one token, less its text.
    smallest = np.zeros((config.image.patch_size, config.image.patch_size, 3), np.uint8)
    num_text = len(processor.prompt([asked], system=system).token_ids)
    one_page = processor.prompt([page_line(_LONGEST_NUMBER), smallest, asked], system=system)
    num_around = len(one_page.token_ids) - num_text - 1

    def num_tokens(page: Frames) -> int:
        _, height_px, width_px, _ = page.rgb.shape
        size = image_size(width_px, height_px, config.image, view.max_frame_tokens)
        return size.num_tokens + num_around

    return pack_pages(pages, windows.pages_per_prompt, num_tokens, room - num_text)


def pack_pages(
    pages: Iterable[Window],
    max_pages: int | None,
    num_tokens: Callable[[Frames], int],
    max_tokens: int,
) -> Iterator[Window]:
    """Join neighbouring pages, one a window so far, to windows within two limits.

    `num_tokens` counts what a page takes. A page that takes more than `max_tokens`, or that has an
    error, stays a window by itself.
    """
    window: Window | None = None  # the one that may still grow
    window_tokens = 0
    for page in pages:
        page_tokens = sum(num_tokens(frames) for frames in page.media)
        if window is None:
            window, window_tokens = page, page_tokens
            continue
        has_error = window.error is not None or page.error is not None
        is_full = max_pages is not None and len(window.media) >= max_pages
        if has_error or is_full or window_tokens + page_tokens > max_tokens:
            yield window
            window, window_tokens = page, page_tokens
        else:
            window = replace(window, end=page.end, media=(*window.media, *page.media))
            window_tokens += page_tokens
    if window is not None:
        yield window
