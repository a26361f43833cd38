import dataclasses

import numpy as np
import pytest
from PIL import Image

from model.config import ImageConfig
from model.inputs.images import image_patches, image_size, on_background
from model.inputs.prompt import PromptError

CONFIG = ImageConfig(in_token_limit=4096, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))


def limited(in_token_limit):
    return dataclasses.replace(CONFIG, in_token_limit=in_token_limit)


def noise(width_px, height_px):
    rng = np.random.default_rng(width_px * 10_000 + height_px)
    return rng.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


# Input, limit, resized, padded, grid (h, w), patches, tokens of the published processor.
SIZES = [
    ((196, 196), 4096, (196, 196), (196, 196), (14, 14), 196, 49),
    ((336, 336), 4096, (336, 336), (336, 336), (24, 24), 576, 144),
    ((640, 480), 4096, (640, 480), (644, 504), (36, 46), 1656, 414),
    ((896, 896), 4096, (896, 896), (896, 896), (64, 64), 4096, 1024),
    ((897, 897), 4096, (897, 897), (924, 924), (66, 66), 4356, 1089),
    ((1280, 720), 4096, (1202, 676), (1204, 700), (50, 86), 4300, 1075),
    ((1920, 1080), 4096, (1196, 672), (1204, 672), (48, 86), 4128, 1032),
    ((1792, 1792), 4096, (896, 896), (896, 896), (64, 64), 4096, 1024),
    ((3840, 2160), 4096, (1196, 672), (1204, 672), (48, 86), 4128, 1032),
    ((4032, 3024), 4096, (1034, 775), (1036, 784), (56, 74), 4144, 1036),
    ((1, 1), 4096, (1, 1), (28, 28), (2, 2), 4, 1),
    ((640, 360), 4096, (640, 360), (644, 364), (26, 46), 1196, 299),
    ((448, 252), 4096, (448, 252), (448, 252), (18, 32), 576, 144),
    ((196, 196), 16384, (196, 196), (196, 196), (14, 14), 196, 49),
    ((336, 336), 16384, (336, 336), (336, 336), (24, 24), 576, 144),
    ((640, 480), 16384, (640, 480), (644, 504), (36, 46), 1656, 414),
    ((896, 896), 16384, (896, 896), (896, 896), (64, 64), 4096, 1024),
    ((897, 897), 16384, (897, 897), (924, 924), (66, 66), 4356, 1089),
    ((1280, 720), 16384, (1280, 720), (1288, 728), (52, 92), 4784, 1196),
    ((1920, 1080), 16384, (1920, 1080), (1932, 1092), (78, 138), 10764, 2691),
    ((1792, 1792), 16384, (1792, 1792), (1792, 1792), (128, 128), 16384, 4096),
    ((3840, 2160), 16384, (2392, 1345), (2408, 1372), (98, 172), 16856, 4214),
    ((4032, 3024), 16384, (2069, 1551), (2072, 1568), (112, 148), 16576, 4144),
    ((1, 1), 16384, (1, 1), (28, 28), (2, 2), 4, 1),
    ((240, 160), 64, (140, 93), (140, 112), (8, 10), 80, 20),
]


@pytest.mark.parametrize(
    ("given", "limit", "resized", "padded", "grid_hw", "num_patches", "num_tokens"),
    [pytest.param(*row, id=f"{row[0][0]}x{row[0][1]} at {row[1]}") for row in SIZES],
)
def test_sizes_are_those_of_the_published_processor(
    given, limit, resized, padded, grid_hw, num_patches, num_tokens
):
    width_px, height_px = given
    size = image_size(width_px, height_px, limited(limit))
    assert (size.width_px, size.height_px) == resized
    assert (size.padded_width_px, size.padded_height_px) == padded
    assert size.grid_hw == grid_hw
    assert size.num_patches == num_patches
    assert size.num_tokens == num_tokens


def test_images_are_never_enlarged_and_padded_by_less_than_a_token():
    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 5000, (300, 2)).tolist():
        size = image_size(width, height, CONFIG)
        assert size.width_px <= width
        assert size.height_px <= height
        assert 0 <= size.padded_width_px - size.width_px < 28
        assert 0 <= size.padded_height_px - size.height_px < 28
        assert size.padded_width_px == size.grid_hw[1] * 14
        assert size.padded_height_px == size.grid_hw[0] * 14


