"""`PipelineConfig`: what one run reads, asks and writes; and what of it changes the captions."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from model.engine.config import EngineConfig
from model.engine.sequence import SamplingParams
from parallel.experts.policy import Exchange
from pipeline.output.recipe import Recipe, checkpoint_fingerprint
from pipeline.prompts.instructions import Instructions
from pipeline.schema import ErrorCode, InputColumns, RowSchema


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """What a run reads, asks, and writes.

    Raises:
        ValueError: a value cannot work; the message names it.
    """

    input: str  # as for `list_files`
    output: str  # a directory, or a URI as for `open_filesystem`
    checkpoint: Path
    columns: InputColumns = field(default_factory=InputColumns)
    carry: tuple[str, ...] | None = None  # columns beside the results; None means all
    keep_media: bool = False
    limit: int | None = None  # rows
    instructions: Instructions = field(default_factory=Instructions)
    media_folder: str | None = None  # to which relative media belong; None: the input's own
    allowed_uris: tuple[str, ...] = ()  # prefixes of remote media
    allowed_folders: tuple[str, ...] = ()  # of local media, beside the input's own
    sampling: SamplingParams = field(default_factory=SamplingParams)
    engine: EngineConfig = field(default_factory=EngineConfig)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_groups: int | None = None  # None: as many as the GPUs make, or one
    expert_parallel: int | None = (
        None  # ranks of each group; None: chosen, see `pipeline.cluster.deployment`
    )
    exchange: Exchange = field(default_factory=Exchange)
    placement: Literal["STRICT_PACK", "PACK", "SPREAD"] = "STRICT_PACK"  # of a group's ranks
    expert_placement: str | None = None  # as for `read_load`; changes no recipe, as ranks do not
    expert_copies: int = 0  # further copies of the busiest experts, on each rank and in each layer
    max_group_failures: int = 16
    rows_per_part: int = 10_000
    max_part_age_s: float = 300.0
    make_ids_unique: bool = False
    retry_failed: tuple[ErrorCode, ...] = ()  # rows with these codes are tried again
    new_recipe: bool = False  # set the rows of another recipe aside
    keep_order: bool = False  # of the input in the output
    rows_per_batch: int | None = (
        None  # that travel together; None: as `pipeline.stages.sizing` finds best
    )
    run_yaml: str | None = None  # the options of the command, to keep beside the output

    def __post_init__(self) -> None:
        if self.expert_copies and self.expert_placement is None:
            raise ValueError("expert_copies needs an expert_placement, which tells what is busy")
        if self.instructions.windows and (self.sampling.n > 1 or self.sampling.token_logprobs):
            raise ValueError("windows of a row go with neither --samples nor --token-logprobs")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device must be auto, cpu or cuda, got {self.device!r}")
        for (
            name
        ) in "limit num_groups expert_parallel rows_per_part max_part_age_s rows_per_batch".split():
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")


def recipe_of(config: PipelineConfig, row_schema: RowSchema) -> Recipe:
    """Everything in a run that changes the captions or the columns."""
    asked = asdict(config.instructions)
    asked["frames"] = asdict(config.instructions.look.affordable_frames)
    if config.instructions.windows is None:
        del asked["windows"]  # as in outputs from before there were any
    for each in asked["questions"]:
        del each["is_typed"]  # the types of the columns tell
    wire_dtype = config.exchange.wire_dtype
    rounded = {} if wire_dtype == "auto" else {"wire_dtype": wire_dtype}
    del asked["limits"]  # they decide what fails, not what a caption says
    return Recipe(
        {
            "recipe_version": 1,
            "checkpoint": checkpoint_fingerprint(config.checkpoint),
            **asked,
            "sampling": asdict(config.sampling),
            "dtype": config.engine.dtype,
            **rounded,
            "max_model_len": config.engine.max_model_len,
            "columns": asdict(config.columns),
            "make_ids_unique": config.make_ids_unique,
            "output_columns": [f"{field.name}: {field.type}" for field in row_schema.output],
        }
    )
