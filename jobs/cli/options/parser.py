"""The parser of every job: its error messages and the layout of its manual page."""

import argparse
from typing import NoReturn


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
        """Print the message and exit with 2."""
        self.exit(2, f"{self.prog}: error: {self.where}{message} (see --help)\n")