def test_a_thin_image_may_pass_the_soft_limit():
    size = image_size(7140, 120, CONFIG)
    assert size.grid_hw == (10, 510)
    assert size.num_patches == 5100 > CONFIG.in_token_limit


@pytest.mark.parametrize(
    ("width", "height"),
    [
        pytest.param(7141, 40, id="one pixel too wide"),
        pytest.param(40, 7141, id="one pixel too high"),
        pytest.param(100_000, 1, id="a line"),
        pytest.param(1_000_000, 14, id="shrunk to a line"),
    ],
)
def test_a_side_of_512_patches_is_refused(width, height):
    with pytest.raises(PromptError, match="fewer than 512") as caught:
        image_size(width, height, CONFIG)
    assert caught.value.code == "bad_prompt"
    assert f"{width}x{height}" in caught.value.message


def test_a_side_of_510_patches_is_the_longest():
    assert image_size(6000, 40, CONFIG).grid_hw == (4, 430)
    assert image_size(7140, 40, CONFIG).grid_hw == (4, 510)
    assert image_size(40, 7140, CONFIG).grid_hw == (510, 4)


def test_a_side_never_shrinks_below_one_pixel():
    size = image_size(14 * 1000, 14, limited(4))
    assert (size.width_px, size.height_px) == (885, 1)
    patches, grid_hw = image_patches(noise(14 * 1000, 14), limited(4))
    assert grid_hw == size.grid_hw == (2, 64)
    assert patches.shape == (128, 3, 14, 14)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0), (-1, 5)])
def test_an_image_without_pixels_is_refused(width, height):
    with pytest.raises(PromptError, match=f"{width}x{height}"):
        image_size(width, height, CONFIG)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 16, 64, 100, 144, 256, 1000, 1024])
def test_max_tokens_is_kept_after_padding(max_tokens):
    shapes = [(640, 360), (360, 640), (1920, 1080), (897, 897), (28, 28), (1, 1), (7000, 30)]
    for width, height in shapes:
        size = image_size(width, height, CONFIG, max_tokens)
        assert 1 <= size.num_tokens <= max_tokens
        assert size.width_px <= width
        assert size.height_px <= height


