"""`RunPlan`: all that a run has decided before anything is started."""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from model.config import TextConfig
from parallel.experts.load import ExpertLoad
from pipeline.cluster.deployment import wanted_load
from pipeline.config import PipelineConfig, as_begun, recipe_of
from pipeline.fetch.media_access import MediaAccess
from pipeline.input.manifest import in_known_order, is_needed, knows_files, note_files
from pipeline.input.plan import Plan, plan
from pipeline.input.source import Source
from pipeline.output import ledger
from pipeline.output.in_flight import read_journal
from pipeline.output.ledger import OutputIndex
from pipeline.output.recipe import Recipe, claim_output, stored_fields
from pipeline.output.shards import claim_shard
from pipeline.output.store import Store
from pipeline.output.writer import PartWriter
from pipeline.preflight import open_checkpoint, open_input

_UNBOUND = (
    "the output does not know what its input was, since a former version wrote it; it takes the "
    "files for unchanged, and a change from now on is noticed"
)
_HAS_IDS = (
    "the input has a column id, and rows are named <file>#<row>; --id-column id names them by it"
)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The checkpoint and the input of a run, which can be used."""

    text: TextConfig  # of the checkpoint's decoder
    expert_load: ExpertLoad | None  # what the placement of experts goes by
    source: Source


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run reads, does and writes."""

    config: PipelineConfig
    text: TextConfig
    expert_load: ExpertLoad | None
    source: Source
    media: MediaAccess
    store: Store  # the output, whose lock is held
    recipe: Recipe
    schema: pa.Schema  # of the output, with the recipe
    index: OutputIndex  # what the output holds
    rows: Plan
    in_flight_counts: Mapping[int, int]  # by the hash of an id, how many killed runs worked on it
    remark: str | None  # for the user, before work begins
    run_id: str

    def open_writer(self, check: Callable[[], None]) -> PartWriter:
        """Open the writer of the output; `check` raises if another driver has taken it over."""
        return PartWriter(
            self.store,
            self.run_id,
            self.schema,
            self.index,
            rows_per_part=self.config.rows_per_part,
            max_part_age_s=self.config.max_part_age_s,
            in_flight_counts=self.in_flight_counts,
            check=check,
        )


def check(config: PipelineConfig) -> Checked:
    """Check the input, the checkpoint and the placement of its experts; nothing is written.

    Raises:
        ValueError: one of them cannot be used.
    """
    source = open_input(config)  # first, since it is the quicker check
    text = open_checkpoint(config)
    return Checked(text=text, expert_load=wanted_load(config, text), source=source)


def with_columns_as_begun(config: PipelineConfig, source: Source, store: Store) -> Source:
    """Keep to the columns of an output that a former version began, which wrote fewer of them."""
    former = source.row_schema.former
    if former is None or stored_fields(store) != recipe_of(config, former).plain_fields:
        return source
    return replace(source, row_schema=former)


def plan_run(config: PipelineConfig, checked: Checked, store: Store) -> RunPlan:
    """Claim the output, whose lock is held, for a recipe, and decide which rows are to do.

    `store` is that of the shard, if the run is one.

    Raises:
        ValueError: the output belongs to another recipe or input, is damaged, or other shards do
            not fit to this one.
    """
    if ledger.committed_parts(store) and not config.new_recipe:
        config = as_begun(config, stored_fields(store))
    source = with_columns_as_begun(config, checked.source, store)
    recipe = recipe_of(config, source.row_schema)
    if config.shard is not None:
        claim_shard(
            config.output, config.shard, source.identity, recipe, new_recipe=config.new_recipe
        )
    claim_output(store, recipe, new_recipe=config.new_recipe)
    parts = ledger.committed_parts(store)
    schema = source.row_schema.output.with_metadata(recipe.parquet_metadata)
    schema = ledger.schema_as_begun(store, parts, schema)
    source = in_known_order(source, store, parts, new_rows=config.new_rows)
    remark = _remark(source, store, is_begun=bool(parts))
    note_files(source, store)
    if config.run_yaml is not None:
        store.write("_run.yaml", config.run_yaml.encode())
    index = ledger.read_index(store, parts, schema, retry=config.retry_failed)
    in_flight_counts = read_journal(store, index.done)
    return RunPlan(
        config=config,
        text=checked.text,
        expert_load=checked.expert_load,
        source=source,
        media=config.media_access(source.folder),
        store=store,
        recipe=recipe,
        schema=schema,
        index=index,
        rows=plan(
            source,
            index,
            rows=config.rows_of(source.num_rows),
            limit=config.limit,
            in_flight_counts=in_flight_counts,
        ),
        in_flight_counts=in_flight_counts,
        remark=remark,
        run_id=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}",
    )


def _remark(source: Source, store: Store, *, is_begun: bool) -> str | None:
    """Return what the user should know before work begins; None if there is nothing."""
    schema = source.row_schema
    if is_begun:
        return _UNBOUND if is_needed(source) and not knows_files(store) else None
    return _HAS_IDS if schema.columns.id is None and "id" in schema.read.names else None
