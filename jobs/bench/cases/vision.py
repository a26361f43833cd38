"""Measure MoonViT and projector: on one of the largest images, and on the frames of a clip."""

from collections.abc import Callable, Sequence

import torch

from jobs.bench.cases.workbench import Workbench
from jobs.bench.measure.limits import BareProducts
from jobs.bench.measure.turns import take_turns, timed
from jobs.planning.products import vision_products
from model.engine.config import EngineConfig
from model.engine.image_cache import within_budget
from model.network.vision import Grid


def measure_vision(bench: Workbench) -> dict[str, object]:
    """Measure patches/s from uint8 patches to features, compared with bare products."""
    sizes = bench.sizes
    works = {"image": [sizes.image], "frames": [sizes.frame] * sizes.num_frames}
    measured = {name: _encode(bench, grids) for name, grids in works.items()}
    keys = dict.fromkeys(key for each in measured.values() for key in each)
    return {key: {name: each[key] for name, each in measured.items()} for key in keys}


def _encode(bench: Workbench, grids: Sequence[Grid]) -> dict[str, float]:
    config, reference = bench.config, bench.reference
    patches = torch.from_numpy(bench.prompts.patches(grids))
    limit = BareProducts(
        vision_products(config.vision, config.text.hidden_size, grids[0], len(grids))
    )
    calls = list(within_budget(grids, EngineConfig().max_vision_patches))
    chunks = patches.split([sum(h * w for h, w in call) for call in calls])

    def ours() -> None:
        for chunk, call in zip(chunks, calls, strict=True):
            bench.model.encode_images(chunk, call)

    works: dict[str, Callable[[], float]] = {"limit": limit.seconds, "ours": lambda: timed(ours)}
    if reference is not None:
        works["theirs"] = lambda: timed(lambda: reference.encode_images(patches, grids))
    turns = take_turns(works, bench.sizes.num_rounds)
    measured = {
        "vision_patches_per_s": round(len(patches) / turns.typical("ours"), 1),
        "vision_of_limit": round(turns.quotient("limit", "ours"), 3),
    }
    if reference is not None:
        measured["vision_vs_transformers"] = round(turns.quotient("theirs", "ours"), 2)
    return measured
