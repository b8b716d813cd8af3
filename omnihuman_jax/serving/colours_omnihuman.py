"""High dynamic range and wide gamuts, brought to what a usual screen shows (sRGB). numpy alone.

A picture here is RGB code values in [0, 1]. PQ and HLG carry light beyond a usual screen's white; ITU-R BT.2408 puts
the white of paper at 203 cd/m2. Up to three quarters of that every grey keeps its own light; above, highlights of up to
1000 cd/m2 are bent into what is left, and more is white.
"""

import functools

import numpy as np

# Code points of ITU-T H.273, which every container and codec uses.
LINEAR, PQ, HLG = 8, 16, 18
BT2020, DCI_P3, DISPLAY_P3 = 9, 11, 12

REFERENCE_WHITE_NITS = 203.0
PEAK_NITS = 1000.0
_KNEE = 0.75
_GAMMA = 2.4  # BT.1886: what television screens do, for gamuts of the usual dynamic range
_STEPS = 4096

_TO_BT709 = {
    BT2020: ((1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349), (-0.018151, -0.100579, 1.118730)),
    DISPLAY_P3: ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274)),
}
"""Linear RGB of these primaries -> linear RGB of BT.709, both under D65."""
_TO_BT709[DCI_P3] = _TO_BT709[DISPLAY_P3]


def needs_conversion(transfer: int, primaries: int) -> bool:
    """Whether a usual screen would show these code values wrongly as they are."""
    return transfer in (LINEAR, PQ, HLG) or primaries in _TO_BT709


def to_srgb(picture: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """uint8 sRGB [H, W, 3] of float32 RGB code values in [0, 1] of that transfer and those primaries (H.273)."""
    if transfer in (PQ, HLG) and primaries not in _TO_BT709:
        primaries = BT2020  # the only primaries that their standards know; often left untagged
    light = _lookup(_decoding(transfer), picture)
    if transfer == HLG:
        light = _hlg_display(light)
    if primaries in _TO_BT709:
        light = np.maximum(light @ np.asarray(_TO_BT709[primaries], np.float32).T, 0.0)
    if transfer in (PQ, HLG):
        light = _tone_mapped(light)
        codes = _lookup(_encoding(srgb=True), np.sqrt(light))
    else:
        codes = _lookup(_encoding(srgb=transfer == LINEAR), np.sqrt(np.minimum(light, 1.0)))
    return np.rint(codes * 255.0).astype(np.uint8)


def _lookup(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`table`, sampled evenly over [0, 1], at `values`; its steps are below a quarter of one of 255."""
    return table[np.rint(np.clip(values, 0.0, 1.0) * (len(table) - 1)).astype(np.int32)]


@functools.cache
def _decoding(transfer: int) -> np.ndarray:
    """Code value -> light; of PQ and HLG in units of the reference white, before HLG's system gamma."""
    code = np.linspace(0.0, 1.0, 16 * _STEPS)
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = code ** (1 / m2)
        light = (np.maximum(power - c1, 0.0) / (c2 - c3 * power)) ** (1 / m1) * 10_000 / REFERENCE_WHITE_NITS
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    elif transfer == LINEAR:
        light = code
    else:
        light = code**_GAMMA
    return light.astype(np.float32)


def _hlg_display(scene: np.ndarray) -> np.ndarray:
    """Light of a screen of 1000 cd/m2 (BT.2100: system gamma 1.2), in units of the reference white."""
    luma = scene @ np.asarray((0.2627, 0.6780, 0.0593), np.float32)
    return scene * (np.maximum(luma, 1e-9) ** 0.2)[..., None] * np.float32(PEAK_NITS / REFERENCE_WHITE_NITS)


def _tone_mapped(light: np.ndarray) -> np.ndarray:
    """Linear [0, 1]: the brightest of a pixel's three is bent, the others follow, so that its hue stays."""
    brightest = light.max(axis=-1, keepdims=True)
    peak = (PEAK_NITS / REFERENCE_WHITE_NITS - _KNEE) / (1 - _KNEE)
    above = np.clip((brightest - _KNEE) / (1 - _KNEE), 0.0, peak)
    # Reinhard's curve, extended so that `peak` comes out as 1: slope 1 at the knee.
    bent = _KNEE + (1 - _KNEE) * above * (1 + above / peak**2) / (1 + above)
    scale = np.where(brightest > _KNEE, bent / np.maximum(brightest, 1e-9), 1.0)
    return np.minimum(light * scale, 1.0)


@functools.cache
def _encoding(srgb: bool) -> np.ndarray:
    """Square root of the light (which gives the shadows their share of the steps) -> code value."""
    light = np.linspace(0.0, 1.0, _STEPS) ** 2
    if srgb:
        codes = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    else:
        codes = light ** (1 / _GAMMA)
    return codes.astype(np.float32)
