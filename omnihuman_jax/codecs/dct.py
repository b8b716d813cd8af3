"""A codec without weights: an orthonormal, causal 4 x 8 x 8 block transform that keeps its 48 lowest coefficients.

The first frame is cut into blocks of 8 x 8 pixels, each later group of 4 frames into blocks of 4 x 8 x 8. A block is
transformed by a DCT-II over time, rows, columns and colour; the DCT over (R, G, B) is an opponent-colour transform:
(1, 1, 1), (1, 0, -1), (1, -2, 1), each over its norm. A coefficient is (t, v, h, c): temporal, vertical and horizontal
frequency, opponent colour [D].

Which 48 are kept, and in which order, is one rule: lowest cost (1 + v)(1 + h)(1 + 4t)(1 + 5c) first, ties by (t, v, h,
c) itself. The cost is the inverse amplitude of a separable 1/f model of natural video. On the five sample clips at
about 7680 pixels a frame it keeps 30.9 dB; the 48 coefficients of most energy on those very clips would keep 31.0 dB.
Of the 48, 41 have t = 0 and 7 have t > 0.

Channel c means the same in every latent of a window where it can: a group's coefficients of t = 0 are halved, which
makes those of a still group equal to those of a single frame. A first latent has no motion; the 7 channels that hold t
> 0 in later latents hold there the 7 next coefficients of the same rule.

Channels are whitened in part: divided by their standard deviation to the power `WHITENING`. Fully white channels would
spend a flow-matching loss, which weighs all alike, on detail that hardly shows; as they are, the coarse picture leaves
the noise first and is learnt first [D].
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from omnihuman_jax.typing import SPATIAL_STRIDE, TEMPORAL_STRIDE, Array, latent_frames_of

LATENT_CHANNELS = 48

Frequency = tuple[int, int, int, int]

# Standard deviation of each channel before scaling, to two digits: geometric mean
# over the five sample clips (of talking heads, hands and a moving camera) at 25 fps and about 7680 pixels a frame.
_CHANNEL_STD = (
    *(6.0, 1.6, 1.5, 0.96, 0.79, 0.59, 0.71, 0.5, 0.41, 0.35, 0.39, 1.1, 0.27, 0.52, 0.45, 0.24),
    *(0.2, 0.17, 0.16, 0.34, 0.28, 0.13, 0.33, 0.14, 0.27, 0.21, 0.27, 0.24, 0.35, 0.26, 0.24, 0.19),
    *(0.26, 0.23, 0.15, 0.082, 0.15, 0.12, 0.19, 0.16, 0.21, 0.2, 0.12, 0.17, 0.099, 0.13, 0.15, 0.14),
)
# 1 would give every channel unit variance, 0 would keep the spectrum of the picture.
WHITENING = 0.6

# The same for the coefficients that only a first latent has.
_FIRST_ONLY_STD = (0.12, 0.15, 0.14, 0.12, 0.095, 0.092, 0.09)


def _cost(frequency: Frequency) -> int:
    t, v, h, c = frequency
    return (1 + v) * (1 + h) * (1 + 4 * t) * (1 + 5 * c)


def _by_cost(temporal: int) -> list[Frequency]:
    every = itertools.product(range(temporal), range(SPATIAL_STRIDE), range(SPATIAL_STRIDE), range(3))
    return sorted(every, key=lambda frequency: (_cost(frequency), frequency))


def group_frequencies() -> tuple[Frequency, ...]:
    """(t, v, h, c) of each channel of a latent that covers 4 frames."""
    return tuple(_by_cost(TEMPORAL_STRIDE)[:LATENT_CHANNELS])


def first_frequencies() -> tuple[Frequency, ...]:
    """(0, v, h, c) of each channel of a window's first latent, which covers 1 frame."""
    group = group_frequencies()
    further = (frequency for frequency in _by_cost(1) if frequency not in group)
    return tuple(frequency if frequency[0] == 0 else next(further) for frequency in group)


def _dct(size: int) -> np.ndarray:
    """Orthonormal DCT-II, row k = basis function of frequency k."""
    k, x = np.arange(size)[:, None], np.arange(size)[None]
    basis = np.sqrt(2 / size) * np.cos(np.pi * (x + 0.5) * k / size)
    basis[0] /= math.sqrt(2)
    return basis


def _basis(frequencies: tuple[Frequency, ...], temporal: int) -> np.ndarray:
    """Orthonormal rows [C, temporal, 8, 8, 3] of the coefficients `frequencies`, float64."""
    time, space, colour = _dct(temporal), _dct(SPATIAL_STRIDE), _dct(3)
    return np.stack([np.einsum("t,i,j,c->tijc", time[t], space[v], space[h], colour[c]) for t, v, h, c in frequencies])


def group_basis() -> np.ndarray:
    """Orthonormal rows [48, 4, 8, 8, 3] of a group of 4 frames, float64."""
    return _basis(group_frequencies(), TEMPORAL_STRIDE)


def first_basis() -> np.ndarray:
    """Orthonormal rows [48, 1, 8, 8, 3] of a single frame, float64."""
    return _basis(first_frequencies(), 1)


def _whitening(std: Array) -> np.ndarray:
    """Divisors of channels of standard deviation `std`: the latents' own have geometric mean 1 over the channels."""
    mean = np.exp(np.mean(np.log(_CHANNEL_STD)))
    return np.asarray(std, np.float64) ** WHITENING * mean ** (1 - WHITENING)


