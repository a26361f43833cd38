"""Options that are written as text."""

import argparse

import pytest

from jobs.cli.options import Parser, add_options, count, parse_names

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
