"""What answers are worth, how sure that is, and which cell is chosen."""

import math

import pytest

from jobs.sweep.scores import (
    choose_cell,
    clustered_error,
    summarise,
    vote,
)


def test_samples_vote():
    assert vote(["A", None, "B", "B"]) == "B"
    assert vote(["C", "B", "B", "C"]) == "C"
    assert vote([None, None]) is None
    assert vote([]) is None


def test_the_error_of_a_mean_is_that_of_its_clusters():
    """By hand: mean 0.5; clusters deviate by 1 (two right), -0.5 and -0.5; sqrt(1.5) / 4."""
    scores, clusters = [1, 1, 0, 0], ["x", "x", "y", "z"]

    assert clustered_error(scores, clusters) == pytest.approx(math.sqrt(1.5) / 4)
    # Each a cluster of its own: the usual error, sqrt(p (1 - p) / n).
    assert clustered_error(scores, list("abcd")) == pytest.approx(math.sqrt(0.25 / 4))
    assert clustered_error([1, 1, 1], list("aab")) == 0.0


def answers(**cells):
    """For each cell its scores, on clips x, x, y, z."""
    rows = []
    for place, (cell, scores) in enumerate(cells.items()):
        for score, video in zip(scores, "xxyz", strict=True):
            rows.append(
                {
                    "cell": cell, "video": video, "strict": score, "expected": max(score, 0.25),
                    "logit": None, "status": "ok" if score else "error", "is_unparsed": not score,
                    "num_frames": place + 1, "num_visual_tokens": 10 * (place + 1),
                    "num_prompt_tokens": 100 * (place + 1), "num_generated_tokens": 2,
                    "rank_seconds": 1.0, "frames": place + 1,
                }
            )  # fmt: skip
    return rows


def test_a_summary_counts_every_question_and_chooses_the_cheapest_good_cell():
    rows = answers(one=[0, 0, 0, 0.0], two=[1, 1, 0, 0.0], four=[1, 1, 1, 0.0], eight=[1, 1, 1, 0])

    summary = summarise(rows, ["frames"])

    def column(name):
        return [row[name] for row in summary]

    assert column("cell") == ["one", "two", "four", "eight"]
    assert column("strict") == [0, 0.5, 0.75, 0.75]
    assert column("errors") == [4, 2, 1, 1]
    assert column("unparsed") == [1, 0.5, 0.25, 0.25]
    assert column("expected") == [0.25, 0.625, 0.8125, 0.8125]
    assert column("mean_tokens") == [102, 202, 302, 402]
    assert "logit" not in summary[0]
    # four: deviations 0.5 (x), 0.25 and -0.75: an error of sqrt(0.875) / 4 = 0.234
    assert summary[2]["strict_se"] == pytest.approx(math.sqrt(0.875) / 4)
    assert choose_cell(summary, "strict") == (2, 2)  # 0.5 is less than 0.75 - 0.234
    summary[1]["strict"] = 0.52
    assert choose_cell(summary, "strict") == (2, 1)
    for row, seconds in zip(summary, [math.nan, 3.0, 1.0, 2.0], strict=True):
        row |= {"mean_tokens": 100.0, "rank_seconds": seconds}
    assert choose_cell(summary, "strict") == (2, 2)  # the same tokens: fewer seconds
