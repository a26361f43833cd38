"""`Crop`: the rows and columns of stored pixels that a container tells players to cut off.

FFmpeg's own tools read it from MP4 (`clap`) and Matroska (`PixelCrop`), and apply it; its binding
for Python does not show it. What the video stream itself cuts off, FFmpeg cuts off in decoding.
"""

from dataclasses import dataclass

from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from pipeline.media.containers import boxes, matroska
from pipeline.media.containers.reader import Reader


@dataclass(frozen=True, kw_only=True)
class Crop:
    """How many pixels to cut off at each side, before anything is turned or resized."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def leaves_pixels(self, width_px: int, height_px: int) -> bool:
        """Whether pixels of a frame are cut off, and some are left."""
        sides = (self.left, self.top, self.right, self.bottom)
        return (
            any(sides)
            and min(sides) >= 0
            and self.left + self.right < width_px
            and self.top + self.bottom < height_px
        )


def crop_of(reader: Reader, container: InputContainer, stream: VideoStream) -> Crop:
    """Read how the pictures of a stream are cropped; a broken crop is ignored, as FFmpeg does."""
    place = reader.tell()  # where FFmpeg will read on
    sides = _sides(reader, container, stream)
    reader.seek(place)
    if sides is None:
        return Crop()
    left, top, right, bottom = sides
    crop = Crop(left=left, top=top, right=right, bottom=bottom)
    context = stream.codec_context
    return crop if crop.leaves_pixels(context.width, context.height) else Crop()


def _sides(
    reader: Reader, container: InputContainer, stream: VideoStream
) -> tuple[int, int, int, int] | None:
    kinds = container.format.name.split(",")
    if "mp4" in kinds:
        return boxes.clean_aperture(reader, stream.id)
    if "matroska" in kinds:
        # The k-th video stream is the k-th video track; FFmpeg lists attached pictures after them.
        videos = [each.index for each in container.streams.video if not is_cover(each)]
        return matroska.pixel_crop(reader, videos.index(stream.index))
    return None


def is_cover(stream: VideoStream) -> bool:
    """Whether a stream is a picture that is attached to the file, such as the cover of an album."""
    return bool(stream.disposition & Disposition.attached_pic)