def test_max_tokens_takes_the_largest_size_of_the_shape():
    """Compare with the simplest way, which tries every length of the longer side."""
    for width, height, max_tokens in [(640, 360, 144), (360, 641, 50), (333, 500, 7), (700, 9, 3)]:
        longest = max(width, height)
        fitting = [
            side
            for side in range(1, longest + 1)
            if -(-max(1, width * side // longest) // 28)
            * -(-max(1, height * side // longest) // 28)
            <= max_tokens
        ]
        size = image_size(width, height, CONFIG, max_tokens)
        assert max(size.width_px, size.height_px) == max(fitting)
    assert image_size(640, 360, CONFIG, 144).grid_hw == (18, 32)


def test_max_tokens_leaves_what_fits_alone():
    assert image_size(640, 360, CONFIG, 299) == image_size(640, 360, CONFIG)
    assert image_size(640, 360, CONFIG, 298) != image_size(640, 360, CONFIG)


def test_max_tokens_below_one_is_refused():
    with pytest.raises(ValueError, match="max_tokens=0"):
        image_size(640, 360, CONFIG, 0)


def test_patches_are_row_major_and_channel_first():
    image = noise(70, 45)
    padded = np.zeros((56, 84, 3), np.uint8)
    padded[:45, :70] = image
    expected = [
        [[[padded[row * 14 + y, column * 14 + x, channel] for x in range(14)] for y in range(14)]
         for channel in range(3)]
        for row in range(4)
        for column in range(6)
    ]  # fmt: skip
    patches, grid_hw = image_patches(image, CONFIG)
    assert grid_hw == (4, 6)
    assert patches.dtype == np.uint8
    assert patches.flags.c_contiguous
    np.testing.assert_array_equal(patches, expected)


def test_padding_is_black_and_at_the_right_and_the_bottom():
    patches, grid_hw = image_patches(np.full((1, 1, 3), 255, np.uint8), CONFIG)
    assert grid_hw == (2, 2)
    assert patches[0, :, 0, 0].tolist() == [255, 255, 255]
    assert patches.sum() == 3 * 255


def test_a_large_image_is_resized_by_bicubic_before_it_is_padded():
    image = noise(240, 160)
    patches, grid_hw = image_patches(image, limited(64))
    resized = np.asarray(Image.fromarray(image).resize((140, 93), Image.Resampling.BICUBIC))
    back = patches.reshape(*grid_hw, 3, 14, 14).transpose(0, 3, 1, 4, 2).reshape(112, 140, 3)
    np.testing.assert_array_equal(back[:93], resized)
    assert not back[93:].any()


def test_max_tokens_bounds_the_patches():
    patches, grid_hw = image_patches(noise(240, 160), CONFIG, max_tokens=20)
    assert len(patches) == grid_hw[0] * grid_hw[1] <= 80


def test_a_view_that_is_not_contiguous_is_cut_like_its_copy():
    image = noise(120, 120)[::2, ::-1]
    for config in (CONFIG, limited(4)):
        expected = image_patches(image.copy(), config)[0]
        np.testing.assert_array_equal(image_patches(image, config)[0], expected)


def test_a_read_only_array_is_left_as_it_was():
    image = noise(30, 30)
    image.flags.writeable = False
    patches, _ = image_patches(image, CONFIG)
    assert patches.flags.writeable


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_pil_images_of_eight_bits_are_cut_as_their_rgb(mode):
    image = Image.fromarray(noise(40, 30)).convert(mode)
    expected = image_patches(np.asarray(image.convert("RGB")), CONFIG)[0]
    np.testing.assert_array_equal(image_patches(image, CONFIG)[0], expected)


@pytest.mark.parametrize(("alpha", "red"), [(0, 255), (128, 132), (255, 10)])
def test_white_shows_through_a_transparent_image(alpha, red):
    image = Image.new("RGBA", (28, 28), (10, 20, 30, alpha))
    patches, _ = image_patches(image, CONFIG)
    assert patches[0, 0, 5, 5] == pytest.approx(red, abs=1)


@pytest.mark.parametrize("transparency", [b"\x00\x80", 0], ids=["by entry", "one entry"])
def test_white_shows_through_a_transparent_entry_of_a_palette(transparency):
    image = Image.new("P", (28, 28), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (14, 0, 28, 28))
    image.info["transparency"] = transparency
    patches, _ = image_patches(image, CONFIG)
    assert patches[0, :, 5, 5].tolist() == [255, 255, 255]
    red = 147 if transparency else 40  # entry 1 is half transparent, or not at all
    assert patches[1, 0, 5, 5] == pytest.approx(red, abs=1)


def test_without_a_background_the_colours_under_the_transparency_show():
    image = Image.new("RGBA", (28, 28), (10, 20, 30, 0))
    assert on_background(image, None).getpixel((5, 5)) == (10, 20, 30)
    assert on_background(image, "#0000ff").getpixel((5, 5)) == (0, 0, 255)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_pil_images_of_more_bits_are_refused_by_mode(mode):
    with pytest.raises(PromptError, match=f"mode {mode} ") as caught:
        image_patches(Image.new(mode, (28, 28)), CONFIG)
    assert caught.value.code == "bad_prompt"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        pytest.param(np.zeros((4, 4), np.uint8), r"\[4, 4\] uint8", id="no channels"),
        pytest.param(np.zeros((4, 4, 4), np.uint8), r"\[4, 4, 4\] uint8", id="four channels"),
        pytest.param(np.zeros((4, 4, 3), np.float32), "float32", id="floats"),
        pytest.param(np.zeros((1, 4, 4, 3), np.uint8), r"\[1, 4, 4, 3\]", id="a batch"),
        pytest.param([[0]], "list", id="a list"),
    ],
)
def test_arrays_that_are_not_rgb_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        image_patches(array, CONFIG)


def test_an_empty_array_is_refused():
    with pytest.raises(PromptError, match="0x4"):
        image_patches(np.zeros((4, 0, 3), np.uint8), CONFIG)