def first_scale() -> np.ndarray:
    """What a single frame's coefficients are divided by, [48] float64."""
    further = iter(_FIRST_ONLY_STD)
    std = [std if f[0] == 0 else next(further) for std, f in zip(_CHANNEL_STD, group_frequencies(), strict=True)]
    return _whitening(np.array(std))


def group_scale() -> np.ndarray:
    """What a group's coefficients are divided by, [48] float64: twice a frame's where t = 0, so that still means
    equal.
    """
    still = np.array([frequency[0] == 0 for frequency in group_frequencies()])
    return np.where(still, 2.0, 1.0) * _whitening(np.array(_CHANNEL_STD))


@functools.cache
def matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Analysis and synthesis tensors (first, group), float32 and scaled."""
    column = (slice(None), None, None, None, None)
    first, group = first_basis(), group_basis()
    by_first, by_group = first_scale()[column], group_scale()[column]
    tensors = (first / by_first, group / by_group, first * by_first, group * by_group)
    return tuple(tensor.astype(np.float32) for tensor in tensors)


# HIGHEST: the default precision of a TPU's matrix unit would leave three digits of an exact transform.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _analyse(frames: jax.Array, tensor: np.ndarray) -> jax.Array:
    """[..., n * t, H, W, 3] and [C, t, 8, 8, 3] -> [..., n, H / 8, W / 8, C]."""
    *batch, count, height, width, colours = frames.shape
    t, s = tensor.shape[1], SPATIAL_STRIDE
    blocks = frames.reshape(*batch, count // t, t, height // s, s, width // s, s, colours)
    return _einsum("...taibjc,ktijc->...abk", blocks, tensor)


def _synthesise(latents: jax.Array, tensor: np.ndarray) -> jax.Array:
    """The adjoint of `_analyse`."""
    *batch, count, height, width, _ = latents.shape
    t, s = tensor.shape[1], SPATIAL_STRIDE
    blocks = _einsum("...abk,ktijc->...taibjc", latents, tensor)
    return blocks.reshape(*batch, count * t, height * s, width * s, 3)


def _encoded(video_THW3: jax.Array) -> jax.Array:
    first, group, _, _ = matrices()
    latents = _analyse(video_THW3[..., :1, :, :, :], first)
    if video_THW3.shape[-4] == 1:
        return latents
    return jnp.concatenate([latents, _analyse(video_THW3[..., 1:, :, :, :], group)], axis=-4)


def _decoded(latents_FHWC: jax.Array) -> jax.Array:
    _, _, first, group = matrices()
    video = _synthesise(latents_FHWC[..., :1, :, :, :], first)
    if latents_FHWC.shape[-4] == 1:
        return video
    return jnp.concatenate([video, _synthesise(latents_FHWC[..., 1:, :, :, :], group)], axis=-4)


@dataclass(frozen=True, slots=True)
class DctCodec:
    """The codec as the `VideoCodec` that everyone calls: `encode`, `decode`, pure and compiled."""

    name: ClassVar[str] = "dct"
    sha256: ClassVar[Mapping[str, str]] = {}
    options: ClassVar[Mapping[str, Any]] = {}
    latent_channels: ClassVar[int] = LATENT_CHANNELS
    mesh: Mesh | None = None

    def over(self, mesh: Mesh) -> "DctCodec":
        """See `VideoCodec.over`."""
        return DctCodec(mesh)

    @functools.partial(jax.jit, static_argnums=0)
    def encode(self, video_THW3: Array) -> jax.Array:
        """Latents of one window.

        Args:
            video_THW3: float32 [..., 1 + 4n, H, W, 3], range [-1, 1], H and W multiples of 8; leading dims are batch.

        Returns:
            float32 [..., 1 + n, H / 8, W / 8, 48], about zero mean and unit variance in each channel on natural video.

        Raises:
            ValueError: the frames are not 1 + 4n, or not RGB, or a side is not a multiple of 8.
        """
        video = jnp.asarray(video_THW3, jnp.float32)
        if video.ndim < 4 or video.shape[-1] != 3:
            raise ValueError(f"a video is [..., frames, height, width, 3], not {video.shape}")
        frames, height, width = video.shape[-4:-1]
        latent_frames_of(frames)
        if height % SPATIAL_STRIDE or width % SPATIAL_STRIDE or not height or not width:
            raise ValueError(f"height {height} and width {width} must be multiples of {SPATIAL_STRIDE}")
        return self._shared(_encoded)(video)

    @functools.partial(jax.jit, static_argnums=0)
    def decode(self, latents_FHWC: Array) -> jax.Array:
        """Frames of one window: the inverse of `encode` up to the coefficients that it drops.

        Args:
            latents_FHWC: float32 [..., 1 + n, H / 8, W / 8, 48].

        Returns:
            float32 [..., 1 + 4n, H, W, 3], about [-1, 1] but not clipped, so that `encode(decode(x)) == x` for every x.

        Raises:
            ValueError: the last dim is not 48.
        """
        latents = jnp.asarray(latents_FHWC, jnp.float32)
        if latents.ndim < 4 or latents.shape[-1] != LATENT_CHANNELS or latents.shape[-4] < 1:
            raise ValueError(
                f"latents of this codec are [..., 1 + n, height, width, {LATENT_CHANNELS}], not {latents.shape}"
            )
        return self._shared(_decoded)(latents)

    def _shared(self, function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        if self.mesh is None:
            return function
        axes = P(self.mesh.axis_names)
        return jax.shard_map(function, mesh=self.mesh, in_specs=axes, out_specs=axes)
