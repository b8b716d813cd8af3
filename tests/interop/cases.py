"""Models with random weights and packed batches with random content: what the tests of interop compare implementations
on.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import torch

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.interop.key_table import KeyTable
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.mmdit import MMDiTConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.serving.modeling_omnihuman import AudioConfig, OmniHumanConfig, PoseConfig
from omnihuman_jax.typing import ArraySpec, PackedBatch, PackedShape, frames_of_latent


def torch_config(config: MMDiTConfig) -> OmniHumanConfig:
    """The same sizes, as the PyTorch module takes them."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(OmniHumanConfig)}
    if config.audio:
        values["audio"] = AudioConfig(**dataclasses.asdict(config.audio))
    if config.pose:
        values["pose"] = PoseConfig(**dataclasses.asdict(config.pose))
    return OmniHumanConfig(**values)


def random_tensors(table: KeyTable, seed: int = 0) -> dict[str, np.ndarray]:
    """Their tensors by name, float32, scaled so that activations stay near one."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape)
        if len(shape) > 1:
            values /= np.sqrt(np.prod(shape[1:]))
        else:
            values = 0.2 * values + ("norm" in name and name.endswith("weight"))
        return values.astype(np.float32)

    return {entry.name: draw(entry.name, entry.shape) for entry in table.entries}


def odd_config(**changes) -> MMDiTConfig:
    """Sizes that share no factor where they need not: a mixed-up dim cannot pass."""
    values = {
        "width": 30,
        "num_heads": 3,
        "num_dual_layers": 2,
        "num_single_layers": 3,
        "num_refiner_layers": 1,
        "mlp_ratio": 3.0,
        "latent_channels": 4,
        "text_width": 10,
        "pooled_width": 6,
        "rope_axes": (2, 4, 4),
        "audio": AudioAdapterConfig(features=11, width=20, neighbours=2, num_heads=5, head_dim=8),
        "pose": PoseGuiderConfig(keypoints=7, width=14, neighbours=1),
    }
    return MMDiTConfig(**(values | changes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A window of `latents` latent frames of `height` x `width` tokens."""

    latents: int
    height: int
    width: int
    text_tokens: int
    active: ConditionSet
    motion: bool = False

    @property
    def frames(self) -> int:
        return 1 + 4 * (self.latents - 1)


def numpy_batch(batch: PackedBatch[np.ndarray]) -> dict[str, np.ndarray]:
    """The batch as an exported folder's own code has it."""
    return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}


def torch_batch(batch: PackedBatch[np.ndarray]) -> dict[str, torch.Tensor]:
    """The batch as the PyTorch module takes it."""
    return {name: torch.from_numpy(array) for name, array in numpy_batch(batch).items()}


def packed_batch(shape: PackedShape, sequences: Sequence[Sequence[Window]], seed: int = 0) -> PackedBatch[np.ndarray]:
    """The windows of each sequence one after another; what no window owns is filled with noise, so that a leak
    shows.
    """
    rng = np.random.default_rng(seed)
    batch = jax.tree.map(ArraySpec.zeros, shape.arrays(len(sequences)))
    for array in jax.tree.leaves(batch):
        if array.dtype.kind == "f":
            array[...] = rng.standard_normal(array.shape)
    for array in (batch.frame_BL, batch.audio_index_BFA, batch.pose_index_BFP, batch.slot_BG, batch.window_BG):
        array.fill(-1)
    batch.keypoints_BTJ3[...] = np.abs(batch.keypoints_BTJ3) * np.array([2.0, 2.0, 0.5], np.float32)
    for b, windows in enumerate(sequences):
        ends = dict.fromkeys(("token", "text", "latent", "frame"), 0)
        for g, window in enumerate(windows):
            _place(batch, shape, b, g, window, ends)
        assert ends["token"] <= shape.latent_tokens and ends["text"] <= shape.text_tokens, ends
        assert ends["latent"] <= shape.latent_frames and ends["frame"] <= shape.frames, ends
    return batch


def _place(
    batch: PackedBatch[np.ndarray], shape: PackedShape, b: int, g: int, window: Window, ends: dict[str, int]
) -> None:
    row_column = np.stack(np.meshgrid(np.arange(window.height), np.arange(window.width), indexing="ij"), -1).reshape(
        -1, 2
    )
    area = len(row_column)
    reference = Condition.REFERENCE in window.active
    begin, tokens = ends["token"], area * (window.latents + reference)
    own = slice(begin, begin + tokens)
    latent = np.repeat(np.arange(-int(reference), window.latents), area)
    batch.segment_ids_BL[b, own] = g + 1
    batch.positions_BL3[b, own, 0] = np.maximum(latent, 0)
    batch.positions_BL3[b, own, 1:] = np.tile(row_column, (window.latents + reference, 1))
    batch.is_reference_BL[b, own] = latent < 0
    batch.frame_BL[b, own] = np.where(latent < 0, -1, latent + ends["latent"])
    batch.token_BL[b, own] = np.arange(tokens)
    batch.text_segment_ids_BS[b, ends["text"] : ends["text"] + window.text_tokens] = g + 1
    batch.active_BG4[b, g] = window.active.mask()
    batch.motion_BG[b, g] = window.motion
    batch.slot_BG[b, g] = batch.window_BG[b, g] = g
    for condition, index, count in (
        (Condition.AUDIO, batch.audio_index_BFA, shape.audio_tokens),
        (Condition.POSE, batch.pose_index_BFP, shape.pose_frames),
    ):
        if condition in window.active:
            margin = (count - 4) // 2
            for i in range(window.latents):
                covered = frames_of_latent(i)
                rows = ends["frame"] + np.arange(covered.start - margin, covered.stop + margin) + margin
                # The last rows stay -1: the first latent has fewer frames, and the edge of a clip has no neighbours.
                index[b, ends["latent"] + i, : len(rows)] = np.where(
                    rows < ends["frame"] + window.frames + margin, rows, -1
                )
    ends["token"] += tokens
    ends["text"] += window.text_tokens
    ends["latent"] += window.latents
    ends["frame"] += window.frames + max(shape.audio_tokens, shape.pose_frames) - 4


def shape_for(config: MMDiTConfig, **changes: int) -> PackedShape:
    """A packed shape that `config` takes; sizes that no branch of it fixes are arbitrary."""
    audio, pose = (
        config.audio or AudioAdapterConfig(features=3, neighbours=1),
        config.pose or PoseGuiderConfig(keypoints=2),
    )
    values = {
        "latent_tokens": 160,
        "text_tokens": 20,
        "windows": 4,
        "latent_frames": 10,
        "frames": 70,
        "patch_channels": config.patch_channels,
        "text_width": config.text_width,
        "pooled_width": config.pooled_width,
        "audio_width": audio.features,
        "audio_tokens": audio.tokens,
        "keypoints": pose.keypoints,
        "pose_frames": pose.frames,
    }
    return PackedShape(**(values | changes))
