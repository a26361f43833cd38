"""Datasets as they are published become items; what cannot be scored is refused, row by row."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.sweep.layouts import LAYOUTS, lettered, read_items
from jobs.sweep.names import LAYOUT_NAMES

ROWS = {
    "video-mme": {
        "videoID": "fFjv", "question_id": "001-1", "question": "What?", "task_type": "OCR",
        "options": ["A. a dog.", "B. a cat.", "C. 7.", "D. no"], "answer": "B",
    },
    "mvbench": {
        "video": "x/1.mp4", "question": "What?", "candidates": ["a dog.", "a cat.", "7."],
        "answer": "a cat.", "start": 1.0, "end": 2.5,
    },
    "longvideobench": {
        "video_path": "v.mp4", "id": "v_0", "question": "What?", "option0": "a dog.",
        "option1": "a cat.", "option2": "7.", "option3": "N/A", "option4": "N/A",
        "correct_choice": 1, "duration_group": 600,
    },
    "mlvu": {
        "video_name": "m.mp4", "question": "What?\n(A) a dog.\n(B) a cat.\n(C) 7.",
        "answer": "B", "task_type": "ego",
    },
    "egoschema": {
        "video_idx": "e1", "question_idx": "12", "question": "What?",
        "option": ["A. a dog.", "B. a cat.", "C. 7.", "D. x", "E. y"], "answer": "1",
    },
    "choice": {
        "video": "c.mp4", "id": 3, "question": "What?", "options": ["a dog.", "a cat."],
        "answer": "a cat.", "task": "kind",
    },
    "open": {"video": "o.mp4", "question": "What?", "answer": "a cat."},
}  # fmt: skip


def written(folder, *rows):
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "set.parquet")
    return str(folder / "set.parquet")


@pytest.mark.parametrize("name", LAYOUT_NAMES)
def test_each_layout_gives_the_same_item(tmp_path, name):
    dataset = read_items(written(tmp_path, ROWS[name]), name)

    (item,) = dataset.items
    assert item.question == "What?"
    if name == "open":
        assert (item.options, item.truth) == ((), "a cat.")
    else:
        assert item.options[:2] == ("a dog.", "a cat.")
        assert item.truth == "B"
    assert "N/A" not in item.options
    assert dataset.folder == str(tmp_path)


def test_what_a_layout_says_of_videos_ids_tasks_and_spans(tmp_path):
    items = {name: read_items(written(tmp_path, row), name).items[0] for name, row in ROWS.items()}

    assert [item.video for item in items.values()] == [
        *("fFjv.mp4", "x/1.mp4", "v.mp4", "m.mp4", "e1.mp4", "c.mp4", "o.mp4")
    ]
    assert [item.id for item in items.values()] == ["001-1", "0", "v_0", "0", "12", "3", "0"]
    assert [item.task for item in items.values()] == ["OCR", "", "600", "ego", "", "kind", ""]
    assert items["mvbench"].span_s == (1.0, 2.5)
    assert set(LAYOUTS) == set(LAYOUT_NAMES) == set(ROWS)
    assert lettered(items["choice"].options) == "A. a dog.\nB. a cat."
    path = written(tmp_path, ROWS["video-mme"])
    moved = read_items(path, "video-mme", video_path="v/{videoID}.webm").items[0]
    assert moved.video == "v/fFjv.webm"


@pytest.mark.parametrize(
    ("name", "column", "letter"),
    [("video-mme", "options", "A"), ("choice", "options", "C"), ("mvbench", "candidates", "C")],
)
def test_an_answer_that_is_a_letter_and_a_text(tmp_path, name, column, letter):
    """Options B, C, A and the answer A: a letter where the layout has letters, else a text."""
    change = {column: ["B", "C", "A"], "answer": "A"}
    dataset = read_items(written(tmp_path, ROWS[name] | change), name)

    assert dataset.items[0].truth == letter


def test_videos_may_be_bytes(tmp_path):
    path = written(tmp_path, ROWS["open"] | {"video": b"mp4"})

    dataset = read_items(path, "open")

    assert dataset.items[0].video == b"mp4"
    assert dataset.video_type == pa.binary()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("video-mme", {"answer": "E"}, "question 001-1: the answer 'E' is not among its options"),
        ("mvbench", {"answer": "a bird"}, "the answer 'a bird' is not among its options (A. a dog"),
        ("longvideobench", {"correct_choice": 3}, "question v_0: the answer 3 is not among"),
        ("egoschema", {"answer": "-1"}, "question 12: the answer '-1' is not among its options"),
        ("choice", {"answer": None}, "the answer None is not among its options"),
        ("choice", {"options": []}, "it has 0 options; there must be 2 to 26"),
        ("mlvu", {"question": "What?"}, "it has 0 options"),
        ("open", {"question": ""}, "the question is empty"),
    ],
)
def test_a_row_that_cannot_be_scored_is_refused(tmp_path, name, change, message):
    path = written(tmp_path, ROWS[name] | change)

    with pytest.raises(ValueError, match=r"set\.parquet, question") as caught:
        read_items(path, name)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_columns_repeated_ids_and_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no column 'options', which the layout video-mme needs"):
        read_items(written(tmp_path, ROWS["open"]), "video-mme")
    with pytest.raises(ValueError, match="no column 'nowhere'"):
        read_items(written(tmp_path, ROWS["open"]), "open", video_path="{nowhere}.mp4")
    with pytest.raises(ValueError, match="column 'id' names a question twice"):
        read_items(written(tmp_path, ROWS["choice"], ROWS["choice"]), "choice")
    empty = pa.Table.from_pylist([ROWS["open"]]).slice(0, 0)
    pq.write_table(empty, tmp_path / "set.parquet")
    with pytest.raises(ValueError, match="has no rows"):
        read_items(str(tmp_path / "set.parquet"), "open")
