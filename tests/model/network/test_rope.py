import pytest
import torch

from model.network.rope import patch_rotation, text_inv_freq, text_rotation, vision_inv_freq


def test_text_frequencies_are_the_published_ones():
    inv_freq = text_inv_freq(64, 800000.0)
    assert inv_freq.shape == (32,)
    assert inv_freq[0] == 1.0
    torch.testing.assert_close(inv_freq[-1].item(), 1.91153e-6, rtol=1e-5, atol=0)


def test_vision_frequencies_are_the_published_ones():
    inv_freq = vision_inv_freq(72)
    assert inv_freq.shape == (18,)
    assert inv_freq[0] == 1.0
    torch.testing.assert_close(inv_freq[1].item(), 0.5995, rtol=1e-4, atol=0)
    torch.testing.assert_close(inv_freq[-1].item(), 10000 ** (-68 / 72), rtol=1e-5, atol=0)


def test_interleaved_pairs_turn_as_complex_numbers_up_to_the_permutation():
    x = torch.randn(5, 3, 8)
    positions = torch.arange(5) * 7
    turned = text_rotation(positions, 8, 10000.0, torch.float32).interleaved(x)

    angles = positions[:, None] * text_inv_freq(8, 10000.0)
    complex_pairs = torch.view_as_complex(x.unflatten(-1, (4, 2)))
    expected = complex_pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), -1))


def test_interleaved_and_halves_agree_after_reordering_the_input():
    x = torch.randn(4, 2, 6)
    rotation = text_rotation(torch.arange(4), 6, 100.0, torch.float32)
    de_interleaved = torch.cat((x[..., 0::2], x[..., 1::2]), -1)
    assert torch.equal(rotation.interleaved(x), rotation.halves(de_interleaved))


def test_patches_turn_by_column_in_even_pairs_and_by_row_in_odd_pairs():
    height, width, head_dim = 2, 3, 8
    x = torch.randn(2 * height * width, 1, head_dim)
    rotation = patch_rotation([(height, width)] * 2, head_dim, x.device)
    turned = rotation(x)

    inv_freq = vision_inv_freq(head_dim).tolist()
    for patch in range(len(x)):
        row, column = divmod(patch % (height * width), width)
        for pair in range(head_dim // 2):
            position = column if pair % 2 == 0 else row
            angle = torch.tensor(position * inv_freq[pair // 2])
            real, imaginary = x[patch, 0, 2 * pair], x[patch, 0, 2 * pair + 1]
            expected = torch.stack(
                (
                    real * angle.cos() - imaginary * angle.sin(),
                    imaginary * angle.cos() + real * angle.sin(),
                )
            )
            torch.testing.assert_close(turned[patch, 0, 2 * pair : 2 * pair + 2], expected)


def test_bfloat16_activations_do_not_round_the_angles():
    far = torch.tensor([100_001])
    exact = text_rotation(far, 64, 800000.0, torch.float32)
    rounded = text_rotation(far, 64, 800000.0, torch.bfloat16)
    assert torch.equal(rounded.cos, exact.cos.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_turn_the_same_in_parts_and_at_once(dtype):
    grids = [(20, 14), (2, 2)]  # more than a part, and no multiple of one
    x = torch.randn(284, 3, 8).to(dtype)
    rotation = patch_rotation(grids, 8, x.device)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (4, 2)))
    expected = torch.view_as_real(pairs * rotation.turns[:, None]).flatten(-2).to(dtype)
    assert torch.equal(rotation(x), expected)
