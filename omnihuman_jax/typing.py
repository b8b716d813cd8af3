"""Array aliases, the shape legend, and the packed batch.

Shape suffixes, one legend for the whole package (`q_BMNK` has four dims):

    B  sequences of a batch            L  packed latent tokens (video, reference, motion) of a sequence
    S  text tokens of a sequence       M  joint tokens, L + S
    G  window slots of a sequence      T  pixel-rate frames (25 fps); in a batch: packed, with margins
    F  latent frames; in a batch: packed latent-frame slots of a sequence
    A  audio tokens of a latent frame  P  pose frames of a latent frame
    H W  latent height and width       C  channels (in a batch: of a patch token)
    D  model width   N  heads   K  head size   E  encoder width   J  keypoints
"""

import dataclasses
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import jax
import numpy as np

# What an exported folder has to know too is defined there.
from omnihuman_jax.serving.pictures_omnihuman import PATCH as PATCH
from omnihuman_jax.serving.pictures_omnihuman import SPATIAL_STRIDE as SPATIAL_STRIDE
from omnihuman_jax.serving.pictures_omnihuman import TOKEN_STRIDE as TOKEN_STRIDE
from omnihuman_jax.serving.windows_omnihuman import FPS as FPS
from omnihuman_jax.serving.windows_omnihuman import MOTION_FRAMES as MOTION_FRAMES
from omnihuman_jax.serving.windows_omnihuman import MOTION_LATENTS as MOTION_LATENTS
from omnihuman_jax.serving.windows_omnihuman import SAMPLE_RATE_HZ as SAMPLE_RATE_HZ
from omnihuman_jax.serving.windows_omnihuman import TEMPORAL_STRIDE as TEMPORAL_STRIDE
from omnihuman_jax.serving.windows_omnihuman import frames_of_latent as frames_of_latent
from omnihuman_jax.serving.windows_omnihuman import latent_frames_of as latent_frames_of

Array: TypeAlias = jax.Array | np.ndarray
Params: TypeAlias = dict[str, Any]
# Covariant: a batch of numpy arrays is a batch of arrays.
Leaf = TypeVar("Leaf", covariant=True)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ArraySpec:
    """Shape, dtype and logical axes (`sharding.RULES`) of one array; a leaf to `jax.tree.map`."""

    dims: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[str | None, ...]

    def zeros(self) -> np.ndarray:
        """An array to be filled on the host."""
        return np.zeros(self.dims, self.dtype)

    def abstract(self, sharding: jax.sharding.Sharding | None = None) -> jax.ShapeDtypeStruct:
        """What a program is traced with."""
        return jax.ShapeDtypeStruct(self.dims, self.dtype, sharding=sharding)


