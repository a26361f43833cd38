"""ICC profiles of three primaries or of grey, and what their colours are in sRGB, by arithmetic.

ICC.1:2010, with parametric curves of type 0; IEC 61966-2-1 for sRGB.
"""

import struct

import numpy as np

_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
PRIMARIES = {  # x and y of red, green and blue
    "sRGB": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    "Display P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    "Adobe RGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
}
_D65 = (0.3127, 0.3290)


def _xyz(xy: tuple[float, float]) -> np.ndarray:
    x, y = xy
    return np.array([x / y, 1.0, (1 - x - y) / y])


def to_d50(name: str) -> np.ndarray:
    """[3, 3] linear RGB -> XYZ, adapted to D50; columns are the primaries."""
    columns = np.stack([_xyz(xy) for xy in PRIMARIES[name]], axis=1)
    to_xyz = columns * np.linalg.solve(columns, _xyz(_D65))
    scale = (_BRADFORD @ np.array(_D50)) / (_BRADFORD @ _xyz(_D65))
    return np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD @ to_xyz


def _s15(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"Made\0" + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + _s15(*_D50),
        **tags,
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), bytes(4), 0x02400000, b"mntr", space, b"XYZ "
    )
    head += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _s15(*_D50)
    return head + bytes(128 - len(head)) + table + body


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(name: str, gamma: float = 2.2) -> bytes:
    """A profile of named primaries, the code values of which are light to the power 1 / gamma."""
    columns = to_d50(name).T
    tags = {
        b"%cXYZ" % c: b"XYZ " + bytes(4) + _s15(*xyz)
        for c, xyz in zip(b"rgb", columns, strict=True)
    }
    return _profile(b"RGB ", {**tags, **{b"%cTRC" % c: _curve(gamma) for c in b"rgb"}})


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)})


def in_srgb(rgb: np.ndarray, name: str, gamma: float = 2.2) -> np.ndarray:
    """[H, W, 3] uint8 code values of `rgb_profile` -> those of sRGB."""
    light = (rgb / 255.0) ** gamma
    return _encode(light @ (np.linalg.inv(to_d50("sRGB")) @ to_d50(name)).T)


def grey_in_srgb(grey: np.ndarray, gamma: float) -> np.ndarray:
    """[H, W] uint8 code values of `grey_profile` -> those of sRGB."""
    return _encode((grey / 255.0) ** gamma)


def _encode(light: np.ndarray) -> np.ndarray:
    light = light.clip(0.0, 1.0)
    code = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255.0 * code + 0.5).astype(np.uint8)
