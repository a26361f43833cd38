"""How far reviewers agree: Krippendorff's alpha for categories (`agreement`)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement on the rows that several reviewers judged."""

    num_rows: int
    share: float  # of the pairs of verdicts on a row, those that are the same
    alpha: float | None  # 1 is perfect, 0 is chance; None if all verdicts are the same

    def __str__(self) -> str:
        rows = "1 row" if self.num_rows == 1 else f"{self.num_rows} rows"
        alpha = "undefined, since all verdicts are the same"
        if self.alpha is not None:
            alpha = f"{self.alpha:.2f}"
        return (
            f"{rows} judged by several: {100 * self.share:.0f} % of the pairs of verdicts agree, "
            f"Krippendorff's alpha {alpha}"
        )


def agreement(units: Sequence[Sequence[str]]) -> Agreement | None:
    """Return the agreement of the verdicts on each row; None if no row has two.

    Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: nominal data, any
    number of observers, missing data. A row with m verdicts adds each pair with weight 1 / (m - 1).
    """
    pairable = [Counter(unit) for unit in units if len(unit) > 1]
    if not pairable:
        return None
    observed = same = num_pairs = 0.0
    for counts in pairable:
        size = counts.total()
        matching = sum(number * (number - 1) for number in counts.values())
        observed += (size * (size - 1) - matching) / (size - 1)
        same += matching
        num_pairs += size * (size - 1)
    totals = sum(pairable, Counter())
    number = totals.total()
    expected = number * number - sum(each * each for each in totals.values())
    return Agreement(
        num_rows=len(pairable),
        share=same / num_pairs,
        alpha=None if expected == 0 else 1 - (number - 1) * observed / expected,
    )
