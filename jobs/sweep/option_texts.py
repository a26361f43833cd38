"""Put a token in place of each text of an option, so that a reader of answers sees no words of it.

options red, dark blue:   "B. Dark blue, not a red one."  ->  "B. , not [A] one."
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from jobs.sweep import choice_words as words
from jobs.sweep.answer_text import plain_answer
from jobs.sweep.layouts import LETTERS

_FIRST = 0xE000  # private characters; `plain_answer` leaves none
TOKEN = f"[{chr(_FIRST)}-{chr(_FIRST + len(LETTERS) - 1)}]"
GONE = "\uf8ff"  # where an option was denied
_NEGATIVE = re.compile(words.NEGATIVE, re.IGNORECASE)
_BEFORE_PRONOUN = "the this that which each every another other no any some".split()
_NO_PRONOUN = "".join(rf"(?<!\b{word}\s)" for word in _BEFORE_PRONOUN)
_ARTICLE = r"(?:\b(?:an?|the)\s+)?"
_LETTER_AND_TEXT = re.compile(
    rf"(?<![\w'])([A-Za-z])([^\w{TOKEN[1:-1]}\n]{{1,4}}|\n)({TOKEN})(\s*\W|$)"
)


def letter_of(said: str) -> str:
    """Return the letter of an option as it was said: by its letter, or by a token."""
    place = ord(said) - _FIRST
    return LETTERS[place] if 0 <= place < len(LETTERS) else said.upper()


def with_tokens(plain: str, options: Sequence[str]) -> str:
    """Replace the texts of options in a plain answer.

    A text behind its own letter goes. Behind another letter at the end of a phrase, the two
    contradict each other: `B. red` becomes `B/A`.
    """
    texts = {place: plain_answer(option).strip(" .!") for place, option in enumerate(options)}
    for place in sorted(texts, key=lambda each: -len(texts[each])):
        pattern = _pattern(texts[place])
        if pattern is not None:
            plain = pattern.sub(chr(_FIRST + place), plain)
    return _LETTER_AND_TEXT.sub(_joined, plain)


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str] | None:
    """Match a text as whole words; None for one that is too short to be told from other words."""
    text = re.sub(r"^(?:an?|the)\s+(?=\w)", "", text, flags=re.IGNORECASE)
    if len(text) < 2 and not text.isdecimal():
        return None
    spaced = r"\s+".join(re.escape(word) for word in text.split())
    if _NEGATIVE.fullmatch(text):  # `no` says nothing in "no doubt"
        return re.compile(rf"\b{spaced}(?=\s*(?:[.,;:!?)\n]|$))", re.IGNORECASE)
    if text.lower() == "one":  # nor does `one` in "the one on the left"
        return re.compile(rf"{_NO_PRONOUN}\bone\b(?!\s+of\b)", re.IGNORECASE)
    before = r"(?<!\w)(?<!\d[.,:])" if text[0].isascii() else ""
    after = r"(?!\w)(?![.,:]\d)" if text[-1].isascii() else ""
    return re.compile(f"{before}{_ARTICLE}{spaced}{after}", re.IGNORECASE)


def _joined(found: re.Match[str]) -> str:
    letter, between, token, after = found.groups()
    if letter_of(token) == letter.upper():
        return f"{letter}{between}{after}"
    if letter in "aAI" and between.isspace():
        return found[0]  # an article or a pronoun
    closing = ")" if ")" in between else ""
    return f"{letter}/{letter_of(token)}{closing}{after}"
