import numpy as np
import pytest

from model.config import ImageConfig
from model.inputs.images import image_patches, image_size
from pipeline.prompts.frame_view import FitFrames

HALF = (0.5, 0.5, 0.5)
PUBLISHED = ImageConfig(in_token_limit=4096, image_mean=HALF, image_std=HALF)


@pytest.mark.parametrize("max_frame_tokens", [None, 16, 144, 256])
def test_the_processor_need_not_resize_what_was_fitted(max_frame_tokens):
    fit = FitFrames(image=PUBLISHED, max_frame_tokens=max_frame_tokens)
    random = np.random.default_rng(0)
    sizes = [*random.integers(16, 4000, (200, 2)).tolist(), [3224, 567], [1280, 720], [14, 14]]
    for width_px, height_px in sizes:
        if max(width_px, height_px) > 15 * min(width_px, height_px):
            continue
        fitted = fit(width_px, height_px, 8)
        again = image_size(*fitted, PUBLISHED, max_frame_tokens)
        assert (again.width_px, again.height_px) == fitted
        assert again.num_tokens <= (max_frame_tokens or again.num_tokens)


def test_frames_share_the_tokens_of_a_row():
    fit = FitFrames(image=PUBLISHED, max_frame_tokens=256, max_row_tokens=1000)
    tokens = {
        num: image_size(*fit(1280, 720, num), PUBLISHED).num_tokens
        for num in (1, 4, 10, 1000, 5000)
    }
    assert 256 >= tokens[1] >= tokens[4] > 200
    assert 80 < tokens[10] <= 100
    assert tokens[1000] == tokens[5000] == 1


def test_a_fitted_frame_is_cut_as_it_is():
    width_px, height_px = FitFrames(image=PUBLISHED, max_frame_tokens=64)(1280, 720, 1)
    rgb = np.random.default_rng(0).integers(0, 255, (height_px, width_px, 3), dtype=np.uint8)
    patches, _ = image_patches(rgb, PUBLISHED, 64)
    assert np.array_equal(patches[0], rgb[:14, :14].transpose(2, 0, 1))
