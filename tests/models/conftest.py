"""Packed batches of random windows for the models' tests: the layout of `PackedShape`, without the data room's
packer.
"""

import dataclasses

import jax
import numpy as np
import pytest

from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.mmdit_config import MMDiTConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.typing import ArraySpec, PackedBatch, PackedShape, frames_of_latent

MARGIN = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A random window: its content is a function of `seed` alone, wherever it is packed."""

    seed: int
    frames: int = 3
    height: int = 3
    width: int = 2
    text: int = 4
    reference: bool = True
    audio: bool = True
    pose: bool = True
    motion: bool = False
    t: float = 0.6


class Packer:
    """Packs windows, one list a sequence, into a batch of `shape`; `t_BG` and noisy `tokens_BLC` beside it."""

    def __init__(self, shape: PackedShape):
        self.shape = shape

    def __call__(
        self, *sequences: list[Window], start: int = 0
    ) -> tuple[np.ndarray, np.ndarray, PackedBatch[np.ndarray]]:
        """(tokens_BLC, t_BG, batch); `start` tokens, texts, frames and slots are left empty in front."""
        batch = jax.tree.map(ArraySpec.zeros, self.shape.arrays(len(sequences)))
        for indices in (batch.audio_index_BFA, batch.pose_index_BFP, batch.frame_BL, batch.window_BG):
            indices.fill(-1)
        # What lies in unused rows must not matter: it is never zero here.
        garbage = np.random.default_rng(99)
        for array in (batch.latents_BLC, batch.text_BSE, batch.pooled_BGE, batch.audio_BTE, batch.keypoints_BTJ3):
            array[...] = garbage.normal(size=array.shape)
        t = np.full(batch.motion_BG.shape, 0.9, np.float32)
        for b, windows in enumerate(sequences):
            at = {"token": start, "text": start, "latent": start, "frame": start}
            for g, window in enumerate(windows, start=min(start, self.shape.windows - len(windows))):
                self._place(batch, b, g, window, at)
                t[b, g] = window.t
        return batch.latents_BLC, t, batch

    def _place(self, batch, b: int, g: int, window: Window, at: dict[str, int]) -> None:
        shape, rng = self.shape, np.random.default_rng(window.seed)
        grid = window.height * window.width
        video, count = rng.normal(size=(window.frames * grid, shape.patch_channels)), window.frames * grid
        reference = rng.normal(size=(grid, shape.patch_channels))
        pixel_frames = 4 * window.frames - 3 + 2 * MARGIN
        audio = rng.normal(size=(pixel_frames, shape.audio_width))
        points = rng.uniform(size=(pixel_frames, shape.keypoints, 3)) * [window.width, window.height, 1]
        text, pooled = rng.normal(size=(window.text, shape.text_width)), rng.normal(size=shape.pooled_width)
        h, w = np.divmod(np.arange(grid), window.width)
        for is_reference in [True, False] if window.reference else [False]:
            n = grid if is_reference else count
            rows = slice(at["token"], at["token"] + n)
            batch.latents_BLC[b, rows] = reference if is_reference else video
            batch.segment_ids_BL[b, rows] = g + 1
            frame = np.arange(n) // grid
            batch.positions_BL3[b, rows] = np.stack([frame, np.tile(h, n // grid), np.tile(w, n // grid)], -1)
            batch.is_reference_BL[b, rows] = is_reference
            batch.frame_BL[b, rows] = -1 if is_reference else frame + at["latent"]
            batch.token_BL[b, rows] = np.arange(n) + (0 if is_reference or not window.reference else grid)
            at["token"] += n
        rows = slice(at["text"], at["text"] + window.text)
        batch.text_BSE[b, rows], batch.text_segment_ids_BS[b, rows] = text, g + 1
        batch.pooled_BGE[b, g] = pooled
        if window.audio or window.pose:
            rows = slice(at["frame"], at["frame"] + pixel_frames)
            batch.audio_BTE[b, rows], batch.keypoints_BTJ3[b, rows] = audio, points
        for i in range(window.frames):
            own = frames_of_latent(i)
            for index, m, active in ((batch.audio_index_BFA, 1, window.audio), (batch.pose_index_BFP, 1, window.pose)):
                near = np.arange(own.start - m, own.stop + m) + MARGIN + at["frame"]
                if active:
                    index[b, at["latent"] + i, : len(near)] = near
        at["latent"] += window.frames
        at["frame"] += pixel_frames
        at["text"] += window.text
        batch.active_BG4[b, g] = [True, window.reference, window.audio, window.pose]
        batch.motion_BG[b, g] = window.motion
        batch.slot_BG[b, g] = batch.window_BG[b, g] = window.seed


@pytest.fixture(scope="session")
def window() -> type[Window]:
    """The class of random windows."""
    return Window


@pytest.fixture(scope="session")
def pack() -> Packer:
    """A packer of sequences of 72 tokens, 20 text tokens, 3 windows, for `config`."""
    return Packer(
        PackedShape(
            latent_tokens=72,
            text_tokens=20,
            windows=3,
            latent_frames=10,
            frames=48,
            patch_channels=12,
            text_width=20,
            pooled_width=10,
            audio_width=7,
            audio_tokens=6,
            keypoints=5,
            pose_frames=6,
        )
    )


@pytest.fixture
def config() -> MMDiTConfig:
    """A tiny model with every branch: odd sizes, no two dims alike."""
    return MMDiTConfig(
        width=48,
        num_heads=2,
        num_dual_layers=2,
        num_single_layers=3,
        latent_channels=3,
        text_width=20,
        pooled_width=10,
        num_refiner_layers=2,
        rope_axes=(4, 8, 12),
        audio=AudioAdapterConfig(features=7, width=28, neighbours=1, num_heads=2, head_dim=10),
        pose=PoseGuiderConfig(keypoints=5, width=14, neighbours=1),
    )


@pytest.fixture(scope="session")
def randomise():
    """Parameters with every leaf random, the zero-initialised ones too: a zero start hides what is connected to
    what.
    """

    def randomised(params, seed: int = 7):
        leaves, tree = jax.tree.flatten(params)
        rng = np.random.default_rng(seed)
        return jax.tree.unflatten(tree, [np.asarray(x + 0.2 * rng.normal(size=x.shape), np.float32) for x in leaves])

    return randomised
