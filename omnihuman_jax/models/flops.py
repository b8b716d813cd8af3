"""Floating-point operations of the model, by formula.

XLA's own count sees the body of a scan over layers once and a Pallas kernel not at all. Here every weight is multiplied
with the rows of the stream that reads it, plus the attentions; element-wise work and table look-ups are left out, as is
usual. Rematerialised work is not counted: a share of the peak says how much of the machine served the model.
"""

import math
from typing import Any

from omnihuman_jax.models import mmdit
from omnihuman_jax.typing import PackedShape, Params

# One multiply-add is two operations.
MULTIPLY_ADD = 2


def count_parameters(shapes: Params) -> int:
    """Number of values in a tree of arrays or ShapeDtypeStructs."""
    return sum(count_parameters(leaf) if isinstance(leaf, dict) else math.prod(leaf.shape) for leaf in shapes.values())


def forward_flops(config: mmdit.MMDiTConfig, shape: PackedShape) -> int:
    """Operations of one forward pass over one packed sequence, attention over its whole length (padding included)."""
    shapes, _ = mmdit.abstract_params(config)
    linear = sum(
        MULTIPLY_ADD * _rows(path, shape) * math.prod(leaf.shape)
        for path, leaf in _leaves(shapes)
        if path[-1] == "kernel"
    )
    return linear + _attention_flops(config, shape)


def train_step_flops(config: mmdit.MMDiTConfig, shape: PackedShape, sequences: int) -> int:
    """Operations of a train step on `sequences` packed sequences: the backward pass costs twice the forward pass."""
    return 3 * sequences * forward_flops(config, shape)


def joint_attention_flops(config: mmdit.MMDiTConfig, shape: PackedShape) -> int:
    """Of `forward_flops`, the scores and weighted sums of the blocks' joint attention: what grows with the square of
    the length.
    """
    length, layers = shape.latent_tokens + shape.text_tokens, config.num_dual_layers + config.num_single_layers
    return 2 * MULTIPLY_ADD * layers * length * length * config.width


def _attention_flops(config: mmdit.MMDiTConfig, shape: PackedShape) -> int:
    """Scores and weighted sums: two products a query, key and channel."""
    layers, text = config.num_dual_layers + config.num_single_layers, shape.text_tokens
    other = config.num_refiner_layers * text * text * config.width
    if config.audio is not None:
        audio_tokens = shape.latent_frames * shape.audio_tokens
        other += layers * shape.latent_tokens * audio_tokens * config.audio.num_heads * config.audio.head_dim
    return joint_attention_flops(config, shape) + 2 * MULTIPLY_ADD * other


def _rows(path: tuple[str, ...], shape: PackedShape) -> int:
    """Rows of one sequence that a kernel is multiplied with."""
    video, text, windows = shape.latent_tokens, shape.text_tokens, shape.windows
    match path:
        case (_, *_, "audio_attention", "k" | "v", "kernel"):
            return shape.latent_frames * shape.audio_tokens
        case (_, *_, "audio_attention", _, "kernel") | ("patch_embed" | "proj_out", "kernel"):
            return video
        case ("text_refiner", "blocks", "modulation", *_) | ("text_refiner", "time" | "pooled", *_) | ("guidance", *_):
            return windows
        case ("text_refiner", *_):
            return text
        case ("time" | "pooled" | "final_modulation", *_) | (_, *_, "modulation", "linear", "kernel"):
            return 2 * windows
        case ("audio_adapter", *_):
            return shape.frames
        case ("pose_guider", "embed", *_):
            return video
        case ("pose_guider", *_):
            return video * shape.pose_frames
        case ("dual_blocks", "text", *_):
            return text
        case ("dual_blocks", *_):
            return video
        case ("single_blocks", *_):
            return video + text
    raise ValueError(f"flops: no rule for the parameter {'/'.join(path)}")


def _leaves(tree: Params, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    out: list[tuple[tuple[str, ...], Any]] = []
    for name, leaf in tree.items():
        out += _leaves(leaf, (*path, name)) if isinstance(leaf, dict) else [((*path, name), leaf)]
    return out
