"""High dynamic range -> an 8-bit picture, at the final size and in floating point.

    stored values --> linear light --> tone curve --> BT.709 primaries --> sRGB code values

The tone curve keeps light up to half of the reference white as it is. It compresses brighter light
so that 1000 cd/m2 become white. Colours outside of BT.709 are clipped. The reference white is
203 cd/m2 (ITU-R BT.2408, section 2).
"""

from functools import cache

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorTrc
from numpy.typing import NDArray

HDR_TRANSFERS = _PQ, _HLG = int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)
_WHITE = 203.0  # reference white, cd/m2
_PEAK = 1000.0  # the light that becomes white, cd/m2
_KNEE = 0.5  # where the tone curve leaves the identity, in units of the reference white
# ITU-R BT.2087, section 4: linear BT.2020 to linear BT.709.
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    dtype=np.float32,
)


def is_hdr(frame: VideoFrame) -> bool:
    """Whether the frame is coded for high dynamic range (PQ or HLG)."""
    return frame.color_trc in HDR_TRANSFERS


def to_sdr(rgb: NDArray[np.uint16], transfer: int) -> NDArray[np.uint8]:
    """Turn BT.2020 code values of 16 bits into sRGB code values of 8 bits, both [H, W, 3].

    `transfer` is FFmpeg's number of the transfer function, PQ or HLG.
    """
    light = _light_of(transfer)[rgb]  # [H, W, 3]
    brightest = light.max(axis=-1, keepdims=True)  # [H, W, 1]
    # One factor for the three channels of a pixel keeps its hue.
    toned = light * (_tone(brightest) / np.maximum(brightest, 1e-6))
    return _encode(toned @ _TO_BT709.T)


@cache
def _light_of(transfer: int) -> NDArray[np.float32]:
    """[65536] the linear light of each 16-bit code value; 1 is the reference white."""
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


def _tone(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """The tone curve: the identity up to the knee, then rising to 1 at the peak and no further."""
    max_output, max_input = 1.0 - _KNEE, _PEAK / _WHITE - _KNEE  # both above the knee
    over = np.clip(light - _KNEE, 0.0, max_input)
    # x / (1 + c x) has the slope 1 at x = 0, and with this c it is max_output at max_input.
    c = (max_input - max_output) / (max_input * max_output)
    return np.where(light <= _KNEE, light, _KNEE + over / (1.0 + over * c))


def _encode(light: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn linear light into sRGB code values (IEC 61966-2-1)."""
    clipped = np.clip(light, 0.0, 1.0)
    code = np.where(clipped <= 0.0031308, 12.92 * clipped, 1.055 * clipped ** (1 / 2.4) - 0.055)
    return (255.0 * code + 0.5).astype(np.uint8)
