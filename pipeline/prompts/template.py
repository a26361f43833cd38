"""Templates of prompts: `{column}` stands for the row's value in that column.

{name}      the column `name`; the name may have any characters but braces
{"na}me"}   any name, as a JSON string
{{  }}      one brace
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from model.inputs.prompt import PromptError

_TOKEN = re.compile(
    r"""(?P<brace>\{\{|\}\})|\{(?P<quoted>"(?:[^"\\]|\\.)*")\}|\{(?P<name>[^{}"][^{}]*)\}"""
    r"""|(?P<text>[^{}]+)|(?P<bad>.)""",
    re.DOTALL,
)


def template_fields(text: str) -> tuple[str, ...]:
    """The columns that a template names, each once.

    Raises:
        ValueError: braces do not match, or a field is no name of a column.
    """
    return tuple(dict.fromkeys(part for part, is_field in _parts(text) if is_field))


def only_field(text: str) -> str | None:
    """The column of a template that is nothing but one field; None for any other template."""
    parts = list(_parts(text))
    return parts[0][0] if len(parts) == 1 and parts[0][1] else None


def fill(text: str, row: Mapping[str, Any]) -> str:
    """Fill a template with the values of a row; a null is a PromptError, `bad_prompt`."""
    filled = []
    for part, is_field in _parts(text):
        if is_field and row[part] is None:
            raise PromptError("bad_prompt", f"the prompt needs column {part!r}, which is null")
        filled.append(str(row[part]) if is_field else part)
    return "".join(filled)


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the texts and the names of columns in a template, and which of the two each is."""
    for found in _TOKEN.finditer(text):
        kind, part = found.lastgroup, found.group(found.lastgroup or 0)
        if kind == "bad":
            raise _refusal(text, f"the {part!r} at character {found.start() + 1} has no partner")
        if kind == "quoted":
            try:
                yield json.loads(part), True
            except ValueError as error:
                raise _refusal(text, f"{part} is not a JSON string: {error}") from error
        else:
            yield (part[0] if kind == "brace" else part), kind == "name"


def _refusal(text: str, reason: str) -> ValueError:
    return ValueError(
        f'{text!r} is not a template ({reason}); write {{column}} for a value, {{"column"}} if its '
        "name has braces, {{ for a brace"
    )
