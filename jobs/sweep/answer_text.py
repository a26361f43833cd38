r"""Make plain text of an answer: what a model thought, and marks of Markdown, LaTeX and HTML, go.

A letter in a box (`\boxed{B}`) or in `<answer>` is announced in words, for one reader of both.
"""

# ruff: noqa: RUF001

import re
import unicodedata

from model.engine.grammar import CLOSE_MARK, OPEN_MARK

_THOUGHTS = ("think", "thinking", "thought", "reasoning", "reflection")
_OPEN = rf"{OPEN_MARK}|<(?:{'|'.join(_THOUGHTS)})>"
_CLOSE = rf"{CLOSE_MARK}|</(?:{'|'.join(_THOUGHTS)})>"
_STYLES = r"\\(?:text|math|emph|underline|operatorname|bf|rm)[a-z]*\s*\{([^{}]*)\}"
_MARKS = (
    (r"~~.*?~~", " "),  # struck through: taken back
    (r"\\[a-z]?boxed\s*\{([^{}]*)\}|\\boxed\s+([A-Za-z])\b", r"\nfinal answer: \1\2\n"),
    (r"(?i)<answer>(.*?)(?:</answer>|$)", r"\nfinal answer: \1\n"),
    (r"<\|[^|<>]{0,40}\|>|</?[A-Za-z][^<>]{0,40}>", " "),
    (r"\\[()\[\]]|\\[a-zA-Z]+|[\\$*`]", ""),
    (r"[\"“”„«»「」『』]|(?<!\w)['‘’]|['‘’](?!\w)", ""),
    (r"[‘’]", "'"),
    (r"[\[{【〔〈<]", "("),
    (r"[\]}】〕〉]|(?<![-=])>", ")"),
    (r"(?:->|=>|⇒|⟶)", "→"),
    (r"_", " "),
    (r"(?m)^[ \t]*(?:#+|[-•‣)])[ \t]+", ""),
    (r"[^\S\n]+", " "),
    (r"\n\s*\n", "\n\n"),
)
_PRIVATE = re.compile("[\ue000-\uf8ff]")  # characters that `option_texts` puts in
_OUTER = " .!\"'。"  # marks around an open answer that say nothing
_COMPILED = tuple((re.compile(mark, re.DOTALL), plain) for mark, plain in _MARKS)


def plain_answer(text: str) -> str:
    """Return the text that answers, in plain characters; empty if all of it is thought.

    Full-width and circled letters become ASCII, and quotation marks go. Lines stay.
    """
    text = unicodedata.normalize("NFKC", without_thoughts(text))
    text = _PRIVATE.sub(" ", text)
    for _ in range(3):  # styles in styles
        text = re.sub(_STYLES, r"\1", text)
    for mark, plain in _COMPILED:
        text = mark.sub(plain, text)
    return text.strip()


def normal(text: str | None) -> str:
    """Normalise an open answer: equal answers have the same words, without case and outer marks."""
    return " ".join(plain_answer(text or "").casefold().split()).strip(_OUTER)


def without_thoughts(text: str) -> str:
    """Return what stands behind the last thought; a thought without an end reaches to the end."""
    answer = re.split(_CLOSE, text, flags=re.IGNORECASE)[-1]
    return re.split(_OPEN, answer, maxsplit=1, flags=re.IGNORECASE)[0]
