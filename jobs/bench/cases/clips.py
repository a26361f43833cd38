"""Measure the demo checkpoint on generated clips: end to end, and whether a batch changes texts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from jobs.bench.cases.workbench import Workbench
from jobs.bench.measure.limits import BareProducts
from jobs.bench.measure.turns import take_turns, timed
from jobs.demo.clips import with_timestamps
from jobs.demo.evaluate import Clip, make_clips
from jobs.demo.language import VIDEO_PROMPT
from jobs.demo.scenes import draw, first_seed, frame_times, random_scene
from jobs.planning.products import (
    Product,
    dense_products,
    expert_products,
    head_product,
    vision_products,
)
from model.config import KimiVLConfig
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.sequence import Completion, SamplingParams
from model.inputs.processor import Processor
from model.inputs.prompt import Prompt, PromptError

_NUM_FRAMES = 8
_BATCH_SIZE = 32
_MAX_TOKENS = 96


def measure_clips(bench: Workbench) -> dict[str, object]:
    """Measure clips/s from H.264 to captions in one process, compared with bare products."""
    processor = Processor.from_checkpoint(bench.checkpoint)
    engine = _engine(bench, _BATCH_SIZE, "auto")
    clips = make_clips("validation", bench.sizes.num_clips)
    prompts = _prompts(processor, clips)
    limit = BareProducts(network_products(engine.model.config, prompts, answers(engine, prompts)))
    turns = take_turns(
        {
            "prepare": lambda: timed(lambda: _prompts(processor, clips)),
            "generate": lambda: timed(lambda: answers(engine, prompts)),
            "limit": limit.seconds,
        },
        bench.sizes.num_rounds,
    )
    prepare_s, generate_s = turns.typical("prepare"), turns.typical("generate")
    return {
        "clips_per_s": round(len(clips) / (prepare_s + generate_s), 2),
        "clips_prepare_share": round(prepare_s / (prepare_s + generate_s), 3),
        "clips_network_of_limit": round(turns.quotient("limit", "generate"), 3),
    }


def measure_neighbours(bench: Workbench) -> dict[str, object]:
    """Measure the share of texts that differ between batches of 1 and of 32."""
    processor = Processor.from_checkpoint(bench.checkpoint)
    prompts = [_drawn(processor, number) for number in range(bench.sizes.num_texts)]
    changed: dict[str, float] = {}
    for dtype in ("float32", "bfloat16"):
        runs = [answers(_engine(bench, size, dtype), prompts) for size in (1, _BATCH_SIZE)]
        pairs = zip(*runs, strict=True)
        changed[dtype] = sum(alone.text != among.text for alone, among in pairs) / len(prompts)
        print(f"  {dtype}: {100 * changed[dtype]:.1f} % of the texts change", flush=True)
    return {"texts_changed_by_batch_size": changed}


def _engine(bench: Workbench, max_batch_size: int, dtype: str) -> Engine:
    config = EngineConfig(
        dtype=dtype,
        max_batch_size=max_batch_size,
        max_model_len=1024,
        cache_gib=0.5,
        num_threads=bench.num_threads,
    )
    return Engine.from_checkpoint(bench.checkpoint, config)


def _prompts(processor: Processor, clips: Sequence[Clip]) -> list[Prompt]:
    """Make the prompts of a job about encoded clips."""
    prompts: list[Prompt] = []
    for clip in clips:
        frames = clip.frames(_NUM_FRAMES)
        content = with_timestamps(list(frames.rgb), frames.timestamps_s, "seconds")
        prompts.append(processor.prompt([*content, VIDEO_PROMPT]))
    return prompts


def _drawn(processor: Processor, number: int) -> Prompt:
    """Make a question about four small frames that were drawn, without a video."""
    scene = random_scene(first_seed("validation", 2, number))
    times = frame_times(4)
    content = with_timestamps(list(draw(scene, times, 84, 84)), times, "none")
    return processor.prompt([*content, VIDEO_PROMPT])


def answers(engine: Engine, prompts: Sequence[Prompt]) -> list[Completion]:
    """Return greedy completions, from an engine of the same model with an empty cache."""
    new = Engine(engine.model, engine.tokenizer, engine.config)
    for number, prompt in enumerate(prompts):
        new.add(str(number), prompt, SamplingParams(max_tokens=_MAX_TOKENS))
    done: dict[int, Completion] = {}
    while new.has_work:
        for name, answer in new.step():
            if isinstance(answer, PromptError):
                raise answer
            done[int(name)] = answer
    return [done[number] for number in range(len(prompts))]


def network_products(
    config: KimiVLConfig, prompts: Sequence[Prompt], done: Sequence[Completion]
) -> list[Product]:
    """List the products of the images, of all prompts in one step, and of full decode batches."""
    text = config.text
    grids = Counter((h, w) for prompt in prompts for h, w in prompt.grid_hw.tolist())
    num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    num_steps = sum(each.num_generated_tokens for each in done) / _BATCH_SIZE
    step = [
        *dense_products(text, _BATCH_SIZE),
        *expert_products(text, _BATCH_SIZE, text.n_routed_experts),
        head_product(text, _BATCH_SIZE),
    ]
    return [
        *(
            product
            for grid, number in grids.items()
            for product in vision_products(config.vision, text.hidden_size, grid, number)
        ),
        *dense_products(text, num_tokens),
        *expert_products(text, num_tokens, text.n_routed_experts),
        *(replace(product, count=product.count * num_steps) for product in step),
    ]
