"""What the rest of the system asks of a video codec, and the codecs there are.

A codec maps a window of 1 + 4n frames to 1 + n latents, causally: latent i sees frames 0 .. 4i and no later one, so
that the first latent of a window is the latent of its first frame alone and an image is a window of one frame [S].
"""

from typing import Protocol, runtime_checkable

import jax

from omnihuman_jax.models.dct_codec import DctCodec
from omnihuman_jax.typing import Array


@runtime_checkable
class VideoCodec(Protocol):
    """A causal 4 x 8 x 8 codec with pure methods, which may be called under `jax.jit`."""

    @property
    def name(self) -> str:
        """What `load_codec` takes; recorded beside the latents that the codec made."""

    @property
    def latent_channels(self) -> int:
        """C of the latents."""

    def encode(self, video_THW3: Array) -> jax.Array:
        """Latents of one window, encoded whole and alone.

        Args:
            video_THW3: float32 [..., 1 + 4n, H, W, 3], range [-1, 1], H and W multiples of 8; leading dims are batch.

        Returns:
            float32 [..., 1 + n, H / 8, W / 8, C], about zero mean and unit variance in each channel.
        """

    def decode(self, latents_FHWC: Array) -> jax.Array:
        """The frames of one window: float32 [..., 1 + 4n, H, W, 3], not clipped to [-1, 1]."""


def load_codec(name_or_dir: str) -> VideoCodec:
    """The codec called `name_or_dir`; ValueError names those that exist."""
    if name_or_dir == DctCodec.name:
        return DctCodec()
    raise ValueError(f"unknown codec {name_or_dir!r}; there is {DctCodec.name!r} (a fixed block transform without weights)")
