"""Checks the checkpoint, the grammars and the input of a run before anything is started."""

from model.config import TextConfig
from model.engine.grammar import Grammars
from model.inputs.processor import Processor
from model.inputs.prompt import PromptError
from pipeline.cluster.deployment import check_ranks
from pipeline.column_types import is_list
from pipeline.config import PipelineConfig
from pipeline.input.source import Source, open_source
from pipeline.media.windows import TimeWindows
from pipeline.prompts.fan_in import extra_fields
from pipeline.prompts.named_answers import named_answer_fields
from pipeline.prompts.window_answers import window_fields


def open_checkpoint(config: PipelineConfig) -> TextConfig:
    """Check every tensor's name and shape, that frames have room, and that schemas are usable.

    Returns the configuration of the checkpoint's language model.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ValueError: its experts cannot be divided over the ranks, no prompt has room for the
            frames, or a schema is refused.
    """
    from model.network.weights import check_checkpoint  # here, as it imports torch

    text = check_checkpoint(config.checkpoint).text
    check_ranks(config, text.n_routed_experts)
    processor = Processor.from_checkpoint(config.checkpoint)
    _check_frames(config, processor)
    _check_grammars(config, processor)
    return text


def _check_frames(config: PipelineConfig, processor: Processor) -> None:
    most = processor.max_images
    for view in config.instructions.views:
        frames = view.affordable_frames
        count = len(frames.at_s or ()) or frames.num_frames or 0
        if count > most:
            raise ValueError(
                f"{count:,} frames of a row are asked for, and a prompt of this checkpoint has "
                f"room for at most {most:,}, however small they are; take fewer, or set --window-s "
                "so that each window is a prompt of its own"
            )


def _check_grammars(config: PipelineConfig, processor: Processor) -> None:
    grammars = Grammars(processor.tokenizer, processor.config.stop_token_ids)
    prompts = config.instructions.named_prompts
    asked = {f"the prompt {each.name!r}": each.sampling for each in prompts}
    for name, sampling in {"the run": config.sampling, **asked}.items():
        if sampling.schema is not None:
            try:
                grammars.start(sampling.schema, thinking=sampling.thinking)
            except PromptError as error:
                raise ValueError(f"the schema of {name} is refused: {error.message}") from error


def open_input(config: PipelineConfig) -> Source:
    """Open the input of a run.

    Raises:
        ValueError: as `open_source`; or windows of time are asked for and rows hold several videos.
    """
    windows, prompts = config.instructions.windows, config.instructions.named_prompts
    source = open_source(
        config.input,
        config.columns,
        carry=config.carry,
        keep_media=config.keep_media,
        extra=[
            *(named_answer_fields(prompts) or extra_fields([config.sampling])),
            *window_fields(windows),
        ],
        make_ids_unique=config.make_ids_unique,
        has_digests=config.columns.id is None,
        output=config.output,
    )
    kind = source.row_schema.read.field(config.columns.video).type
    if is_list(kind) and isinstance(windows, TimeWindows):
        raise ValueError(
            f"--window-s cuts one video a row, and column {config.columns.video!r} is {kind}; "
            "give each video a row of its own"
        )
    return source
