"""High dynamic range to an 8-bit picture, at the final size and in floating point.

    stored --> linear light in cd/m2 --> curve --> BT.709 primaries --> sRGB code values

Light up to half of the reference white stays as it is; what is brighter is bent towards white,
which is reached at 1000 cd/m2. Colours outside of BT.709 are clipped. Reference white is 203 cd/m2
(ITU-R BT.2408, section 2).
"""

from functools import cache

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorTrc
from numpy.typing import NDArray

_PQ, _HLG = int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)
_WHITE = 203.0  # cd/m2
_PEAK = 1000.0  # cd/m2
_KNEE = 0.5  # of the reference white
# ITU-R BT.2087, section 4: linear BT.2020 to linear BT.709.
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    dtype=np.float32,
)


def is_hdr(frame: VideoFrame) -> bool:
    """Whether the frame's values are coded for more than the range of a plain screen."""
    return frame.color_trc in (_PQ, _HLG)


def to_sdr(rgb: NDArray[np.uint16], transfer: int) -> NDArray[np.uint8]:
    """Turn [H, W, 3] BT.2020 code values of 16 bits into sRGB of 8 bits."""
    light = _light_of(transfer)[rgb]
    bright = light.max(axis=-1, keepdims=True)
    bent = light * (_bend(bright) / np.maximum(bright, 1e-6))  # the hue stays
    return _encode(bent @ _TO_BT709.T)


@cache
def _light_of(transfer: int) -> NDArray[np.float32]:
    """[65536] the light of each code value, 1 for the reference white."""
    code = np.arange(1 << 16) / 65535
    if transfer == _PQ:  # SMPTE ST 2084, equation 4.1
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = code ** (1 / m2)
        light = 10_000.0 * (np.maximum(root - c1, 0.0) / (c2 - c3 * root)) ** (1 / m1)
    else:  # ARIB STD-B67 with the system gamma of 1.2 for 1000 cd/m2 (ITU-R BT.2100, table 5)
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
        light = _PEAK * scene**1.2
    return (light / _WHITE).astype(np.float32)


def _bend(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Equal up to the knee, then rising to 1 at the peak and no further."""
    room, reach = 1.0 - _KNEE, _PEAK / _WHITE - _KNEE
    over = np.clip(light - _KNEE, 0.0, reach)
    # x / (1 + slope x) rises like x at the knee, and is all the room at the reach.
    slope = (reach - room) / (reach * room)
    return np.where(light <= _KNEE, light, _KNEE + over / (1.0 + over * slope))


def _encode(light: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Linear light to code values (IEC 61966-2-1)."""
    clipped = np.clip(light, 0.0, 1.0)
    code = np.where(clipped <= 0.0031308, 12.92 * clipped, 1.055 * clipped ** (1 / 2.4) - 0.055)
    return (255.0 * code + 0.5).astype(np.uint8)
