"""The sizes of the MMDiT, and what its blocks may keep for the backward pass."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from omnihuman_jax.attention.dispatch import AttentionStrategy
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.typing import PATCH

BLOCK_INPUT = "block_input"
"""Name (`jax.ad_checkpoint.checkpoint_name`) of the streams that go into a block."""

_policies = jax.checkpoint_policies


def _offloaded(*names: str) -> Callable[..., Any]:
    return _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst="pinned_host",
    )


REMAT_POLICIES: dict[str, Callable[..., Any]] = {
    "block": _policies.nothing_saveable,
    "attention": _policies.save_only_these_names("attention"),
    "dots": _policies.dots_with_no_batch_dims_saveable,
    "products": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names("attention")
    ),
    "block_offload": _offloaded(BLOCK_INPUT),
    "attention_offload": _offloaded(BLOCK_INPUT, "attention"),
}
"""What a block keeps for its backward pass beside its inputs: nothing, its attentions' outputs, its matrix products'
outputs, both ("none": all). `products` computes no matrix product twice, and keeps less than half of what `none` does.
With `_offload` what is kept, inputs included, waits in the host's memory: nothing of a block stays on the device."""


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
    remat: str = "block"
    """`none` or a key of `REMAT_POLICIES`."""
    attention: str = "auto"
    """`auto` or a key of `attention.IMPLEMENTATIONS`."""
    attention_block_q: int = 0
    """Queries in a block of the attention kernel; 0 = the kernel's own choice."""
    attention_block_kv: int = 0
    """Keys in a block of the attention kernel; 0 = the kernel's own choice."""
    attention_fused_backward: bool = False
    """On TPUs: one backward kernel of five products a block, instead of two of seven, for one or two GiB more memory.
    """
    context_parallel: str = "gather"
    """What the devices of the mesh's `context` axis exchange for attention: a key of `context_parallel.MODES`."""
    ulysses_ways: int = 0
    """Under `ulysses_ring`: devices that share out heads, a divisor of mesh.context."""

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

    @property
    def attention_strategy(self) -> AttentionStrategy:
        """How attention is computed and shared out."""
        return AttentionStrategy(
            kernel=self.attention,
            block_q=self.attention_block_q,
            block_kv=self.attention_block_kv,
            fused_backward=self.attention_fused_backward,
            context_parallel=self.context_parallel,
            ulysses_ways=self.ulysses_ways,
        )

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
        if self.remat != "none" and self.remat not in REMAT_POLICIES:
            raise ValueError(f"model.remat {self.remat!r} is none of none, {', '.join(REMAT_POLICIES)}")
        self.attention_strategy.validate()
        for part in (self.audio, self.pose):
            if part is not None:
                part.validate()
