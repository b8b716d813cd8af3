"""Windows in height and width: patches and their positions, the size of a video, and a picture or pose laid over it.

numpy alone, and no file beside this one: the trainer imports it from its package, an exported folder carries it as it
is. `windows_omnihuman.py` has the other dim, time.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np

SPATIAL_STRIDE = 8
PATCH = 2
TOKEN_STRIDE = SPATIAL_STRIDE * PATCH


def patchify(latents_FHWC: np.ndarray) -> np.ndarray:
    """[F, H, W, C] -> [F * H/2 * W/2, 4 C]: patch tokens, frame by frame, row by row; channels (row, column,
    channel).
    """
    frames, height, width, channels = latents_FHWC.shape
    if height % PATCH or width % PATCH:
        raise ValueError(
            f"latents of {height} x {width} do not split into {PATCH} x {PATCH} patches; make the sizes even"
        )
    patches = latents_FHWC.reshape(frames, height // PATCH, PATCH, width // PATCH, PATCH, channels)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, PATCH * PATCH * channels)


def unpatchify(tokens_LC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Inverse of `patchify` for latents of `height` x `width`: [L, 4 C] -> [F, H, W, C]."""
    per_frame = (height // PATCH) * (width // PATCH)
    if len(tokens_LC) % per_frame:
        raise ValueError(
            f"{len(tokens_LC)} tokens are no whole number of {height} x {width} latent frames of {per_frame} tokens"
        )
    channels = tokens_LC.shape[1] // PATCH**2
    patches = tokens_LC.reshape(-1, height // PATCH, width // PATCH, PATCH, PATCH, channels)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def token_positions(frames: int, height: int, width: int) -> np.ndarray:
    """int32 [F * H/2 * W/2, 3]: (t, h, w) of the patch tokens of latents of this size."""
    grid = np.meshgrid(np.arange(frames), np.arange(height // PATCH), np.arange(width // PATCH), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 3).astype(np.int32)


def fit_size(height: int, width: int, area: int) -> tuple[int, int]:
    """(height, width) in multiples of 16 of about `area` pixels and the aspect ratio of `height` x `width`.

    Of the sizes around the exact one it is the one with the least error of aspect plus error of area, both as
    logarithms; of equals (there often are some), the smaller. Never larger than the source, to within that rounding:
    pixels are not invented.
    """
    if height < TOKEN_STRIDE or width < TOKEN_STRIDE:
        raise ValueError(f"a picture of {height} x {width}: needs {TOKEN_STRIDE} pixels a side at least")
    area = min(area, height * width)
    scale = math.sqrt(area / (height * width)) / TOKEN_STRIDE

    def around(exact: float) -> set[int]:
        return {max(1, math.floor(exact)), math.ceil(exact)}

    def error(size: tuple[int, int]) -> tuple[float, int]:
        h, w = size[0] * TOKEN_STRIDE, size[1] * TOKEN_STRIDE
        return round(abs(math.log(h * width / (w * height))) + abs(math.log(h * w / area)), 6), h * w

    h, w = min(sorted(itertools.product(around(height * scale), around(width * scale))), key=error)
    return h * TOKEN_STRIDE, w * TOKEN_STRIDE


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """`size` itself; ValueError unless a video can have it."""
    if any(side < TOKEN_STRIDE or side % TOKEN_STRIDE for side in size):
        raise ValueError(f"--size {size[0]}x{size[1]}: height and width must be multiples of {TOKEN_STRIDE}")
    return size


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """How a source picture is laid over the video's: pixel (y, x) goes to (y * scale_y - top, x * scale_x - left)."""

    scale_y: float
    scale_x: float
    top: float
    left: float


def place(height: int, width: int, size: tuple[int, int]) -> Placement:
    """A picture of height x width over a video of `size`.

    Into the size that `fit_size` would choose for it, it is stretched as `encode` does it (no more than rounding to 16
    pixels asks for); into any other it is scaled to fill it, and what hangs over is cut off evenly.
    """
    scale_y, scale_x = size[0] / height, size[1] / width
    if fit_size(height, width, size[0] * size[1]) == size:
        return Placement(scale_y=scale_y, scale_x=scale_x, top=0.0, left=0.0)
    scale = max(scale_y, scale_x)
    return Placement(
        scale_y=scale, scale_x=scale, top=(height * scale - size[0]) / 2, left=(width * scale - size[1]) / 2
    )


def lay_picture(read: Callable[[tuple[int, int] | None], np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """A picture laid over a video of `size` (`place`): float32 [1, H, W, 3] in [-1, 1].

    `read`: (height, width), or None for the picture's own -> the picture at that size, uint8 [H, W, 3].
    """
    height, width = read(None).shape[:2]
    at = place(height, width, size)
    scaled = (max(size[0], round(height * at.scale_y)), max(size[1], round(width * at.scale_x)))
    picture = read(scaled)[round(at.top) :, round(at.left) :][: size[0], : size[1]]
    return (np.asarray(picture, np.float32) / 127.5 - 1.0)[None]


def lay_keypoints(keypoints_TJ3: np.ndarray, height: int, width: int, size: tuple[int, int]) -> np.ndarray:
    """Keypoints in pixels of pictures of height x width -> in tokens (16 pixels) of a video of `size`, laid over it
    like a picture; what was not found stays (0, 0, 0).
    """
    at = place(height, width, size)
    moved = keypoints_TJ3.copy()
    moved[..., 0] = (keypoints_TJ3[..., 0] * at.scale_x - at.left) / TOKEN_STRIDE
    moved[..., 1] = (keypoints_TJ3[..., 1] * at.scale_y - at.top) / TOKEN_STRIDE
    moved[keypoints_TJ3[..., 2] <= 0] = 0
    return moved
