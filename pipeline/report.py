"""`Report`: what one run did, for people and for programs."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run did; also `_report.json` beside the parts."""

    rows_in: int
    rows_done_before: int
    rows_written: int
    statuses: Mapping[str, int]
    error_codes: Mapping[str, int]
    num_prompt_tokens: int
    num_generated_tokens: int
    seconds: float = 0.0  # from the first group being ready to the last commit
    machines: str = ""  # groups, ranks and device, and why; empty where nothing was to do
    ranks: Mapping[str, float] = field(default_factory=dict)  # as `machines.rank_numbers`
    group_failures: tuple[str, ...] = ()  # each death of a group, and why
    longest_pause_s: float = 0.0  # in which no row came out, after the first group was ready

    @property
    def rows_per_s(self) -> float:
        """Rows of this run by its time."""
        return self.rows_written / max(self.seconds, 1e-9)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens by the time of this run."""
        return self.num_generated_tokens / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        done = f"{self.rows_done_before} done before + " if self.rows_done_before else ""
        lines = [
            f"{self.rows_in} rows in = {done}{self.rows_written} written{_counts(self.statuses)}"
        ]
        if self.error_codes:
            lines.append(f"errors{_counts(self.error_codes)}")
        if self.rows_written:
            lines.append(
                f"{self.seconds:.1f} s: {self.rows_per_s:.3g} rows/s, {self.tokens_per_s:.4g} "
                f"generated tokens/s, {self.num_prompt_tokens} prompt tokens"
            )
        else:
            lines.append("nothing to do: all rows are done")
        return "\n".join(lines)


def _counts(counts: Mapping[str, int]) -> str:
    parts = [f"{count} {name}" for name, count in sorted(counts.items())]
    return f": {', '.join(parts)}" if parts else ""
