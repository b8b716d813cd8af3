"""Audio: speech features -> the audio tokens of each latent frame -> a cross-attention in every block [S].

Absent means absent: a window whose audio is inactive, and every reference token, gets exactly zero from here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from omnihuman_jax import segments
from omnihuman_jax.attention.dispatch import AttentionStrategy, attention
from omnihuman_jax.conditions import Condition
from omnihuman_jax.models.layers import MLP, Linear, RMSNorm, layer_norm, look_up, normal, one_hot, param, zeros
from omnihuman_jax.sharding import constrain
from omnihuman_jax.typing import TEMPORAL_STRIDE, Batch


@dataclasses.dataclass(kw_only=True, slots=True)
class AudioAdapterConfig:
    """Sizes of the audio branch."""

    features: int = 2304
    """E of audio_BTE: width of the speech encoder times the number of its layers that are kept."""
    width: int = 3072
    """Width of an audio token [S: the model's]."""
    neighbours: int = 5
    """Frames on each side of a latent frame's own that it attends to [SIB: 5]."""
    num_heads: int = 24
    head_dim: int = 128

    @property
    def tokens(self) -> int:
        """A: audio tokens of a latent frame."""
        return TEMPORAL_STRIDE + 2 * self.neighbours

    def validate(self) -> None:
        """ValueError on sizes that no model can have."""
        for name in ("features", "width", "num_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.audio.{name} is {getattr(self, name)}; it must be at least 1")
        if self.neighbours < 0:
            raise ValueError(f"model.audio.neighbours is {self.neighbours}; it must be at least 0")


class AudioTokens(NamedTuple):
    """What the blocks' cross-attentions read."""

    tokens_BAE: jax.Array
    """[B, F * A, width]."""
    kv_ids_BA: jax.Array
    """Latent-frame slot of each audio token, -2 where there is none."""
    q_ids_BL: jax.Array
    """Latent-frame slot of each video token, -1 on reference and padding tokens."""
    gate_BL1: jax.Array
    """True on the tokens that audio may change."""


class AudioAdapter(nnx.Module):
    """Speech features -> audio tokens: an MLP on each frame, then each latent frame's frames and neighbours."""

    def __init__(self, config: AudioAdapterConfig, rngs: nnx.Rngs):
        self.tokens = config.tokens
        self.features = config.features
        self.mlp = MLP(rngs, config.features, config.width, config.width, "gelu", ("features", "mlp", "embed"))
        # [D] attention is blind to the order of its keys: an embedding of the place among the A frames tells it.
        self.position = param(rngs, (config.tokens, config.width), (None, "features"), normal(0.02))

    def __call__(self, batch: Batch, dtype: DTypeLike) -> AudioTokens:
        audio_BTE, index_BFA = jnp.asarray(batch.audio_BTE), jnp.asarray(batch.audio_index_BFA)
        frame_BL, segment_ids_BL = jnp.asarray(batch.frame_BL), jnp.asarray(batch.segment_ids_BL)
        if audio_BTE.shape[-1] != self.features or index_BFA.shape[-1] != self.tokens:
            raise ValueError(
                f"model.audio takes {self.features} features and {self.tokens} tokens a latent frame (4 + 2 *"
                f" neighbours); the batch has {audio_BTE.shape[-1]} and {index_BFA.shape[-1]}"
            )
        b, f, a = index_BFA.shape
        frames_BTE = layer_norm(self.mlp(audio_BTE.astype(dtype))).astype(dtype)
        picked = look_up(one_hot(index_BFA.reshape(b, f * a), audio_BTE.shape[1]), frames_BTE)
        tokens = picked.reshape(b, f, a, -1) + self.position[...].astype(dtype)
        kv_ids_BFA = jnp.where(index_BFA >= 0, jnp.arange(f)[:, None], -2)
        return AudioTokens(
            tokens_BAE=constrain(tokens.reshape(b, f * a, -1), "batch", None, None),
            kv_ids_BA=kv_ids_BFA.reshape(b, f * a),
            q_ids_BL=frame_BL,
            gate_BL1=_gate(index_BFA, frame_BL, segment_ids_BL, jnp.asarray(batch.active_BG4))[..., None],
        )


def _gate(index_BFA: jax.Array, frame_BL: jax.Array, segment_ids_BL: jax.Array, active_BG4: jax.Array) -> jax.Array:
    """bool [B, L]: video tokens of windows whose audio is active, in latent frames that have an audio token at all."""
    window_BL = segments.of_window(active_BG4[..., Condition.AUDIO].astype(bool), segment_ids_BL)
    heard_BF = (index_BFA >= 0).any(-1)
    heard_BL = jnp.take_along_axis(heard_BF, jnp.maximum(frame_BL, 0), axis=1)
    return jnp.asarray(window_BL) & heard_BL & (frame_BL >= 0)


class AudioCrossAttention(nnx.Module):
    """Video tokens attend to the audio tokens of their own latent frame; the zero-initialised output is what a block
    adds.
    """

    def __init__(self, config: AudioAdapterConfig, width: int, rngs: nnx.Rngs):
        heads = (config.num_heads, config.head_dim)
        self.q = Linear(rngs, (width,), heads, ("embed", "heads", "head_dim"))
        self.k = Linear(rngs, (config.width,), heads, ("embed", "heads", "head_dim"))
        self.v = Linear(rngs, (config.width,), heads, ("embed", "heads", "head_dim"))
        self.q_norm = RMSNorm(rngs, config.head_dim)
        self.k_norm = RMSNorm(rngs, config.head_dim)
        self.out = Linear(rngs, heads, (width,), ("heads", "head_dim", "embed"), bias=False, init=zeros)

    def __call__(self, x_BLD: jax.Array, audio: AudioTokens, strategy: AttentionStrategy) -> jax.Array:
        """[B, L, D]: zero wherever `audio.gate_BL1` is False."""
        dtype = x_BLD.dtype
        q = self.q_norm(self.q(layer_norm(x_BLD).astype(dtype))).astype(dtype)
        k = self.k_norm(self.k(audio.tokens_BAE)).astype(dtype)
        v = self.v(audio.tokens_BAE)
        y = attention(q, k, v, audio.q_ids_BL, audio.kv_ids_BA, strategy=strategy, q_axis="tokens")
        return jnp.where(audio.gate_BL1, self.out(y), jnp.zeros((), dtype))
