"""Pose: keypoints -> heatmaps at the token grid -> features of adjacent frames -> an addition to the patch embedding
[S].

Stacking pose tokens with the noise latent along channels before a linear patch embedding is the same as adding a second
patch embedding, so a zero-initialised one leaves pretrained weights intact [D]. Absent means absent: inactive windows,
reference and padding tokens get exactly zero, which an empty heatmap is not.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from omnihuman_jax import segments
from omnihuman_jax.conditions import Condition
from omnihuman_jax.models.layers import MLP, Linear, normal, zeros
from omnihuman_jax.sharding import constrain
from omnihuman_jax.typing import PATCH, TEMPORAL_STRIDE, Batch

MAX_SAMPLES = 16  # the pixels of a token's side


@dataclasses.dataclass(kw_only=True, slots=True)
class PoseGuiderConfig:
    """Sizes of the pose branch."""

    keypoints: int = 75
    """J of keypoints_BTJ3."""
    width: int = 256
    """Features of one frame at one token."""
    neighbours: int = 1
    """Frames on each side of a latent frame's own that are concatenated."""
    sigma: float = 0.5
    """Radius of a keypoint's bump in the heatmap, in tokens (16 pixels)."""
    samples: int = PATCH
    """Points along a token's side at which the heatmap is read; 2 are the latent's own pixels, 16 the picture's. A
    bump of a radius below a point's width may lie between all of them."""

    @property
    def frames(self) -> int:
        """P: pose frames of a latent frame."""
        return TEMPORAL_STRIDE + 2 * self.neighbours

    def validate(self) -> None:
        """ValueError on sizes that no model can have."""
        for name in ("keypoints", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.pose.{name} is {getattr(self, name)}; it must be at least 1")
        if self.neighbours < 0:
            raise ValueError(f"model.pose.neighbours is {self.neighbours}; it must be at least 0")
        if not self.sigma > 0:
            raise ValueError(f"model.pose.sigma is {self.sigma} tokens; it must be positive")
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise ValueError(f"model.pose.samples is {self.samples}; it must be 1 to {MAX_SAMPLES}, a pixel each")


def heatmaps(keypoints: jax.Array, y: jax.Array, x: jax.Array, sigma: float, samples: int = PATCH) -> jax.Array:
    """Heatmaps at the latent grid, or a finer or coarser one, patchified: what every token sees of every keypoint.

    Args:
        keypoints: float32 [..., J, 3]: x, y in tokens from the corner of the grid, confidence in [0, 1].
        y, x: [...] index of the token in its grid; it covers [y, y + 1) x [x, x + 1).
        sigma: in tokens.

    Returns:
        float32 [..., samples * samples * J], confidence x Gaussian at the centres of the token's samples x samples
        cells, in the order (row, column, keypoint): with 2, that of the latent's own pixels and channels.
    """
    centres = (jnp.arange(samples, dtype=jnp.float32) + 0.5) / samples
    point_x, point_y, confidence = keypoints[..., 0], keypoints[..., 1], keypoints[..., 2]

    def near(at: jax.Array, point: jax.Array) -> jax.Array:
        return jnp.exp(-0.5 * jnp.square((at[..., None] + centres)[..., None] - point[..., None, :]) / sigma**2)

    rows, columns = near(y.astype(jnp.float32), point_y), near(x.astype(jnp.float32), point_x)
    maps = rows[..., :, None, :] * (columns * confidence[..., None, :])[..., None, :, :]
    return maps.reshape(*maps.shape[:-3], -1)


class PoseGuider(nnx.Module):
    """Keypoints of a window -> what its video tokens' patch embeddings get added."""

    def __init__(self, config: PoseGuiderConfig, width: int, rngs: nnx.Rngs):
        self.keypoints, self.frames = config.keypoints, config.frames
        self.sigma, self.samples = config.sigma, config.samples
        in_width = config.samples**2 * config.keypoints
        # Of all the heatmaps a token sees a handful that are not near zero: scaled by their number, as weights usually
        # are, the features would be too faint for the zero-initialised embedding to be heard beside the patch
        # embedding.
        axes = ("features", "mlp", "features")
        self.mlp = MLP(rngs, in_width, config.width, config.width, "gelu", axes, init_in=normal(1.0))
        self.embed = Linear(
            rngs, (config.frames, config.width), (width,), (None, "features", "embed"), bias=False, init=zeros
        )

    def __call__(self, batch: Batch, dtype: DTypeLike) -> jax.Array:
        """[B, L, D] in `dtype`; zero where pose is inactive."""
        keypoints_BTJ3 = jnp.asarray(batch.keypoints_BTJ3).astype(jnp.float32)
        index_BFP = jnp.asarray(batch.pose_index_BFP)
        frame_BL = jnp.asarray(batch.frame_BL)
        if keypoints_BTJ3.shape[2] != self.keypoints or index_BFP.shape[-1] != self.frames:
            raise ValueError(
                f"model.pose takes {self.keypoints} keypoints and {self.frames} frames a latent frame (4 + 2 *"
                f" neighbours); the batch has {keypoints_BTJ3.shape[2]} and {index_BFP.shape[-1]}"
            )
        # Gathers of input data: nothing here is differentiated, so they have no backward pass.
        index_BLP = jnp.take_along_axis(index_BFP, jnp.maximum(frame_BL, 0)[..., None], axis=1)
        seen_BLP = (index_BLP >= 0) & (frame_BL >= 0)[..., None]
        points_BLPJ3 = jax.vmap(lambda points, index: points[index])(keypoints_BTJ3, jnp.maximum(index_BLP, 0))
        positions = jnp.asarray(batch.positions_BL3)
        y_BL1, x_BL1 = positions[..., 1, None], positions[..., 2, None]
        maps = heatmaps(points_BLPJ3, y_BL1, x_BL1, self.sigma, self.samples).astype(dtype)
        features = self.mlp(constrain(maps, "batch", "tokens", None, None))
        features = jnp.where(seen_BLP[..., None], features, jnp.zeros((), dtype))
        active_BG = jnp.asarray(batch.active_BG4)[..., Condition.POSE].astype(bool)
        active_BL = segments.of_window(active_BG, jnp.asarray(batch.segment_ids_BL))
        return jnp.where((active_BL & seen_BLP.any(-1))[..., None], self.embed(features), jnp.zeros((), dtype))
