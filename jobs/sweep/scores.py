"""Score answers: the vote of samples, the accuracy of a cell, and its standard error.

    strict     1 if the answer names the right option; an answer that names none is wrong
    expected   the same, but an answer that names none of k options counts 1/k, as a guess would
    logit      1 if the right letter is the likeliest first token; no text is parsed

Questions about one video are not independent, so standard errors are clustered by video.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.sweep.names import MODES

Row = dict[str, Any]  # values of a summary row by column


def vote(choices: Sequence[str | None]) -> str | None:
    """Return what most samples say, or the first of equally frequent ones; None is not a vote."""
    counts = Counter(choice for choice in choices if choice is not None)
    return max(counts, key=lambda choice: counts[choice]) if counts else None


def clustered_error(scores: Sequence[float], clusters: Sequence[object]) -> float:
    """Return the standard error of the mean of scores that are correlated within clusters.

    sqrt(sum over clusters of (sum of deviations)^2) / n, from Miller, "Adding Error Bars to Evals"
    (arXiv 2411.00640), section 2.2.
    """
    mean = sum(scores) / len(scores)
    deviations: dict[object, float] = defaultdict(float)
    for score, cluster in zip(scores, clusters, strict=True):
        deviations[cluster] += score - mean
    return math.sqrt(sum(total**2 for total in deviations.values())) / len(scores)


def summarise(answers: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> list[Row]:
    """Return one row for each cell, in the order of the cells.

    `answers` are rows of the table that `jobs.sweep.answers.collect` returns; `settings` are the
    columns that distinguish cells.
    """
    cells: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for answer in answers:
        cells[answer["cell"]].append(answer)
    return [_summary(own, settings) for own in cells.values()]


def _summary(answers: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> Row:
    row = {name: answers[0][name] for name in ("cell", *settings)}
    row |= {
        "questions": len(answers),
        "errors": sum(answer["status"] == "error" for answer in answers),
        "unparsed": _mean(answers, "is_unparsed"),
    }
    for mode in MODES:
        scores = [answer[mode] for answer in answers]
        if None not in scores:
            row[mode] = sum(scores) / len(scores)
            row[f"{mode}_se"] = clustered_error(scores, [answer["video"] for answer in answers])
    for name in ("frames", "visual_tokens", "prompt_tokens", "generated_tokens"):
        row[f"mean_{name}"] = _mean(answers, f"num_{name}")
    row["mean_tokens"] = row["mean_prompt_tokens"] + row["mean_generated_tokens"]
    return row | {"rank_seconds": answers[0]["rank_seconds"]}


def _mean(answers: Sequence[Mapping[str, Any]], name: str) -> float:
    """Return the mean over the answers that have a value; NaN if none has."""
    values = [answer[name] for answer in answers if answer[name] is not None]
    return sum(values) / len(values) if values else math.nan


def choose_cell(summary: Sequence[Row], mode: str) -> tuple[int, int]:
    """Return the index of the best row, and of the cheapest row within one standard error of it.

    The cost is the number of prompt and generated tokens; among equal ones, the seconds of ranks.
    """
    best = max(range(len(summary)), key=lambda place: summary[place][mode])
    least = summary[best][mode] - summary[best][f"{mode}_se"]
    good = [place for place, row in enumerate(summary) if row[mode] >= least - 1e-12]
    return best, min(good, key=lambda place: _cost(summary[place]))


def _cost(row: Row) -> tuple[float, ...]:
    values = (row["mean_tokens"], row["rank_seconds"])
    return tuple(math.inf if math.isnan(value) else value for value in values)
