"""Which caption is the most frequent, and how texts ended, in bounded memory."""

import random
from collections import Counter

import pyarrow as pa
import pytest

from pipeline.output.caption_counts import CaptionCounts
from pipeline.prompts.named_answers import named_answer_fields
from pipeline.prompts.named_prompts import NamedPrompt
from pipeline.prompts.window_answers import PAGE_WINDOWS_FIELD, TIMELINE_FIELD
from pipeline.schema import RESULT_FIELDS


def table(rows, *, before=(), after=()):
    """Result rows, with carried columns before the result columns and added ones after them."""
    schema = pa.schema([RESULT_FIELDS[0], *before, *RESULT_FIELDS[1:], *after])
    known = {"row_id": "a", "status": "ok"}
    return pa.Table.from_pylist([known | row for row in rows], schema=schema)


def summary_of(captions, max_counted=10_000):
    counts = CaptionCounts(max_counted)
    counts.add_captions(captions)
    return counts.summary()


def test_the_most_frequent_caption_is_told_with_its_share():
    found = summary_of(["A dog.", "A cat.", " A dog.\n", "a dog."])

    assert (found.most_frequent, found.num_most_frequent) == ("A dog.", 2)
    assert (found.share, found.num_captions, found.num_uncounted) == (0.5, 4, 0)


def test_without_captions_there_is_none():
    found = summary_of([])
    assert (found.most_frequent, found.share, found.num_captions) == (None, 0.0, 0)
    assert found.share_ended_by("length") == 0.0


def test_empty_captions_are_captions_and_long_ones_are_shortened():
    assert summary_of(["", " ", "x"]).most_frequent == ""
    found = summary_of(["x" * 100 + "1", "x" * 100 + "2", "y" * 80, "y" * 80])
    assert (found.most_frequent, found.num_most_frequent) == ("y" * 80, 2)
    assert summary_of(["x" * 100]).most_frequent == "x" * 80 + "..."


@pytest.mark.parametrize("share", [0.0, 0.03, 0.05, 0.06, 0.3])
@pytest.mark.parametrize("order", ["spread", "first", "last"])
def test_counts_in_bounded_memory_are_short_by_no_more_than_they_say(share, order):
    """The worst case: all other captions differ."""
    num_captions, max_counted = 20_000, 100
    same = ["the same"] * int(share * num_captions)
    others = [f"caption {number}" for number in range(num_captions - len(same))]
    captions = {"first": same + others, "last": others + same, "spread": [*same, *others]}[order]
    if order == "spread":
        random.Random(0).shuffle(captions)
    counts = CaptionCounts(max_counted)
    counts.add_captions(captions)
    found = counts.summary()

    assert found.num_captions == num_captions
    assert 0 < found.num_uncounted <= num_captions / max_counted
    largest = max(1, len(same))
    assert largest - found.num_uncounted <= found.num_most_frequent <= largest
    if share > 1 / max_counted:
        assert found.most_frequent == "the same"
    assert len(counts._counts) == len(counts._excerpts) <= 2 * max_counted


def test_random_captions_are_counted_within_the_bound():
    chosen = random.Random(1)
    for _ in range(50):
        max_counted = chosen.randrange(1, 20)
        captions = [str(int(chosen.paretovariate(0.7))) for _ in range(chosen.randrange(1, 500))]
        found = summary_of(captions, max_counted)
        true = Counter(captions)
        (_, largest), *_ = true.most_common(1)
        assert found.num_uncounted <= len(captions) / max_counted
        assert largest - found.num_uncounted <= found.num_most_frequent <= largest
        if found.most_frequent is not None:
            assert true[found.most_frequent] >= found.num_most_frequent


def test_texts_are_counted_by_what_ended_them():
    counts = CaptionCounts()
    counts.add(
        table(
            [
                {"caption": "x", "finish_reason": "stop"},
                {"caption": "x x x x", "finish_reason": "repetition"},
                {"caption": "x and", "finish_reason": "length"},
                {"caption": "x and y", "finish_reason": "length"},
                {"status": "error"},
            ]
        )
    )
    found = counts.summary()

    assert found.num_captions == found.num_texts == 4
    assert found.share_ended_by("length") == 0.5
    assert found.share_ended_by("repetition") == 0.25
    assert found.as_json()["share_length"] == 0.5


@pytest.mark.parametrize(
    "field",
    [
        named_answer_fields([NamedPrompt(name="mood", text="?")])[-1],
        TIMELINE_FIELD,
        PAGE_WINDOWS_FIELD,
    ],
    ids=["named prompts", "windows", "pages"],
)
def test_each_text_of_a_row_with_several_prompts_counts(field):
    parts = [{"finish_reason": reason} for reason in ("stop", "length", None)]
    counts = CaptionCounts()
    counts.add(table([{field.name: parts}, {"status": "error"}], after=[field]))

    assert counts.summary().finish_reasons == {"stop": 1, "length": 1}


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.string()), pa.list_(pa.struct([("finish_reason", pa.string())])), pa.int64()],
    ids=["texts", "those of an earlier output", "numbers"],
)
def test_a_column_of_the_input_with_such_a_name_does_not_count(kind):
    counts = CaptionCounts()
    counts.add(table([{"finish_reason": "stop"}], before=[pa.field("answers", kind)]))

    assert counts.summary().finish_reasons == {"stop": 1}
