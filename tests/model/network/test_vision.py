import pytest
import torch

from model.config import VisionConfig
from model.network.vision import PositionTable, merge_patches, runs_of_equal_grids
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
