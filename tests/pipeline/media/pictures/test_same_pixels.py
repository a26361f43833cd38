"""What the model sees is what a viewer shows: pictures of all kinds against independent pixels."""

import numpy as np
import pytest

from tests.pipeline.media.pictures.made import KINDS, made, off
from tests.pipeline.media.pictures.making import smooth, turned

MOST = 3.0  # of 255, on average: what decoders of lossy formats may differ


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_decoded_as_a_viewer_shows_it(kind, number):
    picture = made(kind, number)
    assert off(picture) < MOST, picture.what


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_pictures_of_each_kind_are_decoded_as_a_viewer_shows_them(kind):
    pictures = (made(kind, number) for number in range(200))
    assert [picture.what for picture in pictures if off(picture) >= MOST] == []


def test_a_picture_that_is_turned_wrongly_is_far_off():
    """The measure can fail: each way to turn a picture differs from all others by far more."""
    square = smooth(np.random.default_rng(3), least=40, most=41).astype(float)
    ways = [turned(square, orientation) for orientation in range(1, 9)]
    for at, way in enumerate(ways):
        assert all(np.abs(way - other).mean() > 2 * MOST for other in ways[at + 1 :])
