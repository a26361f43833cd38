"""Which option an answer names: answers as models write them, kind by kind."""

# ruff: noqa: RUF001

import random

import pytest

from jobs.sweep.answer_text import normal
from jobs.sweep.choices import parse_choice
from jobs.sweep.layouts import LETTERS
from tests.jobs.sweep import choice_cases, choice_cases_in_languages

COLOURS = ("red", "blue", "dark blue", "A cat")
DEEDS = (
    "He opens the door.",
    "He sits down, and does not move",
    "The red car turns left",
    "Both A and B",
)
YES_NO = ("Yes", "No")

KINDS = choice_cases.KINDS | choice_cases_in_languages.KINDS
CASES = [
    pytest.param(text, letter, id=f"{kind}: {text!r:.50}")
    for kind, cases in KINDS.items()
    for text, letter in cases
]


@pytest.mark.parametrize(("text", "letter"), CASES)
def test_the_option_that_an_answer_names(text, letter):
    assert parse_choice(text, COLOURS) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("He opens the door", "A"),
        ("A. He opens the door.", "A"),
        ("B. He sits down, and does not move", "B"),
        ("He sits down, and does not move.", "B"),
        ("The man in the video opens the door", None),
        ("D. Both A and B", "D"),
        ("The answer is D: both A and B", "D"),
        ("Both A and B", "D"),
        ("The answer is both A and B.", "D"),
        ("A. He sits down, and does not move", None),
        ("C. The red car turns left, not right.", "C"),
        ("The red car turns left.", "C"),
        ("The man opens the box. He sits down, and does not move; the correct answer is B", "B"),
        ("He opens the door; the correct answer is therefore C.", "C"),  # as announced
        ("He opens the door, which matches option C", None),
        ("He opens the door, which matches option A", "A"),
        ("The car doesn't turn: the red car turns left", None),
    ],
)
def test_the_words_of_long_options_are_no_words_of_the_answer(text, letter):
    assert parse_choice(text, DEEDS) == letter


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        pytest.param("B. No, he does not", YES_NO, "B", id="no is a text here"),
        pytest.param("A. No, he does not", YES_NO, None, id="letter and text differ"),
        pytest.param("No", YES_NO, "B", id="only the text"),
        pytest.param("Yes, he does.", YES_NO, "A", id="the text at the start"),
        pytest.param("No, he does not.", YES_NO, "B", id="no at the start"),
        pytest.param("No. The man does not smile.", YES_NO, "B", id="no, then a sentence"),
        pytest.param("The answer is no.", YES_NO, "B", id="no, announced"),
        pytest.param("There is no doubt that he does", YES_NO, None, id="no is no text here"),
        pytest.param("No. Yes.", YES_NO, None, id="no and yes"),
        pytest.param("Yes, but actually no.", YES_NO, None, id="yes and no"),
        pytest.param("one", ("one", "two"), "A", id="a numeral"),
        pytest.param("The one on the left", ("one", "two"), None, id="a pronoun"),
        pytest.param("The right answer is A.", ("left", "right"), "A", id="a text in a phrase"),
        pytest.param("What's up: A", ("left", "up"), None, id="a text and another letter"),
        pytest.param("First left. Then right.", ("left", "right"), None, id="two texts"),
        pytest.param("A. Wait, it is B", YES_NO, "B", id="taken back"),
        pytest.param("2", ("1", "2", "3"), "B", id="a number"),
        pytest.param("There are 2 dogs", ("1", "2", "3"), "B", id="a number in a sentence"),
        pytest.param("It lasts 2.5 s", ("1", "2", "3"), None, id="a part of another number"),
        pytest.param("At 1 s there are 2", ("1", "2", "3"), None, id="two numbers"),
        pytest.param("A", ("x", "a"), "A", id="a letter of another case is another text"),
        pytest.param("A", ("x", "A"), None, id="the letter of one, the text of another"),
        pytest.param("E", ("E", "F"), "A", id="a letter beyond the options is a text"),
        pytest.param("答案是红色", ("红色", "深红色"), "A", id="Chinese text"),
        pytest.param("深红色", ("红色", "深红色"), "B", id="the longer of two Chinese texts"),
        pytest.param("I", (*"stuvwxyz", "9th"), "I", id="nine options"),
        pytest.param("I think so", (*"stuvwxyz", "9th"), None, id="the pronoun"),
        pytest.param(
            "\n".join(f"{each}. {each * 3}" for each in LETTERS),
            LETTERS,
            None,
            id="26 options listed",
        ),
        pytest.param("red", ("red", "Red"), None, id="two options of one text"),
        pytest.param("C", ("", ""), None, id="empty options"),
        pytest.param("the", ("the", "a"), "A", id="options that are articles"),
        pytest.param("A red car drives", ("red bus", "red car"), "B", id="an article before text"),
        pytest.param("B. a", ("(", "[a"), "B", id="options that look like patterns"),
    ],
)
def test_what_the_options_change(text, options, letter):
    assert parse_choice(text, options) == letter


def test_random_texts_never_raise_and_name_only_options():
    chosen = random.Random(0)
    pieces = [text for cases in KINDS.values() for text, _ in cases if text]
    marks = [
        "\\boxed{",
        "}",
        "<answer>",
        "◁think▷",
        "(",
        "\n",
        "**",
        "答案",
        " is ",
        "not ",
        "\ue001",
    ]
    for _ in range(10_000):
        kind = chosen.randrange(3)
        if kind == 0:  # any characters, lone surrogates too
            text = "".join(chr(chosen.randrange(0x3000)) for _ in range(chosen.randrange(40)))
            text += chr(chosen.randrange(0xD000, 0x11000))
        elif kind == 1:
            text = "".join(chosen.choices([*"ABCDabc .,:;()\n", *marks], k=chosen.randrange(30)))
        else:
            one, other = chosen.choices(pieces, k=2)
            text = one[: chosen.randrange(len(one) + 1)] + other[chosen.randrange(len(other)) :]
        assert parse_choice(text, COLOURS) in (None, "A", "B", "C", "D")


def test_a_long_answer_is_read_in_time_that_grows_with_it():
    """A pattern that backtracks would take hours here."""
    for text in ("the answer ", "A or ", "not A, ", "(", "\\boxed{", "<answer>", "A B ", "so "):
        assert parse_choice(text * 5_000, COLOURS) in (None, "A")


def test_open_answers_are_compared_without_case_marks_and_spaces():
    assert normal("  Moves  Left. ") == normal("moves left")
    assert normal("**Moves left**") == normal("“moves left”") == normal("ｍｏｖｅｓ left。")
    assert normal("◁think▷Up?◁/think▷ left") == normal("left")
    assert normal("-5") != normal("5")
    assert normal("moves left") != normal("moves right")
    assert normal(None) == ""