def _array(dtype: type[np.generic], *dims: str | int) -> dict[str, Any]:
    """Metadata of a field: dtype (`np.floating`: that of `PackedShape.floats`), and dims after B; a string names a size
    of `PackedShape`.
    """
    return {"dtype": dtype, "dims": dims}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class PackedBatch(Generic[Leaf]):
    """B packed sequences as the model sees them; a pytree of whatever its fields hold.

    Numpy arrays on the host, jax arrays on the mesh, or one thing an array: its `ArraySpec`, its sharding. All arrays
    are always there: a model without an audio or pose branch never reads that branch's. Dims after B are sizes of
    `PackedShape`; segment ids are read by `segments`.
    """

    latents_BLC: Leaf = dataclasses.field(metadata=_array(np.floating, "latent_tokens", "patch_channels"))
    """Clean patch tokens in the order of their windows: a window's reference tokens first (if active), then its video
    tokens, latent frame by latent frame, row by row; C is (patch row, patch column, channel)."""
    segment_ids_BL: Leaf = dataclasses.field(metadata=_array(np.int32, "latent_tokens"))
    """g + 1 for the window in slot g, 0 on padding tokens."""
    positions_BL3: Leaf = dataclasses.field(metadata=_array(np.int32, "latent_tokens", 3))
    """RoPE indices (t, h, w); t is 0 on reference tokens."""
    is_reference_BL: Leaf = dataclasses.field(metadata=_array(np.bool_, "latent_tokens"))
    """Reference tokens: clean, no loss."""
    frame_BL: Leaf = dataclasses.field(metadata=_array(np.int32, "latent_tokens"))
    """Packed latent-frame slot, in [0, F), of a video token; -1 on reference and padding tokens."""
    token_BL: Leaf = dataclasses.field(metadata=_array(np.int32, "latent_tokens"))
    """Index of the token in its own window: what its noise is keyed on, whatever it is packed with."""
    text_BSE: Leaf = dataclasses.field(metadata=_array(np.floating, "text_tokens", "text_width"))
    """Token-level text embeddings; the empty prompt's where text is inactive."""
    text_segment_ids_BS: Leaf = dataclasses.field(metadata=_array(np.int32, "text_tokens"))
    """As `segment_ids_BL`."""
    pooled_BGE: Leaf = dataclasses.field(metadata=_array(np.floating, "windows", "pooled_width"))
    """Pooled text embedding of a window."""
    audio_BTE: Leaf = dataclasses.field(metadata=_array(np.floating, "frames", "audio_width"))
    """Speech features of the packed frames (with margins), layers flattened into E."""
    audio_index_BFA: Leaf = dataclasses.field(metadata=_array(np.int32, "latent_frames", "audio_tokens"))
    """Rows of `audio_BTE` that a latent frame attends to, -1 for none."""
    keypoints_BTJ3: Leaf = dataclasses.field(metadata=_array(np.floating, "frames", "keypoints", 3))
    """(x, y, confidence) of the packed frames, x and y in token units of the window's grid."""
    pose_index_BFP: Leaf = dataclasses.field(metadata=_array(np.int32, "latent_frames", "pose_frames"))
    """Rows of `keypoints_BTJ3` that a latent frame sees, -1 for none."""
    active_BG4: Leaf = dataclasses.field(metadata=_array(np.bool_, "windows", 4))
    """Active conditions of a window, in the order of `Condition`."""
    motion_BG: Leaf = dataclasses.field(metadata=_array(np.bool_, "windows"))
    """Motion frames are active: the first 2 latents are given clean."""
    slot_BG: Leaf = dataclasses.field(metadata=_array(np.int32, "windows"))
    """Number of the window among the step's windows: noise, t and drops are keyed on (seed, step, slot)."""
    window_BG: Leaf = dataclasses.field(metadata=_array(np.int32, "windows"))
    """Catalog row; -1 for an empty slot, -2 for a window whose record cannot be read."""


Batch: TypeAlias = PackedBatch[Array]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PackedShape:
    """Sizes of one packed sequence: everything that the compiled step's input shapes depend on.

    floats: dtype of latents, embeddings, features and keypoints. float16 is what data sets hold: a batch is half as
        large on its way to the device, which widens it there. float32 is for what was computed, not stored.
    """

    latent_tokens: int
    text_tokens: int
    windows: int
    latent_frames: int
    frames: int
    patch_channels: int
    text_width: int
    pooled_width: int
    audio_width: int
    audio_tokens: int
    keypoints: int
    pose_frames: int
    floats: Literal["float16", "float32"] = "float32"

    def arrays(self, batch: int) -> PackedBatch[ArraySpec]:
        """What each array of a batch of `batch` sequences is."""

        def spec(dtype: type[np.generic], dims: tuple[str | int, ...]) -> ArraySpec:
            sizes = (dim if isinstance(dim, int) else getattr(self, dim) for dim in dims)
            axes = ("tokens" if dim == "latent_tokens" else None for dim in dims)
            own = np.dtype(self.floats if dtype is np.floating else dtype)
            return ArraySpec(dims=(batch, *sizes), dtype=own, axes=("batch", *axes))

        return PackedBatch(**{field.name: spec(**field.metadata) for field in dataclasses.fields(PackedBatch)})
