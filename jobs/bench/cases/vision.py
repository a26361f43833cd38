"""Measure MoonViT and projector: on one of the largest images, and on the frames of a clip."""

from collections.abc import Callable, Sequence

import torch

from jobs.bench.cases.workbench import Workbench
from jobs.bench.measure.limits import BareProducts
from jobs.bench.measure.turns import by_key, take_turns, timed
from jobs.planning.products import vision_products
from model.engine.config import EngineConfig
from model.engine.image_cache import within_budget
from model.network.vision import Grid


def measure_vision(bench: Workbench) -> dict[str, object]:
    """Measure patches/s from uint8 patches to features, compared with bare products."""
    sizes = bench.sizes
    cases = {"image": [sizes.image], "frames": [sizes.frame] * sizes.num_frames}
    return by_key({name: _encode(bench, grids) for name, grids in cases.items()})


def _encode(bench: Workbench, grids: Sequence[Grid]) -> dict[str, float]:
    config = bench.config
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
    if reference := bench.reference:
        works["theirs"] = lambda: timed(lambda: reference.encode_images(patches, grids))
    turns = take_turns(works, bench.sizes.num_rounds)
    return turns.rates("vision", "patches", len(patches))
