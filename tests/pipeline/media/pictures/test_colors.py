"""Profiles: what they change, and that a broken one leaves the picture as it is."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.media.frame_sampling import FrameSampling
from tests.pipeline.decoding import decode_media
from tests.pipeline.media.pictures.icc_profiles import grey_profile, in_srgb, rgb_profile

ONE = FrameSampling(num_frames=1)
GREEN = (60, 200, 80)
P3 = rgb_profile("Display P3")


def shown(profile: bytes | None, mode: str = "RGB", kind: str = "PNG") -> list[int]:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), GREEN).convert(mode).save(file, kind, icc_profile=profile)
    return decode_media(file.getvalue(), ONE).rgb[0, 4, 4].tolist()


def test_a_profile_moves_colours_to_srgb():
    expected = in_srgb(np.array([[GREEN]]), "Display P3")[0, 0]
    assert shown(P3) == pytest.approx(expected, abs=1)
    assert max(abs(expected - np.array(GREEN))) > 20


def test_the_alpha_of_a_picture_with_a_profile_stays():
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (*GREEN, 0)).save(file, "PNG", icc_profile=P3)
    assert decode_media(file.getvalue(), ONE).rgb[0, 4, 4].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param(b"no profile at all", id="noise"),
        pytest.param(P3[:200], id="cut"),
        pytest.param(P3[:132] + bytes(len(P3) - 132), id="zeros after the header"),
        pytest.param(grey_profile(1.0), id="of grey, on colours"),
    ],
)
def test_a_broken_profile_or_one_of_other_colours_leaves_the_picture_as_it_is(profile):
    assert shown(profile) == list(GREEN)


def test_a_profile_of_colours_on_a_grey_picture_leaves_it_as_it_is():
    assert shown(P3, "L") == shown(None, "L")


def test_the_profile_of_srgb_changes_nothing():
    from PIL import ImageCms

    assert shown(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()) == list(GREEN)
