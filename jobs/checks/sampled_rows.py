"""Prepare rows from the whole length of the input, exactly as a job would."""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from jobs.checks.finding import Finding
from model.engine.sequence import SamplingParams
from model.inputs.processor import Processor
from model.inputs.prompt import Prompt
from pipeline.config import PipelineConfig
from pipeline.input.plan import RowGroupSplit, plan
from pipeline.input.reader import read_split
from pipeline.input.source import Source
from pipeline.output.ledger import OutputIndex
from pipeline.prompts.prepare import Prepare
from pipeline.prompts.prompt_columns import decode_prompt
from pipeline.schema import NAMED_PROMPT_FIELD

_BAR = 24  # characters in the longest bar of the histogram


@dataclass(frozen=True, kw_only=True)
class SampledRow:
    """One row of the sample after the prepare stage."""

    row_id: str
    seconds: float  # to fetch the media, decode it and make patches
    asked: tuple[tuple[Prompt, SamplingParams], ...]  # one for each prompt; empty for an error
    error_code: str | None  # of the first prompt that failed
    error: str | None

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all prompts of the row, visual ones included."""
        return sum(len(prompt.token_ids) for prompt, _ in self.asked)

    @property
    def num_visual_tokens(self) -> int:
        """Number of visual tokens; prompts about the same frames count them once."""
        return sum(prompt.num_vision_tokens for prompt, _ in self.asked)

    @property
    def longest(self) -> int:
        """The most tokens that one sequence of the row can have in the cache."""
        return max(len(prompt.token_ids) + params.max_tokens for prompt, params in self.asked)


def prepare_sample(
    config: PipelineConfig, source: Source, processor: Processor, num_rows: int
) -> list[SampledRow]:
    """Prepare `num_rows` random rows, one by one; a row that fails is kept with its error."""
    media = config.media_access(source.folder)
    prepare = Prepare(processor, source.row_schema, config.instructions, media.open)
    found = []
    for split in drawn(source, num_rows, config.sampling.seed):
        for rows in read_split(source.filesystem, source.row_schema, split, max_rows=1):
            started = time.perf_counter()
            prepared = prepare(rows)
            found.append(_row(config, prepared, time.perf_counter() - started))
    return found


def findings(rows: Sequence[SampledRow], num_rows_in_input: int) -> Iterator[Finding]:
    """Report errors, decoding time and tokens of the sample."""
    failed = [row for row in rows if row.error_code]
    good = [row for row in rows if row.asked]
    if failed:
        errors = Counter(row.error_code for row in failed)
        codes = ", ".join(f"{count} {code}" for code, count in errors.most_common())
        num_partly = sum(bool(row.asked) for row in failed)
        partly = f", {num_partly} of them in part" if num_partly else ""
        text = f"{len(failed)} of {len(rows)} sampled rows fail{partly}: {codes}; "
        text += f"{failed[0].row_id}: {failed[0].error}"
        yield Finding("note" if good else "BAD", "rows", text)
    else:
        text = f"all {len(rows)} sampled rows of {num_rows_in_input} can be used"
        yield Finding("ok", "rows", text)
    if good:
        seconds = sorted(row.seconds for row in good)
        text = f"{np.mean(seconds):.3f} s a row on one core, the slowest {seconds[-1]:.3f} s"
        yield Finding("ok", "decoding", text)
        num_prompts = sorted(len(row.asked) for row in good)
        if num_prompts[-1] > 1:
            yield Finding("ok", "prompts", f"{num_prompts[0]} to {num_prompts[-1]} of a row")
        yield Finding("ok", "tokens", _spread([row.num_tokens for row in good]))
        yield from _histogram([row.num_tokens for row in good])


def drawn(source: Source, num_rows: int, seed: int) -> Iterator[RowGroupSplit]:
    """Yield splits of the input that select `num_rows` random rows over all files."""
    splits = plan(source, OutputIndex.empty()).splits
    total = sum(split.num_todo for split in splits)
    chosen = sorted(random.Random(seed).sample(range(total), min(num_rows, total)))
    first = 0
    for split in splits:
        last = first + split.num_todo
        here = [position - first for position in chosen if first <= position < last]
        if here:
            bits = np.zeros(split.num_todo, dtype=np.bool_)  # no row of the group is done yet
            bits[here] = True
            yield replace(split, todo=np.packbits(bits).tobytes(), num_todo=len(here))
        first = last


def _row(config: PipelineConfig, prepared: pa.Table, seconds: float) -> SampledRow:
    """Describe one row of the input, which has one prepared row for each prompt."""
    named_prompts = config.instructions.named_prompts
    asked = []
    for index in range(prepared.num_rows):
        prompt = decode_prompt(prepared, index)
        if prompt is not None:
            number = prepared[NAMED_PROMPT_FIELD.name][index].as_py() if named_prompts else None
            params = config.sampling if number is None else named_prompts[number].sampling
            asked.append((prompt, params))
    codes, errors = prepared["error_code"].drop_null(), prepared["error"].drop_null()
    return SampledRow(
        row_id=prepared["row_id"][0].as_py(),
        seconds=seconds,
        asked=tuple(asked),
        error_code=codes[0].as_py() if len(codes) else None,
        error=errors[0].as_py() if len(errors) else None,
    )


def _spread(tokens: Sequence[int]) -> str:
    quantiles = np.quantile(tokens, [0, 0.5, 0.9, 1]).round().astype(int)
    least, median, most_rows, most = quantiles.tolist()
    return f"{least} to {most} prompt tokens, median {median}, 90 % at most {most_rows}"


def _histogram(tokens: Sequence[int]) -> Iterator[Finding]:
    """Yield the lines of a histogram with up to six bars of equal width."""
    if min(tokens) == max(tokens):
        return
    counts, edges = np.histogram(tokens, bins=min(6, max(tokens) - min(tokens)))
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "#" * round(_BAR * count / counts.max())
        yield Finding("ok", "", f"{round(low):>7} - {round(high):<7} {bar} {count}")
