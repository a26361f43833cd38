"""HEIC, AVIF and files that are no picture which is read: what their errors say."""

import struct
from dataclasses import replace

import numpy as np
import pytest

from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.media.pictures.formats import picture_format
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.status import ErrorCode
from tests.pipeline.decoding import decode_in, decode_media
from tests.pipeline.media.pictures.heif_files import coded_av1, coded_hevc, heif

ONE = FrameSampling(num_frames=1)
RAMP = np.dstack([np.mgrid[:128, :128][1] * 2] * 3).astype(np.uint8)
CODED = {"HEIC": coded_hevc(RAMP), "AVIF": coded_av1(RAMP)}


def refusal(content: bytes, **limits) -> MediaError:
    with pytest.raises(MediaError) as caught:
        decode_media(content, ONE, limits=MediaLimits(**limits))
    return caught.value


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"P6 1 1 255 abc", "a PNM picture"),
        (b"II\xbc" + bytes(50), "a JPEG XR picture"),
        (b"\x76\x2f\x31\x01" + bytes(50), "an OpenEXR picture"),
        (b"#?RADIANCE\n" + bytes(50), "a Radiance picture"),
        (b"qoif" + bytes(50), "a QOI picture"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(50), "a camera's raw file"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(50), "a camera's raw file"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's raw file"),
    ],
)
def test_a_picture_that_is_not_read_is_named(head, name):
    assert f"the file is {name}, which is not read" in refusal(head).message


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        (b"heic mif1", "HEIF"),
        (b"mif1 heic", "HEIF"),
        (b"mif1 avif", "AVIF"),
        (b"avis avif", "AVIF"),
        (b"msf1 avis", "AVIF"),
        (b"msf1 hevc", None),  # a track, which the video decoder reads
        (b"isom mp42", None),
        (b"qt   heic", None),
    ],
)
def test_brands_tell_pictures_from_videos(brands, kind):
    major, compatible = brands[:4], brands[-4:]
    head = struct.pack(">I4s4sI", 20, b"ftyp", major, 0) + compatible
    assert picture_format(head) == kind
    assert picture_format(head + bytes(1000)) == kind


@pytest.mark.parametrize("kind", CODED)
def test_tiles_are_one_picture_and_turned_as_one(kind):
    content = heif([CODED[kind]] * 4, columns=2, size=(240, 200), turns=1)
    frames = decode_media(content, ONE)
    assert frames.rgb.shape == (1, 240, 200, 3)
    assert (frames.facts.width_px, frames.facts.height_px) == (200, 240)
    assert frames.facts.codec == ("heif" if kind == "HEIC" else "avif")


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_corrupt(kind, share):
    content = heif([CODED[kind]] * 2, columns=2)
    assert refusal(content[: int(len(content) * share)]).code == ErrorCode.MEDIA_CORRUPT


@pytest.mark.parametrize("kind", CODED)
def test_a_picture_that_claims_many_pixels_is_refused_before_it_is_decoded(kind):
    content = heif([CODED[kind]])
    error = refusal(content, max_pixels=128 * 128 - 1)
    assert error.code == ErrorCode.MEDIA_TOO_LARGE
    assert "--max-pixels" in error.message


def test_a_tile_that_is_larger_than_its_file_says_is_refused():
    large = coded_hevc(np.zeros((512, 512, 3), np.uint8))
    assert refusal(heif([replace(large, rgb=RAMP)])).code == ErrorCode.MEDIA_CORRUPT


def test_a_codec_that_libheif_does_not_have_is_unsupported():
    content = (
        heif([CODED["AVIF"]]).replace(b"ftypavif", b"ftypheic").replace(b"miafavif", b"miafheic")
    )
    assert refusal(content).code == ErrorCode.MEDIA_UNSUPPORTED


@pytest.mark.parametrize("kind", CODED)
def test_a_decoding_process_decodes_them_and_names_memory_that_is_short(kind):
    side_px = 2048
    coded = coded_hevc if kind == "HEIC" else coded_av1
    content = heif([coded(np.zeros((side_px, side_px, 3), np.uint8))])
    decoder = SandboxedDecoder()
    small = SandboxedDecoder(MediaLimits(max_decode_bytes=48 << 20))
    try:
        frames = decode_in(decoder, content, ONE)
        assert frames.rgb.shape == (1, side_px, side_px, 3)
        with pytest.raises(MediaError, match="--max-decode-bytes") as caught:
            decode_in(small, content, ONE)
        assert caught.value.code == ErrorCode.MEDIA_TOO_LARGE
    finally:
        decoder.close()
        small.close()
