"""What the rest of the system asks of a video codec, and the codecs there are.

A codec maps a window of 1 + 4n frames to 1 + n latents; latent i covers frame 0 (i = 0) or frames 4i-3 .. 4i, and an
image is a window of one frame [S]. What latent i may have *seen* differs:

- `dct` and Wan 2.1's autoencoder are strictly causal: no frame after 4i. The first latent of a window is that of its
  first frame alone, and the first two are those of its motion frames, up to rounding.
- HunyuanVideo's is causal but for the statistics of its group norms, which pool over a stretch of (by default) 17
  frames. Nothing later shows in a latent, but its scale depends on it a little: the first 2 latents of a window and
  those of its first 5 frames alone differ. Training sees the former, sampling starts a segment from the latter [D].
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from omnihuman_jax.codecs.dct import DctCodec
from omnihuman_jax.codecs.vae_codec import load_vae
from omnihuman_jax.typing import Array


@runtime_checkable
class VideoCodec(Protocol):
    """A 4 x 8 x 8 codec. `encode` and `decode` are compiled, once a shape: call them as they are."""

    @property
    def name(self) -> str:
        """What `load_codec` takes; recorded beside the latents that the codec made."""

    @property
    def sha256(self) -> Mapping[str, str]:
        """File name -> sha256 of each file that it is made of; empty without any."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What `load_codec` takes besides the name; recorded too."""

    @property
    def latent_channels(self) -> int:
        """C of the latents."""

    def over(self, mesh: Mesh) -> "VideoCodec":
        """The same codec, whose `encode` and `decode` take one leading dim and share it among all devices of a mesh: a
        multiple of their number, the first windows for the first device. Each computes what it would alone.
        """

    def encode(self, video_THW3: Array) -> jax.Array:
        """Latents of one window, encoded whole and alone.

        Args:
            video_THW3: float32 [..., 1 + 4n, H, W, 3], range [-1, 1], H and W multiples of 8; leading dims are batch.

        Returns:
            float32 [..., 1 + n, H / 8, W / 8, C], about zero mean and unit variance in each channel.
        """

    def decode(self, latents_FHWC: Array) -> jax.Array:
        """The frames of one window: float32 [..., 1 + 4n, H, W, 3], about [-1, 1]; only some codecs clip to it."""


def load_codec(name_or_dir: str, options: Mapping[str, Any] | None = None) -> VideoCodec:
    """The codec called `dct`, or the autoencoder in a folder of diffusers' layout or on the hub.

    Args:
        name_or_dir: `dct`, a folder, or a hub id.
        options: of that codec; the rest keep their defaults. `dct` has none.

    Raises:
        FileNotFoundError: neither a codec's name nor a folder.
        ValueError: an option that the codec does not have, or what `load_vae` refuses.
    """
    if name_or_dir != DctCodec.name:
        try:
            return load_vae(name_or_dir, options or {})
        except FileNotFoundError as error:
            raise FileNotFoundError(f"codec {error}; or {DctCodec.name!r}, a block transform without weights") from None
    if options:
        raise ValueError(f"codec options {', '.join(options)}: {DctCodec.name} has none")
    return DctCodec()


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`["tile_height=0", "dtype=float32"]` as a dict of numbers and names; ValueError for what is no pair."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals or not value:
            raise ValueError(f"codec option {pair!r}: give NAME=VALUE, such as tile_height=0")
        options[name] = int(value) if value.lstrip("-").isdigit() else value
    return options
