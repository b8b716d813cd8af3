"""How a model is computed, never what it computes: what its blocks keep for the backward pass, and how attention runs.

No field of `ExecutionConfig` changes a parameter, and another value changes results by rounding only: so a resume may
change all of it, an export carries none of it, and `omnihuman plan` varies it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from omnihuman_jax.attention.dispatch import AttentionStrategy

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
class ExecutionConfig:
    """How the blocks are computed."""

    remat: str = "block"
    """`none` or a key of `REMAT_POLICIES`."""
    attention: AttentionStrategy = dataclasses.field(default_factory=AttentionStrategy)
    """Kernel, its blocks, and what the devices of the mesh's `context` axis exchange."""

    def validate(self) -> None:
        """ValueError on a value that nothing can be computed with."""
        if self.remat != "none" and self.remat not in REMAT_POLICIES:
            known = ", ".join(repr(name) for name in ("none", *REMAT_POLICIES))
            raise ValueError(f"execution.remat {self.remat!r} is unknown; it is one of {known}")
        self.attention.validate()
