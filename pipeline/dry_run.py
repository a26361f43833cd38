"""`DryRun`: what a run would do, found out without doing any of it.

A dry run reads the headers of the checkpoint, the footers and ids of the input, and the ids and
statuses of the output. It does not start Ray, takes no lock and writes nothing. It refuses what the
run would refuse, except for a changed recipe and too few GPUs, which it reports.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.cluster.deployment import choose_deployment
from pipeline.config import PipelineConfig, as_begun, recipe_of
from pipeline.input.files_below import LeftOut
from pipeline.input.manifest import in_known_order
from pipeline.input.plan import Plan, plan
from pipeline.input.source import Source
from pipeline.monitor.progress import counts_text, temporary_text
from pipeline.output import ledger
from pipeline.output.in_flight import read_journal
from pipeline.output.recipe import Recipe, differences, stored_fields
from pipeline.output.shards import check_place, check_shard, shard_store
from pipeline.output.store import Store
from pipeline.run_plan import check, with_columns_as_begun
from pipeline.status import ErrorCode


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """The number of rows of an input, within `--limit`, by what a run would do with them."""

    all: int
    new: int  # not in the output yet
    done: int  # in the output with a caption, which stays
    failed: int  # in the output with status error
    retried: int  # failed rows that --retry-failed tries again
    quarantined: int  # were in flight in so many killed runs that each is now tried alone
    poisoned: int  # were in flight in so many that they get an error


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would do with the rows of its input, and on which groups and ranks."""

    config: PipelineConfig
    output: str  # its URI, without credentials
    num_files: int
    left_out: LeftOut  # of the input
    counts: RowCounts
    statuses: Mapping[str, int]  # rows of the output, by status
    failed_codes: Mapping[str, int]  # failed rows of the output, by error code
    changes: tuple[str, ...]  # of the recipe, each `name: old -> new`; empty if it is the same
    deployment: str

    @property
    def num_todo(self) -> int:
        """Rows that the run would work on; 0 if the run would be refused."""
        if self.changes:
            return self.counts.all if self.config.new_recipe else 0
        return self.counts.new + self.counts.retried

    def __str__(self) -> str:
        files = f"{self.num_files} file{'s' * (self.num_files > 1)}"
        shard = "" if self.config.shard is None else f", as shard {self.config.shard}"
        num_old = sum(self.statuses.values())
        content = f"{num_old} rows, {counts_text(self.statuses)}" if num_old else "new"
        lines = [
            f"input     {self.counts.all} rows in {files} of {self.config.input}{shard}",
            *([f"left out  {self.left_out}"] if self.left_out else []),
            f"output    {self.output}: {content}",
            *(self._recipe_lines() if self.changes else self._row_lines()),
        ]
        if self.num_todo:
            parts = math.ceil(self.num_todo / self.config.rows_per_part)
            lines += [
                f"parts     {parts} or more, of at most {self.config.rows_per_part} rows, one at "
                f"least every {self.config.max_part_age_s:g} s",
                f"machines  {self.deployment}",
            ]
        return "\n".join([*lines, "nothing was started, nothing was written"])

    def _row_lines(self) -> list[str]:
        counts = self.counts
        lines = [f"rows      {counts.new} new, {counts.done} done, {counts.failed} failed"]
        if self.failed_codes:
            again = "they stay; --retry-failed would try them again, or only CODES of them"
            if counts.retried:
                again = f"--retry-failed tries {counts.retried} of them again and replaces them"
            again += temporary_text(self.failed_codes)
            lines.append(f"failed    {counts_text(self.failed_codes)}; {again}")
        if counts.quarantined or counts.poisoned:
            lines.append(
                f"in flight {counts.quarantined} rows were in flight in killed runs and come last, "
                f"each alone; {counts.poisoned} were so too often and become poison_row"
            )
        return [*lines, f"to do     {self.num_todo} rows"]

    def _recipe_lines(self) -> list[str]:
        moves, does = "the run would be REFUSED; --new-recipe would move", "do"
        if self.config.new_recipe:
            moves, does = "--new-recipe moves", "does"
        consequence = (
            f"{moves} the {sum(self.statuses.values())} rows to _old-<time>/ and {does} all "
            f"{self.counts.all} rows anew"
        )
        return [
            "recipe    changed since the output was begun:",
            *(f"            {change}" for change in self.changes),
            f"          {consequence}",
        ]


def dry_run(config: PipelineConfig, *, num_gpus: int, where: str) -> DryRun:
    """Find out what `pipeline.run.run` would do.

    The run is assumed to have `num_gpus` GPUs, all on one node; `where` is a note for the reader on
    where that number comes from.

    Raises:
        ValueError: the run would be refused.
    """
    checked, store = check(config), shard_store(config.output, config.shard)
    check_place(config.output, config.shard)
    num_experts = checked.text.n_routed_experts
    parts = ledger.committed_parts(store)
    if parts and not config.new_recipe:
        config = as_begun(config, stored_fields(store))
    source = with_columns_as_begun(config, checked.source, store)
    recipe = recipe_of(config, source.row_schema)
    if config.shard is not None:
        check_shard(
            config.output, config.shard, source.identity, recipe, new_recipe=config.new_recipe
        )
    changes = tuple(_changes(store, recipe)) if parts else ()
    if not changes:
        source = in_known_order(source, store, parts, new_rows=config.new_rows)
    statuses, codes = ledger.count_results(store, parts)
    # Rows of another recipe do not count as done: --new-recipe would set them aside.
    counts = _count(config, source, store, [] if changes else parts, has_failed=bool(codes))
    return DryRun(
        config=config,
        output=store.uri,
        num_files=len(source.files),
        left_out=source.left_out,
        counts=counts,
        statuses=statuses,
        failed_codes=codes,
        changes=changes,
        deployment=f"{_deployment(config, num_gpus, num_experts)} ({where})",
    )


def _deployment(config: PipelineConfig, num_gpus: int, num_experts: int) -> str:
    """Say what would be chosen, or why nothing fits: a cluster may have more GPUs than assumed."""
    try:
        return str(choose_deployment(config, [num_gpus], num_experts).explained(config))
    except ValueError as error:
        return f"REFUSED: {error}"


def _changes(store: Store, recipe: Recipe) -> Iterator[str]:
    """Yield the differences from the recipe that an output with part files was begun with."""
    stored = stored_fields(store)
    if stored is None:
        yield "the output holds parts and no recipe"
    else:
        yield from differences(stored, recipe.plain_fields)


def _count(
    config: PipelineConfig, source: Source, store: Store, parts: Sequence[str], *, has_failed: bool
) -> RowCounts:
    """Plan as a run would, with and without the rows that failed, and count the difference."""
    schema = ledger.schema_as_begun(store, parts, source.row_schema.output)

    def planned(retry: Collection[ErrorCode]) -> Plan:
        index = ledger.read_index(store, parts, schema, retry=retry)
        counts = read_journal(store, index.done)
        return plan(
            source,
            index,
            rows=config.rows_of(source.num_rows),
            limit=config.limit,
            in_flight_counts=counts,
        )

    new = planned(())
    failed = planned(tuple(ErrorCode)).num_todo - new.num_todo if has_failed else 0
    wanted = planned(config.retry_failed) if config.retry_failed else new
    return RowCounts(
        all=new.num_rows,
        new=new.num_todo,
        done=new.num_done - failed,
        failed=failed,
        retried=wanted.num_todo - new.num_todo,
        quarantined=len(wanted.quarantined),
        poisoned=len(wanted.poisoned),
    )
