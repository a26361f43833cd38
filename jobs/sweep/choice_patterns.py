"""The phrases by which an answer names an option, as regular expressions.

In each, the group `said` is the option: a letter, or a token that `option_texts` put in. Words have
any case; letters count as they are written.
"""

# ruff: noqa: RUF001

import re

from jobs.sweep import choice_words as words
from jobs.sweep.option_texts import GONE, TOKEN

_LATIN = "A-Za-z0-9À-ÖØ-öø-ɏ"
# A letter is no part of a word, of C++, of 25 °C, of B-roll, of I'm, of D.C. or of (C) 2020.
_BEFORE = rf"(?<![{_LATIN}°&'])(?<![{_LATIN}]-)(?<![A-Z]\.)"
_AFTER = rf"(?![{_LATIN}+#°&']|-\w|\.[A-Za-z]\b|\s*\)\s*\d{{4}})"
# What may follow it: in `A red car` it is an article, in `A because it is red` a letter.
_END = (
    rf"(?=\s*(?:$|[\n.,;:!?)/|…—–=→{GONE}]|-\s|\()|\s*(?:{words.AFTER_AT_ONCE})"
    rf"|\s+(?:[+&]\s|(?i:{words.AFTER})|[Ͱ-\u1fff\u3040-\ud7ff]))"
)
_UPPER = rf"{_BEFORE}[A-Z]{_AFTER}"
_LETTER = rf"{_UPPER}{_END}"
_SMALL = rf"(?:(?<=\()[a-z](?=\))|{_BEFORE}[a-z]{_AFTER}(?=\s*(?:$|[\n.,;:!?)])))"
_NOUN = rf"(?i:{words.NOUN})"
_FILL = (
    rf"(?:[\s()\",:*=→~—–-]|{GONE}(?:\W*(?i:{words.BUT})|(?=[A-Z]))|(?i:{words.FILL})|\b[ao]\b"
    rf"|{_NOUN}){{0,16}}"
)
_TAIL = rf"{_FILL}(?P<said>{_LETTER}|{_SMALL}|{TOKEN})"
# `answer is`, `answer a viewer would give is`; `answer` at the end of a line; `答案`, `ответ`.
_HEAD = (
    rf"(?P<between>[^.!?;:\n。]{{0,60}}?)(?i:{words.IS})"
    rf"|(?=\s*(?:\n|{TOKEN}))|(?<=[^\x00-\u024f])"
)

FINAL = re.compile(rf"(?i:{words.FINAL})(?:{_HEAD}|(?=\W)){_TAIL}")
ANNOUNCED = re.compile(rf"(?i:{words.ANSWER})(?:{_HEAD}){_TAIL}")
CHOSEN = re.compile(rf"(?i:{words.CHOOSE}){_FILL}(?P<said>{_LETTER}|(?<=\()[a-z](?=\)))")
CORRECT = re.compile(rf"(?P<said>{_UPPER})\s*\)?[.,]?\s*(?i:{words.CORRECT})")
FREE = re.compile(  # what stands before `B is correct`
    rf"(?:^|[.,;:!?(\n。→…—–{GONE}-]|[^\x00-\u024f]|{_NOUN}|(?i:{words.FREE}))\s*\(?\s*$"
)
ALONE = re.compile(rf"{_FILL}\W{{0,9}}(?P<said>{_UPPER})\W*")
ONLY = re.compile(rf"\W*({_BEFORE}[A-Za-z]{_AFTER})\W*")
LEADING = re.compile(rf"\W{{0,9}}{_FILL}(?P<said>{_LETTER}|{_BEFORE}[a-z](?=[).:]\s))")
MENTIONED = re.compile(
    rf"\(\s*([A-Z]){_AFTER}\s*\)(?!\s*\?)|{_NOUN}\s*\(?({_LETTER}|{_SMALL})(?!\s*\)?\?)"
    rf"|(?i:\b(?:option|choice))\s*\(?({_UPPER})|(?:^|[\n.:;!?]\s+)({_UPPER})(?=[.):](?:\s|$))"
)
LISTED_INLINE = re.compile(
    rf"\(([A-Z]){_AFTER}[)/]|(?i:option|choice) ([A-Z]):|\s([A-Z])(?:[.):]|\s-)\s"
)
ANY_LETTER = re.compile(rf"{_LETTER}|{_BEFORE}[B-HJ-Z]{_AFTER}")

# What links two options: `A or B`, `A, but it could be B`; at the start also `A. B.`
_OR = rf"\s*(?i:{words.OR})\s*|(?i:{words.MAYBE})|[\s()–—…→=-]"
ALSO = re.compile(rf"(?:{_OR}|\.\s*(?=or\b)){{1,12}}(?:{_NOUN}\W*)?(?P<said>{_LETTER}|{TOKEN})")
ALSO_LISTED = re.compile(rf"(?:{_OR}|[.:]){{1,12}}(?:{_NOUN}\W*)?(?P<said>{_LETTER}|{TOKEN})")
ALSO_BEFORE = re.compile(rf"(?P<said>{_UPPER}|{TOKEN})\s*\)?\s*(?i:{words.OR})\s*{_FILL}$")

_ONE = rf"(?:{_NOUN}\s*)?\(?(?:{_LETTER}|{TOKEN})\)?"
_LINK = rf"\s*,?\s*(?i:{words.OR})\s*"
DENIED = re.compile(
    rf"(?i:{words.NOT})(?:[ (]|{_NOUN}|(?i:{words.FILL})){{0,8}}{_ONE}"
    rf"(?:(?:\s*,\s*{_ONE}){{0,6}}{_LINK}{_ONE}(?!\s*(?i:is|'s|ist|est|es|é|è)\b))?"
)
_NAMED = rf"(?:{_NOUN}\s*)?(?:\([A-Z]\)|{_BEFORE}[A-HJ-Z]{_AFTER}[.)]?|{TOKEN})"
WRONG = re.compile(
    rf"{_NAMED}(?:\s*,\s*{_NAMED}){{0,6}}{_LINK}{_NAMED}(?i:{words.WRONG_ALL})"
    rf"|{_NAMED}(?i:{words.WRONG_ONE})"
)
TAKEN_BACK = re.compile(words.TAKEN_BACK)
LISTED = re.compile(rf"\s*\(?({_BEFORE}[A-Za-z])\s*[.):]")
CLAUSE = re.compile(r"[.,;:!?\n。]|\b(?:but|so|then|therefore)\b")
UNLESS = re.compile(rf"(?i:{words.UNLESS})")
NEGATIVE = re.compile(rf"(?i:{words.NEGATIVE})")
