"""Parsers of option values; an invalid text is refused by a message that quotes it."""

import argparse
import csv
from collections.abc import Callable, Collection


def count(text: str) -> int:
    """Parse a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def share(text: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value


def positive_list(text: str) -> tuple[int, ...]:
    """Parse A,B,...: positive whole numbers."""
    return tuple(positive(number) for number in text.split(","))


def positive_or(word: str) -> Callable[[str], int | None]:
    """Make a parser of positive numbers that returns None for `word`."""

    def parse(text: str) -> int | None:
        return None if text == word else positive(text)

    return parse


def number_or(word: str) -> Callable[[str], float | None]:
    """Make a parser of numbers that returns None for `word`."""

    def parse(text: str) -> float | None:
        try:
            return None if text == word else float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor {word}") from None

    return parse


def color_or(*words: str) -> Callable[[str], str]:
    """Make a parser of colours, by name or as #rrggbb; it returns #rrggbb, or one of `words`."""

    def parse(text: str) -> str:
        if text in words:
            return text
        from PIL import ImageColor  # imported here, so that start-up stays light

        try:
            red, green, blue = ImageColor.getrgb(text)[:3]
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no colour; use a name such as white, #rrggbb, or {words[-1]}"
            ) from None
        return f"#{red:02x}{green:02x}{blue:02x}"

    return parse


def seconds(text: str) -> tuple[float, ...]:
    """Parse A,B,...: times in seconds, such as 0,2.5."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of seconds such as 0,2.5"
        ) from None


def num_bytes(text: str) -> int:
    """Parse a size such as 500M or 8G, in powers of 1024."""
    number, unit = text.removesuffix("iB").removesuffix("B"), 1
    if number[-1:].upper() in ("K", "M", "G", "T"):
        number, unit = number[:-1], 1024 ** ("KMGT".index(number[-1].upper()) + 1)
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500M or 8G")
    return int(number) * unit


def shard(text: str) -> tuple[int, int]:
    """Parse I/N: the number of a shard, from 1 on, and the number of all shards."""
    number, slash, of = text.partition("/")
    if not slash or not (number.isdecimal() and of.isdecimal()) or not 1 <= int(number) <= int(of):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not I/N, with N shards and I from 1 to N, such as 1/4"
        )
    return int(number), int(of)


def parse_names(text: str) -> tuple[str, ...]:
    """Parse A,B,...: any names; one with a comma stands in quotes, as in a line of a CSV file."""
    try:
        return tuple(name for line in csv.reader([text], strict=True) for name in line if name)
    except csv.Error as error:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a list of names such as A,B or A,"B, C" ({error})'
        ) from None


def names_among(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Make a parser of A,B,... that accepts known names only."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(
                f"unknown {', '.join(unknown)}; choose from {', '.join(known)}"
            )
        return names

    return parse
