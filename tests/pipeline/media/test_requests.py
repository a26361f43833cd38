"""Several requests for one video: decoded once, and each as it would be alone."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.media.display import DisplayTransform, FrameRequest
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.status import ErrorCode
from tests.clips import make_video
from tests.pipeline.decoding import decode_media, decode_video


def small(width_px, height_px, num_frames):
    return width_px // 2, height_px // 2


def by_number(width_px, height_px, num_frames):
    """Make frames smaller the more there are, as a budget of tokens does."""
    return max(8, width_px // num_frames), max(8, height_px // num_frames)


REQUESTS = [
    FrameRequest(sampling=FrameSampling(num_frames=1)),
    FrameRequest(sampling=FrameSampling(num_frames=4), fit=small),
    FrameRequest(sampling=FrameSampling(num_frames=8), fit=small),
    FrameRequest(sampling=FrameSampling(num_frames=8)),
    FrameRequest(sampling=FrameSampling(num_frames=None, fps=2.0), fit=by_number),
    FrameRequest(sampling=FrameSampling(num_frames=3, keyframes_only=True)),
]


def require_same(together, alone):
    for frames, expected in zip(together, alone, strict=True):
        assert frames.rgb.shape == expected.rgb.shape
        assert (frames.rgb == expected.rgb).all()
        assert (frames.timestamps_s == expected.timestamps_s).all()
        assert frames.facts == expected.facts


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("matroska", "libvpx-vp9"), ("mpegts", "mpeg2video"), ("avi", "mpeg4")],
)
def test_each_request_gets_the_pixels_that_it_would_have_alone(container, codec):
    video = make_video(container, codec, numbers=range(40))

    together = decode_video(video, REQUESTS, span_s=(0.5, 3.5))

    alone = [
        decode_video(video, request.sampling, fit=request.fit, span_s=(0.5, 3.5))
        for request in REQUESTS
    ]
    require_same(together, alone)
    assert len({frames.rgb.shape for frames in together}) == 6


def test_frames_that_stand_for_lost_ones_do_so_for_each_request():
    """The second half of the file is gone; the last frame that is left stands for all of it."""
    video = make_video("matroska", numbers=range(40))
    video = video[: len(video) * 6 // 10]
    samplings = [FrameSampling(num_frames=number) for number in (1, 2, 3, 7, 16)]

    together = decode_video(video, [FrameRequest(sampling=each) for each in samplings])

    require_same(together, [decode_video(video, each) for each in samplings])


def test_a_frame_is_drawn_once_for_each_size(monkeypatch):
    rendered = []
    render = DisplayTransform.render

    def counted_render(self, frame, reformatter):
        rendered.append((self.width_px, frame.pts))
        return render(self, frame, reformatter)

    monkeypatch.setattr(DisplayTransform, "render", counted_render)
    video = make_video(numbers=range(40))

    decode_video(video, [REQUESTS[2], REQUESTS[3], REQUESTS[3], REQUESTS[2]])

    assert len(rendered) == 2 * 8
    assert len(set(rendered)) == len(rendered)


def test_an_animation_serves_several_requests():
    shades = [Image.new("RGB", (40, 20), (shade, 0, 0)) for shade in range(0, 240, 24)]
    file = io.BytesIO()
    shades[0].save(file, "GIF", save_all=True, append_images=shades[1:], duration=100)

    together = decode_media(file.getvalue(), REQUESTS)

    assert [len(frames.rgb) for frames in together] == [1, 4, 8, 8, 2, 3]
    assert together[1].rgb.shape[1:] == (10, 20, 3)
    require_same(together, [decode_media(file.getvalue(), [request])[0] for request in REQUESTS])


def test_the_frames_of_all_requests_together_are_limited():
    video = make_video(numbers=range(20), size=(64, 48))
    requests = [FrameRequest(sampling=FrameSampling(num_frames=4))] * 3
    frame_bytes = 64 * 48 * 3

    enough = MediaLimits(max_rgb_bytes=12 * frame_bytes)
    assert len(decode_video(video, requests, limits=enough)) == 3
    with pytest.raises(MediaError, match="bytes of other frames, the limit is") as caught:
        decode_video(video, requests, limits=MediaLimits(max_rgb_bytes=12 * frame_bytes - 1))
    assert caught.value.code == ErrorCode.MEDIA_TOO_LARGE


def test_the_decoding_process_serves_the_same_requests():
    video = make_video(numbers=range(40))
    decoder = SandboxedDecoder()
    try:
        together = decoder.decode(video, REQUESTS, span_s=(0.0, 3.0))
    finally:
        decoder.close()

    require_same(together, decode_video(video, REQUESTS, span_s=(0.0, 3.0)))
    assert all(isinstance(frames.rgb, np.ndarray) for frames in together)
