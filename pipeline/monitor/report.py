"""`Report`: what one run did, as text for people and as JSON for programs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from model.engine.fit.capacity import Capacity
from pipeline.monitor.progress import counts_text, temporary_text
from pipeline.monitor.snapshot import Snapshot
from pipeline.monitor.stage_costs import Costs, StageCost
from pipeline.output.caption_counts import CUT, CaptionSummary
from pipeline.status import Status

# One caption in more of the rows than this is worth a warning, if there are enough rows to tell.
_LARGEST_SHARE = 0.05
_FEWEST_CAPTIONS = 100


@dataclass(frozen=True)
class Usage:
    """The time, memory and bytes that a run took, and on what it ran."""

    seconds: float = 0.0  # from the first group being ready to the last commit
    costs: Costs = field(default_factory=Costs)
    spilled_bytes: int | None = 0  # by the object stores; None if they did not answer
    deployment: str = ""  # groups, ranks and device, and why; empty if there was nothing to do
    ranks: Mapping[str, float] = field(default_factory=dict)  # as `groups.rank_numbers`
    group_failures: tuple[str, ...] = ()  # each death of a group, and why
    groups_set_apart: tuple[str, ...] = ()  # the last failure of each group that was set apart
    groups_moved: int = 0  # before the end of their node, which had announced it
    longest_pause_s: float = 0.0  # the longest time without a finished row, once a group was ready
    snapshot: Snapshot | None = None  # the last one; None if there was nothing to do
    num_preparers: int = 0  # the most workers that may prepare rows
    max_rows: int = 0  # the most rows that may be at the engines at a time
    capacity: Capacity | None = None  # of the rank with the smallest cache; None: not told
    num_sequences: int = 0  # that fill the batches of all ranks; 0: not told
    num_out_of_memory: int = 0  # tries of steps that the memory of a rank did not suffice for

    @property
    def prepare_busy(self) -> float:
        """The share of their time in which the workers that prepare rows had work."""
        found = self.costs.stages.get("prepare", StageCost())
        return found.seconds / max(self.seconds, 1e-9) / max(1, self.num_preparers)

    @property
    def mean_rows(self) -> float:
        """The mean number of rows at the engines."""
        found = self.costs.stages.get("generate", StageCost())
        return found.row_seconds / max(self.seconds, 1e-9)

    @property
    def slower_stage(self) -> str:
        """The stage for which the others waited, `prepare` or `generate`."""
        enough = self.max_rows / 2
        if self.num_sequences:  # smaller cards have smaller batches than the rows are meant for
            enough = min(enough, self.num_sequences)
        return "prepare" if self.mean_rows < enough else "generate"

    def engine_json(self) -> dict[str, object] | None:
        """Return what the engines took on at a time, as it stands in `_report.json`."""
        if self.capacity is None:
            return None
        numbers = {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in asdict(self.capacity).items()
        }
        return {**numbers, "why": str(self.capacity), "out_of_memory": self.num_out_of_memory}


@dataclass(frozen=True)
class OutputCounts:
    """How the rows of a whole output ended."""

    statuses: Mapping[str, int]
    error_codes: Mapping[str, int]

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return sum(self.statuses.values())

    @property
    def num_failed(self) -> int:
        """The number of rows with status error."""
        return self.statuses.get(Status.ERROR, 0)

    def as_json(self) -> dict[str, object]:
        """Return the counts as they stand in `_report.json`."""
        done = self.num_rows - self.num_failed
        return {"rows": self.num_rows, "done": done, "failed": self.num_failed, **asdict(self)}

    def __str__(self) -> str:
        done = self.num_rows - self.num_failed
        failed = f"{self.num_failed} failed{_counts(self.error_codes)}"
        failed += temporary_text(self.error_codes)
        return f"output: {self.num_rows} rows = {done} done + {failed}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run did; `_report.json` in the output says the same."""

    rows_in: int
    rows_done_before: int
    rows_written: int
    # Of the rows that this run wrote, up to `usage`:
    statuses: Mapping[str, int]
    error_codes: Mapping[str, int]
    num_prompt_tokens: int
    num_generated_tokens: int
    num_bytes_written: int
    captions: CaptionSummary = field(default_factory=CaptionSummary)
    usage: Usage
    first_error: str | None = None  # id and message of a row that failed; None if none did
    output: OutputCounts  # of all rows, with those of earlier runs

    @property
    def seconds(self) -> float:
        """The seconds of the run."""
        return self.usage.seconds

    @property
    def error_share(self) -> float:
        """The share of the rows of this run that are errors."""
        return self.statuses.get(Status.ERROR, 0) / max(1, self.rows_written)

    @property
    def rates(self) -> dict[str, float]:
        """Rows written, tokens generated and seconds of video answered, each per second."""
        snapshot = self.usage.snapshot
        totals = {
            "rows_per_s": self.rows_written,
            "tokens_per_s": self.num_generated_tokens,
            "video_seconds_per_s": 0.0 if snapshot is None else snapshot.video_seconds,
        }
        return {name: total / max(self.seconds, 1e-9) for name, total in totals.items()}

    def as_json(self) -> dict[str, object]:
        """Return the content of `_report.json`: flat, but for the costs of stages and processes."""
        fields, usage = asdict(self), self.usage
        del fields["usage"], fields["first_error"]
        return {
            **({} if usage.snapshot is None else usage.snapshot.as_json()),
            **fields,
            "captions": self.captions.as_json(),
            "output": self.output.as_json(),
            "seconds": self.seconds,
            **self.rates,
            "spilled_bytes": usage.spilled_bytes,
            "machines": usage.deployment,
            "engine": usage.engine_json(),
            "ranks": dict(usage.ranks),
            "group_failures": list(usage.group_failures),
            "groups_set_apart": list(usage.groups_set_apart),
            "groups_moved": usage.groups_moved,
            "longest_pause_s": usage.longest_pause_s,
            "prepare_busy": round(usage.prepare_busy, 3),
            "mean_rows_at_engines": round(usage.mean_rows, 2),
            "max_rows_at_engines": usage.max_rows,
            "slower_stage": usage.slower_stage,
            **usage.costs.as_json(),
        }

    def __str__(self) -> str:
        done = f"{self.rows_done_before} done before + " if self.rows_done_before else ""
        lines = [
            f"{self.rows_in} rows in = {done}{self.rows_written} written{_counts(self.statuses)}",
            str(self.output),
        ]
        if not self.rows_written:
            return "\n".join([*lines, "nothing to do: all rows are done"])
        used, rates = self.usage.snapshot and self.usage.snapshot.engine_time_used, self.rates
        lines.append(
            f"{'' if used is None else f'engine time used {used:.0%}; '}{self.seconds:.1f} s: "
            f"{rates['rows_per_s']:.3g} rows/s, {rates['video_seconds_per_s']:.3g} video-s/s, "
            f"{rates['tokens_per_s']:.4g} generated tokens/s, {self.num_prompt_tokens} prompt "
            "tokens"
        )
        lines += self._table()
        if self.usage.num_out_of_memory:
            lines.append(
                f"{self.usage.num_out_of_memory} tries of steps ran out of memory and were "
                "divided; lower --cache-gib, --max-step-tokens or --batch-size"
            )
        lines += _caption_lines(self.captions)
        lines += [f"set apart: {text}" for text in self.usage.groups_set_apart]
        if self.error_share == 1:
            lines.append(
                f"ALL {self.rows_written} ROWS OF THIS RUN FAILED{_counts(self.error_codes)}; the "
                f"first is {self.first_error}"
            )
        return "\n".join(lines)

    def _table(self) -> list[str]:
        """Return a line for each stage and kind of process."""
        costs = self.usage.costs
        lines = [f"{'':10}{'seconds':>10}{'MB read':>10}{'peak MB':>10}"]
        for kind in dict.fromkeys(["read", "prepare", "generate", *sorted(costs.peak_bytes)]):
            stage, peak = costs.stages.get(kind), costs.peak_bytes.get(kind)
            lines.append(
                f"{kind:10}"
                f"{'' if stage is None else f'{stage.seconds:.1f}':>10}"
                f"{'' if stage is None or not stage.num_bytes else _mb(stage.num_bytes):>10}"
                f"{'' if peak is None else _mb(peak):>10}"
            )
        usage, spilled = self.usage, "an unknown number of"
        if usage.spilled_bytes is not None:
            spilled = _mb(usage.spilled_bytes)
        generate = costs.stages.get("generate", StageCost())
        if generate.crossed_bytes:
            lines.append(
                f"{_mb(generate.crossed_bytes)} MB of prompts crossed nodes, of "
                f"{_mb(generate.num_bytes)} MB"
            )
        return [
            *lines,
            f"{_mb(self.num_bytes_written)} MB written, {spilled} MB spilled by the object store",
            f"{usage.slower_stage} was the slower stage: prepare was busy "
            f"{usage.prepare_busy:.0%} of the time of {usage.num_preparers} workers, "
            f"the engines had {usage.mean_rows:.1f} of {usage.max_rows} rows",
        ]


