"""The parser of every job: what it says of a wrong argument, how its manual looks."""

import argparse
from typing import NoReturn


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Paragraphs as they are written; the default behind each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, [], argparse.SUPPRESS) or action.nargs == 0:
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the long usage."""

    where = ""  # before the message, such as the name of a file

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"{self.prog}: error: {self.where}{message} (see --help)\n")
