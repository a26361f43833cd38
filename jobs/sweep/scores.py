"""From answers to scores: which option a text names, how right a cell is and how sure that is.

    strict     1 where the answer names the right option; what names none is wrong
    expected   the same, but what names none is worth 1/k of its k options, as a guess would be
    logit      1 where the right letter is the likeliest first token; no text is parsed

Questions about one video are not independent, so standard errors are clustered by video.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.sweep.layouts import LETTERS
from jobs.sweep.names import MODES

Row = dict[str, Any]  # of a summary, by column

_ALONE = re.compile(r"^\W*([A-Za-z])\W*$")
_PHRASE = re.compile(r"\b(?:answer|option|choice)\b(?: is| would be)?:?\s*\(?([A-Z])\b(?!')", re.I)
_START = re.compile(r"^\W*(?:\(([A-Z])\)|([A-Z])[.:)])")
_ANYWHERE = re.compile(r"\(([A-Z])\)|(?<![A-Za-z])([A-Z])[.:)](?=\s|$)")


def parse_choice(text: str | None, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer names; None where it names none, or several.

    In this order: a letter alone; `A.` or `(A)` at the start; `the answer is A`; one such letter
    anywhere; the text of one option and of no other.
    """
    letters = LETTERS[: len(options)]
    text = (text or "").strip()
    for found in (_ALONE.match(text), _START.match(text)):
        if found is not None:
            return _known("".join(filter(None, found.groups())), letters)
    for pattern in (_PHRASE, _ANYWHERE):
        named = {"".join(filter(None, found.groups())) for found in pattern.finditer(text)}
        if named:
            return _known(named.pop(), letters) if len(named) == 1 else None
    said = [
        letter
        for letter, option in zip(letters, options, strict=True)
        if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text, re.IGNORECASE)
    ]
    exact = [place for place, option in enumerate(options) if normal(option) == normal(text)]
    if len(exact) == 1:
        return letters[exact[0]]
    return said[0] if len(said) == 1 else None


def _known(letter: str, letters: str) -> str | None:
    return letter.upper() if letter.upper() in letters else None


def normal(text: str | None) -> str:
    """What two open answers must share to be the same: words, without case and outer marks."""
    return " ".join((text or "").casefold().split()).strip(" .!\"'")


def vote(choices: Sequence[str | None]) -> str | None:
    """What most samples say, the first of those that are equal; None is no vote."""
    counts = Counter(choice for choice in choices if choice is not None)
    return max(counts, key=lambda choice: counts[choice]) if counts else None


def clustered_error(scores: Sequence[float], clusters: Sequence[object]) -> float:
    """The standard error of the mean of scores that are alike within clusters.

    sqrt(sum over clusters of (sum of deviations)^2) / n, as in Miller, "Adding Error Bars to Evals"
    (arXiv 2411.00640), section 2.2.
    """
    mean = sum(scores) / len(scores)
    deviations: dict[object, float] = defaultdict(float)
    for score, cluster in zip(scores, clusters, strict=True):
        deviations[cluster] += score - mean
    return math.sqrt(sum(total**2 for total in deviations.values())) / len(scores)


def summarise(answers: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> list[Row]:
    """One row for each cell, in their order.

    Args:
        answers: as `jobs.sweep.answers.collect` makes them.
        settings: the columns that tell cells apart.
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
    """Of the answers that have a value; not a number where none has."""
    values = [answer[name] for answer in answers if answer[name] is not None]
    return sum(values) / len(values) if values else math.nan


def choose_cell(summary: Sequence[Row], mode: str) -> tuple[int, int]:
    """The best row of a summary, and the cheapest within one standard error of it.

    Cost is tokens, of the prompt and generated; of cells with as many, seconds of ranks.
    """
    best = max(range(len(summary)), key=lambda place: summary[place][mode])
    least = summary[best][mode] - summary[best][f"{mode}_se"]
    good = [place for place, row in enumerate(summary) if row[mode] >= least - 1e-12]
    return best, min(good, key=lambda place: _cost(summary[place]))


def _cost(row: Row) -> tuple[float, float]:
    tokens, seconds = row["mean_tokens"], row["rank_seconds"]
    return (
        math.inf if math.isnan(tokens) else tokens,
        math.inf if math.isnan(seconds) else seconds,
    )
