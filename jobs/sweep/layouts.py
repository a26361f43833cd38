"""Read datasets of questions about videos, in the layouts in which they are published.

Each row is one question. `read_items` makes an `Item` of each row in any layout, and refuses a row
whose answer is not one of its options. The columns are those of the published files:

    video-mme       videoID, question_id, question, options ["A. ...", ...], answer (a letter)
    mvbench         video, question, candidates, answer (a text of these), maybe start and end
    longvideobench  video_path, question, candidates or option0 ... option4, correct_choice (index)
    mlvu            video_name, question (options inside), answer (a letter, or the text)
    egoschema       video_idx, question, option [...], answer (an index)
    choice          video, question, options [...], answer (a text of these, a letter, or an index)
    open            video, question, answer; there are no options, and equal texts are right
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.input.files_below import LeftOut
from pipeline.input.listing import list_files
from pipeline.prompts.template import fill, only_field, template_fields

LETTERS = string.ascii_uppercase
Row = Mapping[str, Any]

_LETTERED = re.compile(r"^\s*\(?([A-Z])[).:]\s*(.*?)\s*$")
_PADDING = ("N/A", "", None)  # LongVideoBench fills missing options with these


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question about a video."""

    id: str
    video: Any  # as `pipeline.fetch.media_access` opens it
    question: str
    options: tuple[str, ...]  # without letters; empty for an open question
    truth: str  # a letter; or the answer to an open question
    task: str
    span_s: tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class DatasetLayout:
    """How to read items from the columns of a dataset."""

    video: str  # a path with {column}; {column} alone is the value itself, of any type
    prompt: str  # with {question} and {options}; used if the grid has none
    # Their column, or a function that returns question and options; None for open questions.
    options: str | Callable[[Row], tuple[str, Sequence[Any]]] | None
    answer: str = "answer"
    by_index: bool = False  # the answer is an index, even if it is stored as text
    by_letter: bool = False  # the answer is a letter, even if that is also the text of an option
    id: str | None = None
    task: tuple[str, ...] = ("task_type",)  # the first of these columns that exists

    @property
    def columns(self) -> tuple[str, ...]:
        """The required columns, besides those in `video`."""
        listed = (self.options,) if isinstance(self.options, str) else ()
        return ("question", *listed, self.answer)


def _long_video_bench(row: Row) -> tuple[str, Sequence[Any]]:
    if row.get("candidates") is not None:
        return row["question"], row["candidates"]
    options = [row.get(f"option{place}") for place in range(5)]
    return row["question"], [option for option in options if option not in _PADDING]


def _inside(row: Row) -> tuple[str, Sequence[Any]]:
    """Split a question from its options, which are on lines of their own below it."""
    lines = (row["question"] or "").splitlines()
    options = [line for line in lines if _LETTERED.match(line)]
    return "\n".join(line for line in lines if line not in options), options


