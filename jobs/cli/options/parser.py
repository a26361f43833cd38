"""The parser of every job: its error messages, its manual page, and options from text."""

import argparse
import difflib
import re
from collections.abc import Mapping
from typing import Any, NoReturn


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps paragraphs as written, and adds the default to the help of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, [], argparse.SUPPRESS) or action.nargs == 0:
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, without the long usage."""

    where = ""  # prefix of messages, such as the name of a file

    def error(self, message: str) -> NoReturn:
        """Print the message, with the nearest option for one that is unknown, and exit with 2."""
        hints = [
            f"; did you mean {nearest}?"
            for word in message.split()
            if message.startswith("unrecognized arguments:") and word.startswith("--")
            for nearest in self._nearest(word.partition("=")[0])
        ]
        self.exit(2, f"{self.prog}: error: {self.where}{message}{''.join(hints)} (see --help)\n")

    def _nearest(self, flag: str) -> list[str]:
        """Return the option that is most like a misspelled one, if any is."""
        return difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.75)


def add_options(
    group: argparse._ArgumentGroup, manual: str, settings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Add the options of a manual, which has an entry `--name METAVAR: help` for each.

    `settings` has further arguments of `add_argument` by option. An option without metavar and
    settings is a switch. Further lines of an entry are indented.
    """
    known = set()
    for entry in re.split(r"\n(?=--)", manual.strip()):
        head, text = entry.split(": ", 1)
        flag, *metavar = head.split()
        kind = dict(settings.get(flag, {} if metavar else {"action": "store_true"}))
        if metavar:
            kind["metavar"] = metavar[0]
        group.add_argument(flag, help=" ".join(text.split()), **kind)
        known.add(flag)
    assert settings.keys() <= known, f"the manual has no entry for {settings.keys() - known}"
