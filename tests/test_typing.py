"""The packed batch: every field is what its name says, and a batch is a pytree of its fields."""

import dataclasses
import pickle

import jax
import numpy as np

from omnihuman_jax.typing import ArraySpec, PackedBatch, PackedShape

SHAPE = PackedShape(
    latent_tokens=12, text_tokens=8, windows=3, latent_frames=4, frames=20, patch_channels=9, text_width=5,
    pooled_width=6, audio_width=7, audio_tokens=10, keypoints=11, pose_frames=14,
)  # fmt: skip
# Sizes that a letter of the legend means in a batch.
LEGEND = {
    "B": {2}, "L": {12}, "S": {8}, "G": {3}, "F": {4}, "T": {20}, "C": {9}, "E": {5, 6, 7}, "A": {10}, "J": {11},
    "P": {14}, "3": {3}, "4": {4},
}  # fmt: skip


def test_names_say_the_dims() -> None:
    for name, spec in dataclasses.asdict(SHAPE.arrays(2)).items():
        letters = name.rpartition("_")[2]
        assert len(letters) == len(spec["dims"]) == len(spec["axes"]), name
        assert all(size in LEGEND[letter] for letter, size in zip(letters, spec["dims"], strict=True)), name
        assert spec["axes"] == tuple({"B": "batch", "L": "tokens"}.get(letter) for letter in letters), name


def test_a_batch_is_a_pytree_of_its_fields() -> None:
    batch = jax.tree.map(ArraySpec.zeros, SHAPE.arrays(2))
    assert isinstance(batch, PackedBatch) and all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(batch))
    assert [jax.tree_util.keystr(path, simple=True) for path, _ in jax.tree_util.tree_leaves_with_path(batch)] == [
        field.name for field in dataclasses.fields(PackedBatch)
    ]
    assert jax.tree.structure(pickle.loads(pickle.dumps(batch))) == jax.tree.structure(batch)
