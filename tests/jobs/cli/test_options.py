"""Options that are written as text."""

import argparse

import pytest

from jobs.cli.options import Parser, add_options, count, parse_names
from jobs.cli.options.values import color_or

MANUAL = """
--rows N: rows to read: all of
    --input, if 0
--name TEXT: name of the run
--dry: start nothing
--mode: how to run
"""


def parser_of(settings):
    parser = Parser(prog="job")
    add_options(parser.add_argument_group("own"), MANUAL, settings)
    return parser


def test_options_are_those_of_the_manual_with_their_settings():
    settings = {"--rows": {"type": count, "default": 3}, "--mode": {"choices": ("a", "b")}}
    parser = parser_of(settings)
    assert vars(parser.parse_args([])) == {"rows": 3, "name": None, "dry": False, "mode": None}
    given = parser.parse_args(["--rows", "0", "--name", "x", "--dry", "--mode", "b"])
    assert vars(given) == {"rows": 0, "name": "x", "dry": True, "mode": "b"}
    help_of = {action.dest: (action.metavar, action.help) for action in parser._actions}
    assert help_of["rows"] == ("N", "rows to read: all of --input, if 0")
    assert help_of["mode"] == (None, "how to run")


def test_settings_of_an_option_that_the_manual_lacks_are_a_mistake():
    with pytest.raises(AssertionError, match=r"no entry for \{'--row'\}"):
        parser_of({"--row": {"type": count}})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b", ("a", "b")),
        ("a,,b,", ("a", "b")),
        ('a,"task, goal"', ("a", "task, goal")),
        ('"say ""hi"""', ('say "hi"',)),
        ("episode.index,a b, c", ("episode.index", "a b", " c")),
        ('in"side', ('in"side',)),
        ("", ()),
    ],
)
def test_names_of_columns_are_written_as_in_a_csv_file(text, names):
    assert parse_names(text) == names


@pytest.mark.parametrize("text", ['"a', '"a"b'])
def test_quotes_without_a_partner_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a list of names such as"):
        parse_names(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("white", "#ffffff"), ("Navy", "#000080"), ("#0F0", "#00ff00")),
        *(("rgb(1,2,3)", "#010203"), ("none", "none"), ("auto", "auto")),
    ],
)
def test_a_colour_is_known_by_its_name_or_number(text, value):
    assert color_or("auto", "none")(text) == value


def test_a_colour_that_is_none_is_refused_by_its_name():
    message = "'whit' is no colour; use a name such as white, #rrggbb, or none"
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        color_or("auto", "none")("whit")
