"""The sizes of the MMDiT: what its parameters are. How it is computed is in `execution.py`."""

import dataclasses

from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.typing import PATCH


@dataclasses.dataclass(kw_only=True, slots=True)
class MMDiTConfig:
    """Sizes of the model; the defaults are HunyuanVideo's."""

    width: int = 3072
    num_heads: int = 24
    num_dual_layers: int = 20
    num_single_layers: int = 40
    mlp_ratio: float = 4.0
    latent_channels: int = 16
    text_width: int = 4096
    pooled_width: int = 768
    """Width of the pooled text embedding; 0 = the model takes none."""
    num_refiner_layers: int = 2
    rope_axes: tuple[int, int, int] = (16, 56, 56)
    """Head channels that turn with (t, h, w)."""
    rope_theta: float = 256.0
    guidance_embed: bool = False
    """Embed a guidance scale, as the public distilled checkpoint does; fed 1.0 unless told otherwise [D]."""
    audio: AudioAdapterConfig | None = None
    pose: PoseGuiderConfig | None = None

    @property
    def head_dim(self) -> int:
        """K."""
        return self.width // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of the blocks' MLPs."""
        return int(self.width * self.mlp_ratio)

    @property
    def patch_channels(self) -> int:
        """C of a packed batch: channels of a 1 x 2 x 2 patch."""
        return PATCH * PATCH * self.latent_channels

    def validate(self) -> None:
        """ValueError on sizes that do not fit together."""
        for name in ("width", "num_heads", "num_dual_layers", "latent_channels", "text_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("num_single_layers", "num_refiner_layers", "pooled_width"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 0")
        if self.width % self.num_heads:
            raise ValueError(f"model.width {self.width} is not a multiple of model.num_heads {self.num_heads}")
        if (
            len(self.rope_axes) != 3
            or sum(self.rope_axes) != self.head_dim
            or any(a % 2 or a < 2 for a in self.rope_axes)
        ):
            raise ValueError(
                f"model.rope_axes {tuple(self.rope_axes)} must be three even sizes that sum to width / num_heads ="
                f" {self.head_dim}"
            )
        for part in (self.audio, self.pose):
            if part is not None:
                part.validate()