def _caption_lines(captions: CaptionSummary) -> list[str]:
    """Say how texts ended and how alike captions are, and warn if one is in many rows."""
    lines: list[str] = []
    if captions.num_texts:
        ends = [f"{captions.share_ended_by(reason):.1%} by {reason}" for reason in CUT]
        lines.append(f"of {captions.num_texts} texts ended {', '.join(ends)}")
    if captions.num_most_frequent == 1 < captions.num_captions and not captions.num_uncounted:
        lines.append(f"no two of {captions.num_captions} captions are the same")
    elif captions.num_captions > 1:
        least = "at least " if captions.num_uncounted else ""
        text = "".join(each if each.isprintable() else " " for each in captions.most_frequent or "")
        lines.append(
            f"the most frequent caption stands in {least}{captions.num_most_frequent} of "
            f'{captions.num_captions} rows ({captions.share:.1%}): "{text}"'
        )
    if captions.num_captions >= _FEWEST_CAPTIONS and captions.share > _LARGEST_SHARE:
        lines.append(
            f"WARNING: {captions.share:.1%} of the captions of this run are the same; look at some "
            "of these rows: are their media blank, does the model refuse, or does the prompt allow "
            "few answers?"
        )
    return lines


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f}"


def _counts(counts: Mapping[str, int]) -> str:
    return f": {counts_text(counts)}" if counts else ""
