"""`NamedPrompt`: one of several prompts that are asked of each row, over one decoding of its media.

Prompts that show the same frames share them: in the table the first of them holds the pixels, and
in the engine they share image features and the cache blocks of their common prefix.

The text of a prompt is a template, as in `pipeline.prompts.template`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from model.engine.sequence import SamplingParams
from pipeline.prompts.answer_type import AnswerType, answer_type
from pipeline.prompts.frame_view import FrameView
from pipeline.prompts.template import template_fields
from pipeline.schema import (
    NAMED_PROMPT_FIELD,
    PREPARED_FIELDS,
    PROMPT_NUMBER_FIELD,
    RESULT_FIELDS,
)

ANSWERS = "answers"  # the output column that tells how each prompt was answered


@dataclass(frozen=True, kw_only=True)
class NamedPrompt:
    """A prompt that is asked of every row; its answers fill the output column of its name.

    The recipe of an output stores these fields; `pipeline.config.recipe_of` names its keys.

    Raises:
        ValueError: the text is empty or not a template; or the answers are typed and there is no
            schema, or its type cannot be that of a column.
    """

    name: str  # of the output column
    text: str  # the template
    sampling: SamplingParams = field(default_factory=SamplingParams)
    # How the row is shown; None takes the view of the instructions. All views of a row are decoded
    # once, together.
    view: FrameView | None = None
    # A column that holds a list of texts. The prompt is asked once for each text, which stands in
    # for that column's value in `text`, and the output column holds the list of answers.
    over: str | None = None
    is_typed: bool = False  # answers become values of the type that the schema of `sampling` gives

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError(f"the prompt {self.name!r} is empty; say what is wanted")
        template_fields(self.text)
        if self.is_typed and self.sampling.schema is None:
            raise ValueError(f"the answers of {self.name!r} have no schema that gives their type")
        assert self.output_field  # computing it checks the type

    @property
    def answer_type(self) -> AnswerType | None:
        """The type that its answers are read as; None for text."""
        schema = self.sampling.schema
        return answer_type(schema) if self.is_typed and schema is not None else None

    @property
    def output_field(self) -> pa.Field:
        """The output column of its answers."""
        kind = pa.large_string() if self.answer_type is None else self.answer_type.kind
        return pa.field(self.name, kind if self.over is None else pa.list_(kind))

    def values_of(self, row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The values for `fill`, one mapping for each time that the row is asked this prompt.

        A prompt over a list is asked once for each text of the row's list. If the list is empty or
        null it is asked once, with a null text, so that `fill` makes an error of it.
        """
        if self.over is None:
            return [row]
        return [{**row, self.over: text} for text in row[self.over] or [None]]


def value_columns(prompts: Sequence[NamedPrompt]) -> tuple[str, ...]:
    """The columns with one value a row that templates name, each once."""
    names = (n for each in prompts for n in template_fields(each.text) if n != each.over)
    return tuple(dict.fromkeys(names))


def list_columns(prompts: Sequence[NamedPrompt]) -> tuple[str, ...]:
    """The columns with lists of texts that prompts go over, each once."""
    return tuple(dict.fromkeys(each.over for each in prompts if each.over is not None))


def check_names(prompts: Sequence[NamedPrompt]) -> None:
    """Refuse names that are used twice or belong to other columns, with a ValueError."""
    taken = {each.name for each in (*RESULT_FIELDS, *PREPARED_FIELDS)}
    taken.update((ANSWERS, PROMPT_NUMBER_FIELD.name, NAMED_PROMPT_FIELD.name))
    taken.discard("caption")  # this result column may hold the answers of a prompt of that name
    for each in prompts:
        if each.name in taken:
            raise ValueError(f"a prompt cannot be named {each.name!r}: that column is taken")
        if each.name == "caption" and (each.is_typed or each.over is not None):
            raise ValueError(
                "the column `caption` holds one text a row; give the prompt another name"
            )
        taken.add(each.name)
