"""Turn the options of `jobs.cli.options` into a `PipelineConfig`; imports the libraries."""

import argparse
import os
from pathlib import Path

from jobs.cli.checkpoint import find_checkpoint
from jobs.cli.options import MERGE_PROMPT, NO_PAGES, media_limits
from jobs.cli.prompts_file import read_named_prompts
from jobs.cli.ray_cluster import refuse_relative, refuse_unsafe_settings
from jobs.cli.schema_file import read_schema
from model.engine.config import EngineConfig
from model.engine.sequence import SamplingParams
from parallel.experts.policy import Exchange
from pipeline.config import PipelineConfig
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.windows import PageWindows, TimeWindows, Windows
from pipeline.output.shards import Shard
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.named_prompts import list_columns, value_columns
from pipeline.schema import ErrorCode, InputColumns
from pipeline.status import TEMPORARY


def pipeline_config(options: argparse.Namespace) -> PipelineConfig:
    """Make the configuration that the options ask for, and find the checkpoint.

    Raises:
        ValueError: a value is invalid; the message names it.
    """
    refuse_unsafe_settings(os.environ)  # before any file is opened
    refuse_relative(options.output, "--output")
    if not Path(options.input).exists():  # a file in the submitted directory may be relative
        refuse_relative(options.input, "--input")
    if options.prompts is not None and options.prompt_column is not None:
        raise ValueError("--prompt-column and --prompts exclude each other; name the column in one")
    sampling = SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        loop_guard=options.loop_guard,
        seed=options.seed,
        stop=tuple(options.stop),
        schema=None if options.schema is None else read_schema(options.schema),
        thinking=options.thinking,
        n=options.samples,
        token_logprobs=options.token_logprobs,
    )
    named_prompts = () if options.prompts is None else read_named_prompts(options.prompts, sampling)
    return PipelineConfig(
        input=options.input,
        output=options.output,
        checkpoint=find_checkpoint(options.model),
        columns=InputColumns(
            video=options.video_column,
            id=options.id_column,
            prompt=options.prompt_column,
            start_s=options.start_column,
            end_s=options.end_column,
            fields=value_columns(named_prompts),
            lists=list_columns(named_prompts),
        ),
        carry=options.columns,
        keep_media=options.keep_media,
        limit=options.limit,
        shard=None if options.shard is None else Shard(*options.shard),
        instructions=Instructions(
            prompt=options.prompt,
            named_prompts=named_prompts,
            frames=_frame_sampling(options),
            windows=_windows(options),
            timestamps=options.timestamps,
            max_frame_tokens=options.frame_tokens,
            max_row_tokens=options.tokens_per_row,
            background=options.background,
            limits=media_limits(options),
        ),
        allowed_uris=tuple(options.allow_uri),
        allowed_folders=tuple(
            str(Path(each).expanduser().absolute()) for each in options.allow_folder
        ),
        sampling=sampling,
        engine=EngineConfig(
            dtype=options.dtype,
            max_batch_size=options.batch_size,
            max_step_tokens=options.max_step_tokens,
            max_vision_patches=options.max_vision_patches,
            cache_gib=options.cache_gib,
            cache_fraction=options.cache_fraction,
            num_threads=options.threads or _fair_threads(options),
            cuda_graphs=False if options.no_cuda_graphs else None,
        ),
        device=options.device,
        num_groups=options.groups,
        expert_parallel=options.expert_parallel,
        exchange=Exchange(options.dispatch, options.wire_dtype),
        placement=options.placement.upper(),
        expert_placement=options.expert_placement,
        expert_copies=options.expert_copies,
        max_group_failures=options.max_group_failures,
        rows_per_part=options.rows_per_part,
        max_part_age_s=options.max_part_age,
        make_ids_unique=options.make_ids_unique,
        retry_failed=_error_codes(options.retry_failed),
        new_recipe=options.new_recipe,
        new_rows=options.new_rows,
        keep_order=options.keep_order,
        rows_per_batch=options.rows_per_batch,
        run_yaml=options.run_yaml,
    )


def _windows(options: argparse.Namespace) -> Windows | None:
    """Return the windows of documents or of long videos; None for whole videos and images.

    Raises:
        ValueError: the options contradict each other.
    """
    if options.pages_per_prompt != NO_PAGES:
        return PageWindows(
            pages_per_prompt=options.pages_per_prompt, answer_tokens=options.max_tokens
        )
    if options.merge_prompt != MERGE_PROMPT and not options.merge:
        raise ValueError("--merge-prompt needs --merge, which sends it to the model")
    if options.window_s is None:
        if options.merge or options.window_overlap_s is not None:
            raise ValueError(
                "--merge and --window-overlap-s need --window-s, the length of the windows"
            )
        return None
    return TimeWindows(
        length_s=options.window_s,
        overlap_s=options.window_overlap_s or 0.0,
        merge=options.merge_prompt if options.merge else None,
    )


def _frame_sampling(options: argparse.Namespace) -> FrameSampling:
    num_frames, fps = options.frames, options.fps
    if num_frames is None and fps is None and options.at is None:
        num_frames, fps = (8, None) if options.tokens_per_row is None else (None, 1.0)
    return FrameSampling(
        num_frames=num_frames,
        fps=fps,
        at_s=options.at,
        max_frames=options.max_frames,
        keyframes_only=options.keyframes,
    )


def _fair_threads(options: argparse.Namespace) -> int:
    """Return the threads of each rank: half of the CPUs, divided by the ranks."""
    num_ranks = (options.groups or 1) * (options.expert_parallel or 1)
    return max(1, (os.cpu_count() or 1) // 2 // num_ranks)


def _error_codes(text: str | None) -> tuple[ErrorCode, ...]:
    """Parse the codes in `--retry-failed`; `temporary` stands for several.

    Raises:
        ValueError: a code is unknown, or the list is empty.
    """
    if text is None:
        return ()
    if text == "all":
        return tuple(ErrorCode)
    names = [name for name in text.split(",") if name]
    if not names:
        raise ValueError(
            f"--retry-failed: {text!r} names no error code; give no value to retry all"
        )
    names = [each for name in names for each in (TEMPORARY if name == "temporary" else [name])]
    for name in names:
        if name not in set(ErrorCode):
            known = ", ".join(ErrorCode)
            raise ValueError(
                f"--retry-failed: there is no error code {name!r}; they are {known}; temporary "
                f"stands for {', '.join(TEMPORARY)}"
            )
    return tuple(dict.fromkeys(ErrorCode(name) for name in names))
