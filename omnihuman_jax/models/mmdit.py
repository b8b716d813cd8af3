"""The MMDiT in HunyuanVideo's layout [D], with OmniHuman's reference, motion, audio and pose inputs [S].

Everyone else calls three functions and keeps parameters as a plain nested dict:
`abstract_params` (shapes and logical axes, nothing allocated), `init_params`, `apply`. Blocks are stacked along a
leading `layers` axis (`dual_blocks/...`, `single_blocks/...`, `text_refiner/blocks/...`) and run by a scan.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from omnihuman_jax.conditions import Condition, clean_mask
from omnihuman_jax.models.audio_adapter import AudioAdapter
from omnihuman_jax.models.blocks import Context, DualBlock, SingleBlock, TextRefiner, scan, stack
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.models.layers import MLP, Linear, Modulation, TimestepEmbedder, look_up, modulate, one_hot, zeros
from omnihuman_jax.models.mmdit_config import MMDiTConfig
from omnihuman_jax.models.pose_guider import PoseGuider
from omnihuman_jax.models.rope import rotation
from omnihuman_jax.sharding import constrain
from omnihuman_jax.typing import Batch, Params


class MMDiT(nnx.Module):
    """Velocity of the packed tokens; see `apply`."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        config.validate()
        self.patch_channels, self.text_width, self.pooled_width = (
            config.patch_channels,
            config.text_width,
            config.pooled_width,
        )
        self.rope_axes, self.rope_theta = tuple(config.rope_axes), config.rope_theta
        width = config.width
        self.patch_embed = Linear(rngs, (config.patch_channels,), (width,), ("features", "embed"))
        self.time = TimestepEmbedder(rngs, width)
        self.guidance = TimestepEmbedder(rngs, width) if config.guidance_embed else None
        pooled_axes = ("features", "mlp", "embed")
        self.pooled = MLP(rngs, config.pooled_width, width, width, "silu", pooled_axes) if config.pooled_width else None
        self.text_refiner = TextRefiner(config, rngs)
        self.audio_adapter = AudioAdapter(config.audio, rngs) if config.audio else None
        self.pose_guider = PoseGuider(config.pose, width, rngs) if config.pose else None
        self.dual_blocks = stack(DualBlock, config, config.num_dual_layers, rngs)
        self.single_blocks = stack(SingleBlock, config, config.num_single_layers, rngs)
        self.final_modulation = Modulation(rngs, width, 2)  # scale, then shift: HunyuanVideo's order here
        self.proj_out = Linear(rngs, (width,), (config.patch_channels,), ("embed", "features"), init=zeros)

    def __call__(
        self,
        tokens_BLC: jax.Array,
        t_BG: jax.Array,
        batch: Batch,
        *,
        execution: ExecutionConfig,
        dtype: DTypeLike,
        guidance: float | jax.Array,
    ) -> jax.Array:
        self._check(tokens_BLC, t_BG, batch)
        video_ids_BL, text_ids_BS = jnp.asarray(batch.segment_ids_BL), jnp.asarray(batch.text_segment_ids_BS)
        text_BSD = self.text_refiner(jnp.asarray(batch.text_BSE), text_ids_BS, t_BG, dtype, execution)
        video_BLD = self.patch_embed(jnp.asarray(tokens_BLC).astype(dtype))
        if self.pose_guider is not None:
            video_BLD = video_BLD + self.pose_guider(batch, dtype)
        video_BLD = constrain(video_BLD, "batch", "tokens", None)
        rows = 2 * t_BG.shape[1]
        clean_BL = jnp.asarray(clean_mask(batch)).astype(jnp.int32)
        context = Context(
            rotation=rotation(jnp.asarray(batch.positions_BL3), self.rope_axes, self.rope_theta),
            video_ids_BL=video_ids_BL,
            text_ids_BS=text_ids_BS,
            embedding_BRD=self._embedding(t_BG, batch, guidance),
            # Padding (id 0) has a negative row: no modulation, gates closed.
            video_rows_BLR=one_hot(jnp.where(video_ids_BL > 0, 2 * (video_ids_BL - 1) + clean_BL, -1), rows),
            text_rows_BSR=one_hot(jnp.where(text_ids_BS > 0, 2 * (text_ids_BS - 1), -1), rows),
            audio=self.audio_adapter(batch, dtype) if self.audio_adapter is not None else None,
            strategy=execution.attention,
        )

        def run(block: DualBlock | SingleBlock, streams: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            video, text = block(*streams, context)
            return constrain(video, "batch", "tokens", None), constrain(text, "batch", None, None)

        streams = (video_BLD, constrain(text_BSD, "batch", None, None))
        streams = scan(self.dual_blocks, streams, run, execution.remat)
        video_BLD, _ = scan(self.single_blocks, streams, run, execution.remat)
        table = self.final_modulation(context.embedding_BRD)
        scale, shift = (look_up(context.video_rows_BLR, table[:, :, i]) for i in (0, 1))
        return self.proj_out(modulate(video_BLD, shift, scale)).astype(jnp.float32)

    def _embedding(self, t_BG: jax.Array, batch: Batch, guidance: float | jax.Array) -> jax.Array:
        """float32 [B, 2G, D]: conditioning of the noisy (2g) and the clean (2g + 1) tokens of each window."""
        noisy_BGD, clean_BGD = self.time(t_BG), self.time(jnp.zeros_like(t_BG))
        if self.guidance is not None:
            # Noisy rows only, as HunyuanVideo's image-to-video form has it for its clean tokens.
            noisy_BGD = noisy_BGD + self.guidance(jnp.broadcast_to(jnp.asarray(guidance, jnp.float32), t_BG.shape))
        both_BG2D = jnp.stack([noisy_BGD, clean_BGD], axis=2)
        if self.pooled is not None:
            both_BG2D = both_BG2D + self.pooled(jnp.asarray(batch.pooled_BGE).astype(jnp.float32))[:, :, None]
        return both_BG2D.reshape(t_BG.shape[0], 2 * t_BG.shape[1], -1)

    def _check(self, tokens_BLC: jax.Array, t_BG: jax.Array, batch: Batch) -> None:
        found = {"channels of a patch token": (self.patch_channels, tokens_BLC.shape[-1])}
        found["text width"] = (self.text_width, batch.text_BSE.shape[-1])
        found["window slots in t_BG"] = (batch.active_BG4.shape[1], t_BG.shape[1])
        if self.pooled is not None:
            found["pooled text width"] = (self.pooled_width, batch.pooled_BGE.shape[-1])
        wrong = [f"{name}: {has} instead of {wants}" for name, (wants, has) in found.items() if has != wants]
        if wrong:
            raise ValueError(f"the batch does not fit the model: {'; '.join(wrong)}")


def init_params(config: MMDiTConfig, key: jax.Array) -> Params:
    """Freshly initialised parameters as a plain nested dict of float32 arrays; jit it with `out_shardings` to shard it.

    Modulation, the output projection and every addition's last layer start at zero (adaLN-Zero; additions that are
    exactly absent until trained).
    """
    return nnx.to_pure_dict(nnx.state(MMDiT(config, nnx.Rngs(params=key)), nnx.Param))


def abstract_params(config: MMDiTConfig) -> tuple[Params, Params]:
    """(shapes, axes): two trees like `init_params`', of `jax.ShapeDtypeStruct` and of tuples of logical axes.

    Allocates nothing. `axes` leaves are tuples: map over both with `is_leaf=lambda x: isinstance(x, tuple)`.
    """
    shapes: Params = {}
    axes: Params = {}
    for path, variable in nnx.to_flat_state(_abstract(config)[1]):
        shape = variable.get_value()
        logical = tuple(variable.get_metadata("logical_axes"))
        if len(shape.shape) == len(logical) + 1:
            logical = ("layers", *logical)
        assert len(logical) == len(shape.shape), (path, logical, shape.shape)
        for tree, leaf in ((shapes, jax.ShapeDtypeStruct(shape.shape, shape.dtype)), (axes, logical)):
            node = tree
            for name in path[:-1]:
                node = node.setdefault(str(name), {})
            node[str(path[-1])] = leaf
    return shapes, axes


def apply(
    config: MMDiTConfig,
    params: Params,
    tokens_BLC: jax.Array,
    t_BG: jax.Array,
    batch: Batch,
    *,
    execution: ExecutionConfig | None = None,
    dtype: DTypeLike = jnp.float32,
    guidance: float | jax.Array = 1.0,
) -> jax.Array:
    """Velocity eps - z_0 of every packed token [SIB].

    Args:
        config: of the model that `params` belong to.
        params: as `init_params` gives them, float32.
        tokens_BLC: patch tokens as the model sees them: noisy on noisy video tokens, clean where `clean_mask(batch)`
            holds.
        t_BG: float32 in [0, 1], diffusion time of each window slot (any finite value for empty slots).
        batch: the packed batch; audio and pose arrays are read only if the model has those branches.
        execution: how it is computed; None: the defaults.
        dtype: of the blocks' computation; norms, softmax and modulation stay float32.
        guidance: scale that a model with `guidance_embed` is told, a number or [B, G].

    Returns:
        float32 [B, L, C]. Defined on noisy tokens; finite everywhere.
    """
    graphdef, _ = _abstract(config)
    execution = execution or ExecutionConfig()
    execution.validate()
    model = nnx.merge(graphdef, params)
    return model(tokens_BLC, t_BG, batch, execution=execution, dtype=dtype, guidance=guidance)


ADDED = tuple(c.label for c in Condition if c.label in {field.name for field in dataclasses.fields(MMDiTConfig)})
"""Conditions with parameters of their own, beside those of the base model: a field of the config each."""


def condition_group(path: tuple[str, ...]) -> str:
    """One of `ADDED` for a parameter that only that condition uses, `base` for all others."""
    for name in path:
        for label in ADDED:
            if str(name).startswith(label + "_"):
                return label
    return "base"


def _abstract(config: MMDiTConfig) -> tuple[Any, Any]:
    """Structure and abstract state of the model; cached on the config's contents, which may change under its owner."""
    return _abstract_of(Frozen(repr(config), config))


class Frozen(NamedTuple):
    """A config that hashes and compares by what it says."""

    text: str
    config: MMDiTConfig

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frozen) and self.text == other.text

    def __ne__(self, other: object) -> bool:
        return not self == other


@functools.lru_cache(maxsize=16)
def _abstract_of(frozen: Frozen) -> tuple[Any, Any]:
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):  # a structure, whatever mesh is set
        module = nnx.eval_shape(lambda: MMDiT(frozen.config, nnx.Rngs(params=0)))
    return nnx.split(module)
