import copy
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.bench.measure.fake_gpu import fake_gpu
from model.config import VisionConfig
from model.engine.transfer import to_device
from model.network.kimi_vl import KimiVL
from model.network.rope import patch_rotation
from model.network.vision import (
    ByGrid,
    Grid,
    PositionTable,
    merge_patches,
    rows_of_images,
    runs_of_equal_grids,
)
from tests.tiny import tiny_config, tiny_model

GRIDS = [(4, 6), (2, 2), (2, 2), (10, 4)]


def pixels_for(grids, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(h * w for h, w in grids), 3, 14, 14, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_position_table_at_its_own_size_is_itself(dtype):
    table = PositionTable(VisionConfig(hidden_size=64, num_attention_heads=16)).to(dtype)
    assert torch.equal(table([(64, 64)]), table.weight.flatten(0, 1))


def test_positions_follow_the_cubic_kernel_with_clamped_borders():
    table = PositionTable(VisionConfig(hidden_size=16, num_attention_heads=4))
    size, (height, width) = 64, (10, 6)
    resampled = table([(height, width)]).unflatten(0, (height, width))

    def weights(place, target):
        source = (place + 0.5) * size / target - 0.5
        first = int(source // 1)
        taps = []
        for tap in range(first - 1, first + 3):
            x, a = abs(source - tap), -0.75  # the Keys kernel
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * (x**3 - 5 * x**2 + 8 * x - 4)
            taps.append((min(max(tap, 0), size - 1), near if x <= 1 else far))
        return taps

    for row, column in ((0, 0), (3, 5), (9, 2)):
        expected = sum(
            wy * wx * table.weight[y, x]
            for y, wy in weights(row, height)
            for x, wx in weights(column, width)
        )
        torch.testing.assert_close(resampled[row, column], expected, rtol=1e-4, atol=1e-5)


def test_no_image_sees_another():
    tower = tiny_model(tiny_config()).vision_tower
    pixels = pixels_for(GRIDS)
    together = tower(pixels, GRIDS)
    alone = [
        tower(part, [grid])
        for part, grid in zip(pixels.split([h * w for h, w in GRIDS]), GRIDS, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_four_neighbouring_patches_make_a_token_in_reading_order():
    height, width = 4, 6
    patches = torch.arange(height * width)[:, None].float()  # each patch is its number
    tokens = merge_patches(torch.cat((patches, patches + 100)), [(height, width)] * 2)[..., 0]
    expected = [
        [(2 * y + dy) * width + 2 * x + dx for dy in (0, 1) for dx in (0, 1)]
        for y in range(height // 2)
        for x in range(width // 2)
    ]
    assert tokens.tolist() == expected + [[n + 100 for n in token] for token in expected]


def test_frames_of_one_size_are_one_run():
    assert runs_of_equal_grids(GRIDS) == [(1, (4, 6)), (2, (2, 2)), (1, (10, 4))]
    assert runs_of_equal_grids([]) == []


def test_no_image_gives_no_token():
    model = tiny_model(tiny_config())
    empty = torch.empty(0, 3, 14, 14, dtype=torch.uint8)
    assert model.encode_images(empty, []).shape == (0, 128)


def test_pixels_are_normalised_by_the_checkpoint_s_mean_and_deviation():
    model = tiny_model(tiny_config())
    patches = torch.randint(0, 256, (4, 3, 14, 14), dtype=torch.uint8)
    expected = model.vision_tower((patches.float() / 255 - 0.5) / 0.5, [(2, 2)])
    features = model.encode_images(patches, [(2, 2)])
    torch.testing.assert_close(features, model.multi_modal_projector(expected))


@pytest.fixture
def table():
    generator = torch.Generator().manual_seed(0)
    made = PositionTable(VisionConfig(hidden_size=16, num_attention_heads=4))
    made.weight = nn.Parameter(torch.randn(made.weight.shape, generator=generator))
    return made


def resampled_anew(table, grids):
    """The slow twin: every image by itself, and nothing is kept."""
    with torch.no_grad():
        return torch.cat([table.resampled(grid) for grid in grids])


@pytest.mark.parametrize("grids", [GRIDS, [(4, 6)] * 3, [(4, 6)], [(2, 2), (4, 6), (2, 2)]])
@torch.no_grad()
def test_kept_positions_and_turns_are_bit_for_bit_those_made_anew(table, grids):
    encoder = tiny_model(tiny_config()).vision_tower.encoder
    for _ in range(2):
        assert torch.equal(table(grids), resampled_anew(table, grids))
        turns = encoder._rotation(grids, torch.device("cpu")).turns
        anew = patch_rotation(grids, encoder.head_dim, torch.device("cpu")).turns
        assert torch.equal(torch.view_as_real(turns), torch.view_as_real(anew))


@torch.no_grad()
def test_a_grid_is_resampled_once(table, monkeypatch):
    made: Counter[Grid] = Counter()
    resampled = table.resampled
    monkeypatch.setattr(table, "resampled", lambda grid: made.update([grid]) or resampled(grid))
    for _ in range(3):
        table(GRIDS)
    assert made == {(4, 6): 1, (2, 2): 1, (10, 4): 1}


def change_in_place(table):
    with torch.no_grad():
        table.weight.mul_(2)


def change_by_a_step(table):
    table.weight.grad = torch.ones_like(table.weight)
    torch.optim.AdamW(table.parameters(), lr=0.1).step()


def change_by_loading(table):
    table.load_state_dict({"weight": table.weight.detach() + 1})


def change_by_assigning(table):
    table.load_state_dict({"weight": table.weight.detach() + 1}, assign=True)


def change_by_rounding(table):
    table.to(torch.bfloat16).to(torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_by_a_step,
        change_by_loading,
        change_by_assigning,
        change_by_rounding,
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_positions_of_changed_weights_are_made_anew(table, change, mode):
    with mode():
        before = table(GRIDS)
    change(table)
    with mode():
        after = table(GRIDS)
    assert not torch.equal(before, after)
    assert torch.equal(after, resampled_anew(table, GRIDS))


def test_nothing_is_kept_or_found_while_gradients_are_recorded(table):
    with torch.inference_mode():
        table(GRIDS)
    for _ in range(2):
        table.weight.grad = None
        table(GRIDS).sum().backward()
        assert table.weight.grad is not None
        assert table.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert not table(GRIDS).requires_grad


def test_a_copied_model_keeps_its_own_positions(table):
    with torch.no_grad():
        before = table(GRIDS)
        other = copy.deepcopy(table)
        other.weight.mul_(2)
        assert torch.equal(table(GRIDS), before)
        assert torch.equal(other(GRIDS), resampled_anew(other, GRIDS))


@torch.no_grad()
def test_the_grids_that_were_used_last_are_kept_within_a_limit():
    kept, made = ByGrid(max_patches=10), []

    def get(height, width):
        grid = (height, width)
        make = lambda: made.append(grid) or torch.zeros(height * width, 1)  # noqa: E731
        assert len(kept.get(grid, None, 0, make)) == height * width

    for grid in [(2, 2), (2, 3), (2, 2), (1, 4), (2, 2), (2, 3), (4, 4), (4, 4)]:
        get(*grid)
    # (1, 4) drives out (2, 3), which comes back; (4, 4) is too large to be kept.
    assert made == [(2, 2), (2, 3), (1, 4), (2, 3), (4, 4), (4, 4)]


def test_no_image_has_no_rows():
    none = torch.empty(0, 3)
    assert rows_of_images([], lambda grid: torch.zeros(1, 3), none) is none


class Work(TorchDispatchMode):
    """Counts the operations of a call, and the copies for which the host waits."""

    def __init__(self):
        super().__init__()
        self.num_waits, self.ops = 0, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        self.ops[name] += 1
        if name == "_to_copy" and args[0].device != found.device:
            self.num_waits += not kwargs.get("non_blocking", False)
        self.num_waits += name in ("_local_scalar_dense", "nonzero", "item")
        return found


def test_a_vision_call_on_a_gpu_waits_for_nothing_but_the_first_constants():
    config = tiny_config()
    grids = [(8, 8)] * 4
    pixels = np.zeros((256, 3, 14, 14), np.uint8)
    with torch.no_grad(), fake_gpu():
        with torch.device("meta"):
            model = KimiVL(config)
        for module in model.modules():
            for name, each in module.named_parameters(recurse=False):
                there = torch.empty(each.shape, dtype=torch.bfloat16, device="cuda")
                module.register_parameter(name, nn.Parameter(there, requires_grad=False))
        calls = [Work() for _ in range(3)]
        for call in calls:
            with call:
                model.encode_images(to_device(pixels, torch.device("cuda")), grids)
    assert [call.num_waits for call in calls] == [1, 0, 0]
    for call in calls[1:]:
        assert not {"upsample_bicubic2d", "polar", "arange", "cat"} & call.ops.keys()
        assert call.ops["_varlen_attn"] == config.vision.num_hidden_layers