_DIRECTLY = (
    "{question}\n{options}\nAnswer with the option's letter from the given choices directly."
)
LAYOUTS: Mapping[str, DatasetLayout] = {
    "video-mme": DatasetLayout(
        video="{videoID}.mp4",
        prompt="Select the best answer to the following multiple-choice question based on the "
        "video. Respond with only the letter of the correct option.\n{question}\n{options}\n"
        "The best answer is:",
        options="options",
        by_letter=True,
        id="question_id",
    ),
    "mvbench": DatasetLayout(
        video="{video}",
        prompt="{question}\nOptions:\n{options}\nOnly give the best option.",
        options="candidates",
    ),
    "longvideobench": DatasetLayout(
        video="{video_path}",
        prompt=_DIRECTLY,
        options=_long_video_bench,
        answer="correct_choice",
        by_index=True,
        id="id",
        task=("duration_group", "question_category"),
    ),
    "mlvu": DatasetLayout(
        video="{video_name}",
        prompt="{question}\n{options}\nOnly give the best option.",
        options=_inside,
    ),
    "egoschema": DatasetLayout(
        video="{video_idx}.mp4",
        prompt=_DIRECTLY,
        options="option",
        by_index=True,
        id="question_idx",
    ),
    "choice": DatasetLayout(
        video="{video}",
        prompt="{question}\n{options}\nAnswer with the letter.",
        options="options",
        id="id",
        task=("task", "task_type"),
    ),
    "open": DatasetLayout(
        video="{video}",
        prompt="{question}",
        options=None,
        id="id",
        task=("task", "task_type"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All items, and the folder that their relative paths start from."""

    items: tuple[Item, ...]
    folder: str
    video_type: pa.DataType
    left_out: LeftOut  # of the input


def read_items(
    uri: str, name: str, *, video_path: str | None = None, limit: int | None = None
) -> Dataset:
    """Read a dataset; `uri` is as for `list_files`.

    `video_path` is the path of a video with {column}, in place of the one of the layout. `limit` is
    the number of rows to read; None reads all.

    Raises:
        ValueError: a column is missing, there are no rows, or a row cannot be scored; the message
            names the row.
    """
    layout = LAYOUTS[name]
    where = video_path or layout.video
    listing = list_files(uri)
    tables = [pq.read_table(path, filesystem=listing.filesystem) for _, path in listing.files]
    table = pa.concat_tables(tables, promote_options="permissive")
    for column in (*layout.columns, *template_fields(where)):
        if column not in table.column_names:
            raise ValueError(
                f"{uri} has no column {column!r}, which the layout {name} needs; its columns are "
                f"{', '.join(table.column_names)}"
            )
    table = table if limit is None else table.slice(0, limit)
    if table.num_rows == 0:
        raise ValueError(f"{uri} has no rows")
    own = table.column_names
    id_column = layout.id if layout.id in own else None
    task = next((column for column in layout.task if column in own), None)
    items = []
    for number, row in enumerate(table.to_pylist()):
        row_id = str(number) if id_column is None else str(row[id_column])
        try:
            items.append(_item(row, row_id, layout, where, task))
        except ValueError as error:
            raise ValueError(f"{uri}, question {row_id}: {error}") from error
    if len({item.id for item in items}) < len(items):
        raise ValueError(f"{uri}: column {id_column!r} names a question twice")
    column = only_field(where)
    kind = pa.string() if column is None else table.schema.field(column).type
    return Dataset(
        items=tuple(items), folder=listing.folder, video_type=kind, left_out=listing.left_out
    )


def _item(row: Row, row_id: str, layout: DatasetLayout, where: str, task: str | None) -> Item:
    question, options = row["question"], ()
    if isinstance(layout.options, str):
        options = _without_letters(row[layout.options] or ())
    elif layout.options is not None:
        question, found = layout.options(row)
        options = _without_letters(found)
    if not question:
        raise ValueError("the question is empty")
    answer = row[layout.answer]
    column = only_field(where)
    return Item(
        id=row_id,
        video=fill(where, row) if column is None else row[column],
        question=question,
        options=options,
        truth=str(answer) if layout.options is None else _letter(answer, options, layout),
        task="" if task is None else str(row[task]),
        span_s=(row.get("start"), row.get("end")),
    )


def _without_letters(options: Sequence[Any]) -> tuple[str, ...]:
    """Remove `A. `, `(B) ` and the like, if all options begin with a letter, in order."""
    texts = [str(option).strip() for option in options]
    if not 2 <= len(texts) <= len(LETTERS):
        raise ValueError(f"it has {len(texts)} options; there must be 2 to {len(LETTERS)}")
    found = [_LETTERED.match(text) for text in texts]
    marks = "".join(match[1] for match in found if match)
    if marks == LETTERS[: len(texts)]:
        texts = [match[2] for match in found if match]
    return tuple(texts)


def _letter(answer: Any, options: Sequence[str], layout: DatasetLayout) -> str:
    """Return the letter of the right option."""
    text = str(answer).strip()
    letters, by_index = LETTERS[: len(options)], layout.by_index
    if layout.by_letter and text in tuple(letters):
        return text
    if (by_index or isinstance(answer, int)) and text.isdecimal() and int(text) < len(options):
        return letters[int(text)]
    if not by_index and text in options:
        return letters[list(options).index(text)]
    marked = _LETTERED.match(f"{text}." if len(text) == 1 else text)
    if not by_index and marked and marked[1] in letters and marked[2] in ("", text, *options):
        return marked[1]
    listed = ", ".join(
        f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)
    )
    raise ValueError(f"the answer {answer!r} is not among its options ({listed})")


def lettered(options: Sequence[str]) -> str:
    """Format the options as lines of a prompt, each with its letter."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))
