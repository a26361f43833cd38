"""Measure rows/s of one engine: frames in, captions out, with a queue that is never empty."""

from jobs.bench.device.bench import DeviceBench, NoRoomError
from jobs.bench.device.bounds import chosen_experts, decode_bytes, prefill_flops, vision_flops
from jobs.bench.measure.shapes import add_all, run_until_done

_ROWS_PER_SEQUENCE = 2  # rows, as a multiple of the sequences that decode together


def measure_rows(bench: DeviceBench) -> dict[str, object]:
    """Measure rows of new frames with the most sequences that fit the card.

    Start and end count, where fewer sequences decode. Decoding of videos, and the hashing of pixels
    by `add`, are left out.
    """
    for number in sorted(bench.sizes.num_sequences, reverse=True):
        try:
            return _rows(bench, number)
        except NoRoomError as reason:
            bench.skip(f"rows with {number} sequences", reason)
    return {}


def _rows(bench: DeviceBench, num_sequences: int) -> dict[str, object]:
    sizes, card = bench.sizes, bench.card
    grids = [sizes.row_frame] * sizes.row_frames
    visual = sum(height * width // 4 for height, width in grids)
    prompt_len = visual + 4 * len(grids) + sizes.row_text
    num_rows = _ROWS_PER_SEQUENCE * num_sequences
    with bench.engine(num_sequences, prompt_len + sizes.row_generated) as engine:
        for rows in (num_sequences, num_rows):  # the first ones warm up, and CUDA graphs are made
            prompts = [bench.prompts.about(grids, 1, sizes.row_text)[0] for _ in range(rows)]
            add_all(engine, prompts, max_tokens=sizes.row_generated)
            seconds = bench.timed(lambda: run_until_done(engine))
    context_len = prompt_len + sizes.row_generated / 2
    experts = chosen_experts(bench.network, num_sequences)
    step_bytes = decode_bytes(bench.network, num_sequences, context_len, experts)
    flops = vision_flops(bench.network, grids) + prefill_flops(bench.network, 1, prompt_len)
    decode_s = sizes.row_generated * step_bytes / num_sequences / card.bytes_per_s()
    row_limit_s = flops / card.flops_per_s() + decode_s
    return {
        "rows_per_s": round(num_rows / seconds, 3),
        "rows_of_limit": round(row_limit_s * num_rows / seconds, 3),
        "rows_sequences": num_sequences,
        "rows_visual_tokens": visual,
        "rows_text_tokens": prompt_len - visual,
        "rows_generated_tokens": sizes.row_generated,
        "rows_preemptions": engine.stats()["preemptions"],
        "rows_peak_gib": bench.peak_gib(),
    }
