r"""Read which option an answer names; a wrong letter is worse than none.

answer -> plain text -> texts of options become tokens -> what was taken back or denied goes
       -> the first of these readings that finds options decides, if it finds a single one:

final       `Final answer: B`, `\boxed{B}`, `<answer>B</answer>`
announced   `The answer is B`, `B is correct`, `I choose B`, `B` in a line of its own
leading     `B. the red car`, `(B)`, `B because`
mentioned   `(B)`, `option B`
text        the text of one option in one sentence that denies nothing
"""

import re
from collections.abc import Sequence
from itertools import takewhile

from jobs.sweep import choice_patterns as patterns
from jobs.sweep.answer_text import normal, plain_answer
from jobs.sweep.layouts import LETTERS
from jobs.sweep.option_texts import GONE, TOKEN, letter_of, with_tokens


def parse_choice(text: str | None, options: Sequence[str]) -> str | None:
    """Return the letter of the option that an answer names; None if it names none, or several.

    `options` are their texts, without letters. A letter beyond them is none of them.
    """
    plain = plain_answer(text or "")
    letters = LETTERS[: len(options)]
    named = _whole(plain, options)
    if not named:
        rest = patterns.TAKEN_BACK.split(with_tokens(plain, options))[-1]
        for denial in (patterns.DENIED, patterns.WRONG):
            rest = denial.sub(GONE, rest)
        rest = _without_lists(rest)
        named = next(filter(None, (reading(rest) for reading in _READINGS)), set())
    return named.pop() if len(named) == 1 and named <= set(letters) else None


def _whole(plain: str, options: Sequence[str]) -> set[str]:
    """Read an answer that is only a letter, or only the text of an option; else find nothing."""
    same = {
        letter
        for letter, option in zip(LETTERS, options, strict=False)
        if normal(option) == normal(plain)
    }
    alone = patterns.ONLY.fullmatch(plain)
    if alone is None or (same and alone[1].upper() not in LETTERS[: len(options)]):
        return same
    # `A` may also be the text of another option; one in another case is a different text.
    texts = {letter for letter in same if options[LETTERS.index(letter)].strip() == alone[1]}
    return {alone[1].upper(), *texts}


def _final(text: str) -> set[str]:
    return _announced_by(patterns.FINAL, text)


def _announced(text: str) -> set[str]:
    found = _announced_by(patterns.ANNOUNCED, text)
    for match in patterns.CHOSEN.finditer(text):
        if not _is_unsure(text, match):
            found |= _with_linked(text, match)
    for match in patterns.CORRECT.finditer(text):
        if patterns.FREE.search(_before(text, match)) and not _is_unsure(text, match):
            found |= _with_linked(text, match)
            if also := patterns.ALSO_BEFORE.search(_before(text, match)):  # `A and B are correct`
                found.add(letter_of(also["said"]))
    lines = text.splitlines()
    for line in (lines[0], lines[-1]) if lines else ():
        if alone := patterns.ALONE.fullmatch(line):
            found.add(alone["said"])
    return found


def _announced_by(pattern: re.Pattern[str], text: str) -> set[str]:
    """Read all announcements, from each word on that may begin one."""
    found: set[str] = set()
    match = pattern.search(text)
    while match is not None:
        between = match["between"] or ""
        doubtful = patterns.UNLESS.search(between) or patterns.ANY_LETTER.search(between)
        if not doubtful and not _is_unsure(text, match):
            found |= _with_linked(text, match)
            match = pattern.search(text, match.end())
        else:
            match = pattern.search(text, match.start() + 1)
    return found


def _is_unsure(text: str, match: re.Match[str]) -> bool:
    """Whether this is asked, supposed or denied: `if the answer is B`, `is the answer B?`."""
    before = patterns.CLAUSE.split(_before(text, match))[-1]
    return bool(
        patterns.UNLESS.search(before) or re.match(r"[\s)]*\?", text[match.end() : match.end() + 9])
    )


def _before(text: str, match: re.Match[str]) -> str:
    """Return some of the text before a match; it does not begin within a word."""
    start = max(0, match.start() - 60)
    return text[start : match.start()].partition(" ")[2] if start else text[: match.start()]


def _with_linked(text: str, match: re.Match[str]) -> set[str]:
    """Return the option that was said, and one that is linked with it: `A or B`."""
    found = {letter_of(match["said"].strip())}
    if also := patterns.ALSO.match(text, match.end("said")):
        found.add(letter_of(also["said"]))
    return found


def _leading(text: str) -> set[str]:
    match = patterns.LEADING.match(text)
    if match is None:
        is_text = re.match(rf"\W*{TOKEN}\s*(?:[.,;:!\n]|$)", text)  # `No, he does not`
        return _texts(text) if is_text and not patterns.ANY_LETTER.search(text) else set()
    listed = patterns.LISTED_INLINE.findall(text.split("\n", 1)[0])  # `A) red B) blue`
    found = {letter_of(match["said"]), *("".join(groups) for groups in listed)}
    if also := patterns.ALSO_LISTED.match(text, match.end("said")):
        found.add(letter_of(also["said"]))
    return found


def _mentioned(text: str) -> set[str]:
    found = {
        letter_of(next(filter(None, match.groups())).strip())
        for match in patterns.MENTIONED.finditer(text)
    }
    return found and found | _texts(text)


def _by_text(text: str) -> set[str]:
    if (
        patterns.NEGATIVE.search(text)
        or patterns.ANY_LETTER.search(text)
        or re.search(r"[.!?]\s+\S|。\s*\S|\n", text)
    ):
        return set()
    return _texts(text)


def _texts(text: str) -> set[str]:
    return {letter_of(token) for token in re.findall(TOKEN, text)}


_READINGS = (_final, _announced, _leading, _mentioned, _by_text)


def _without_lists(text: str) -> str:
    """Remove lines that repeat the options: two or more, which begin with A, B, ... in order."""
    lines = [line for line in text.splitlines() if line.strip()]
    labels = [found[1].upper() if (found := patterns.LISTED.match(line)) else "" for line in lines]
    kept: list[str] = []
    place = 0
    while place < len(lines):
        pairs = zip(labels[place:], LETTERS, strict=False)
        length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if length < 2:
            kept.append(lines[place])
        place += length if length > 1 else 1
    return "\n".join(kept)
