"""`PipelineConfig`, what one run reads, asks and writes, and its recipe, what changes captions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, Literal

from model.engine.config import EngineConfig
from model.engine.sequence import SamplingParams
from parallel.experts.policy import Exchange
from pipeline.fetch.media_access import MediaAccess
from pipeline.output.recipe import Recipe, checkpoint_fingerprint
from pipeline.output.shards import Shard
from pipeline.prompts.instructions import Instructions
from pipeline.schema import LATER_COLUMNS, ErrorCode, InputColumns, RowSchema

_POSITIVE = (
    "limit",
    "num_groups",
    "expert_parallel",
    "rows_per_part",
    "max_part_age_s",
    "rows_per_batch",
)


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """What a run reads, asks, and writes.

    Raises:
        ValueError: a value cannot work; the message names it.
    """

    input: str  # a path, pattern or URI, as for `list_files`
    output: str  # a directory, or a URI as for `open_filesystem`
    checkpoint: Path
    columns: InputColumns = field(default_factory=InputColumns)
    carry: tuple[str, ...] | None = None  # columns to write beside the results; None means all
    keep_media: bool = False  # write media bytes to the output too
    limit: int | None = None  # the run answers only so many rows, the first of input or shard
    shard: Shard | None = None  # the run answers this part of the input, in a folder of its own
    instructions: Instructions = field(default_factory=Instructions)
    media_folder: str | None = None  # base of relative media paths; None means the input's folder
    allowed_uris: tuple[str, ...] = ()  # prefixes of remote media that rows may name
    allowed_folders: tuple[str, ...] = ()  # folders of local media, beside the input's own
    sampling: SamplingParams = field(default_factory=SamplingParams)
    engine: EngineConfig = field(default_factory=EngineConfig)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # None leaves the choice to `pipeline.cluster.deployment`.
    num_groups: int | None = None  # copies of the model
    expert_parallel: int | None = None  # ranks of each group
    exchange: Exchange = field(default_factory=Exchange)
    placement: Literal["STRICT_PACK", "PACK", "SPREAD"] = "STRICT_PACK"  # of a group's ranks
    # The placement of experts is no part of the recipe, like the number of ranks.
    expert_placement: str | None = None  # a record of expert load, as for `read_load`
    expert_copies: int = 0  # extra copies of the busiest experts on each rank, in each layer
    max_group_failures: float = 4.0  # a group and day, as for `parallel.groups.failures`
    rows_per_part: int = 10_000  # at most, in each part file
    max_part_age_s: float = 300.0  # finished rows wait at most so long for their part file
    make_ids_unique: bool = False  # rename null and repeated ids instead of refusing them
    retry_failed: tuple[ErrorCode, ...] = ()  # rows with these codes are tried again
    new_recipe: bool = False  # set the rows of another recipe aside instead of refusing the run
    new_rows: bool = False  # answer what is new in changed files instead of refusing them
    keep_order: bool = False  # write rows in the order of the input
    # Rows that pass through the stages together; None leaves it to `pipeline.stages.sizing`.
    rows_per_batch: int | None = None
    run_yaml: str | None = None  # the options of the command, stored beside the output

    def rows_of(self, num_rows: int) -> range:
        """Return the rows of this run's shard, or all, by their numbers in an input of so many."""
        return range(num_rows) if self.shard is None else self.shard.rows(num_rows)

    def media_access(self, folder: str) -> MediaAccess:
        """Return what rows of an input in `folder` may name as their media."""
        return MediaAccess(
            base=self.media_folder or folder,
            allowed_prefixes=self.allowed_uris,
            allowed_folders=self.allowed_folders,
            max_bytes=self.instructions.limits.max_bytes,
        )

    def __post_init__(self) -> None:
        if self.new_rows and self.shard is not None:
            raise ValueError(
                "--new-rows cannot be used with --shard, whose rows are those of an input that "
                "stays; put the files back as they were, or use another --output"
            )
        if self.expert_copies and self.expert_placement is None:
            raise ValueError(
                "expert_copies needs an expert_placement, which says which experts are busy"
            )
        if self.instructions.windows and (self.sampling.n > 1 or self.sampling.token_logprobs):
            raise ValueError("windows of a row go with neither --samples nor --token-logprobs")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device must be auto, cpu or cuda, got {self.device!r}")
        if not 0 <= self.max_group_failures < inf:
            raise ValueError(
                "max_group_failures must be a number and at least 0, got "
                f"{self.max_group_failures:g}"
            )
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")


def recipe_of(config: PipelineConfig, row_schema: RowSchema) -> Recipe:
    """Collect everything in a run that changes the captions or the columns of the output.

    The keys are stored with outputs and compared when a run continues one. They are the names of
    dataclass fields; `_recorded` keeps the old keys of fields that were renamed.
    """
    # "auto" rounds nothing on the wire; outputs from before the option have no such key.
    wire_dtype = config.exchange.wire_dtype
    rounded = {} if wire_dtype == "auto" else {"wire_dtype": wire_dtype}
    return Recipe(
        {
            "recipe_version": 1,
            "checkpoint": checkpoint_fingerprint(config.checkpoint),
            **_recorded(config.instructions),
            "sampling": asdict(config.sampling),
            "dtype": config.engine.dtype,
            **rounded,
            "max_model_len": config.engine.max_model_len,
            "columns": asdict(config.columns),
            "make_ids_unique": config.make_ids_unique,
            "output_columns": [
                f"{field.name}: {field.type}"
                for field in row_schema.output
                if field.name not in LATER_COLUMNS  # an output goes on with those that it has
            ],
        }
    )


def as_begun(config: PipelineConfig, stored: Mapping[str, Any] | None) -> PipelineConfig:
    """Settle the background "auto" by the stored recipe of the output that a run continues.

    An output from before the field is continued without a background, so that it never holds
    captions of one picture on white and of another one on black. `stored` is None for a new output.
    """
    if config.instructions.background != "auto" or stored is None or "background" in stored:
        return config
    return replace(config, instructions=replace(config.instructions, background="none"))


def _recorded(instructions: Instructions) -> dict[str, Any]:
    """The instructions as a recipe records them."""
    fields = asdict(instructions)
    fields["frames"] = asdict(instructions.view.affordable_frames)
    del fields["limits"]  # they decide what fails, not what a caption says
    if instructions.background_color is None:
        del fields["background"]  # outputs from before the option were made so
    else:
        fields["background"] = instructions.background_color
    if instructions.windows is None:
        del fields["windows"]  # outputs from before windows existed have no such key
    for prompt in fields["named_prompts"]:
        del prompt["is_typed"]  # the types of the output columns tell it
    fields["named_prompts"] = [_renamed(each, "view", "look") for each in fields["named_prompts"]]
    return _renamed(fields, "named_prompts", "questions")


def _renamed(fields: Mapping[str, Any], name: str, key: str) -> dict[str, Any]:
    """The fields in their order, one of them under another key."""
    return {key if each == name else each: value for each, value in fields.items()}
