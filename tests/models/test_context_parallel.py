"""What the devices of the `context` axis exchange changes neither the result nor the gradients, and is what it should be."""

import functools
import re
from collections import Counter
from collections.abc import Callable

import jax
import numpy as np
import pytest

from omnihuman_jax.models.attention import AttentionStrategy, joint_attention
from omnihuman_jax.models.context_parallel import MODES
from omnihuman_jax.sharding import MESH_AXES, MeshConfig, create_mesh

B, L, S, N, K = 2, 48, 16, 8, 6
TOLERANCE = 1e-5
DENSE = AttentionStrategy(kernel="dense")


@functools.lru_cache
def inputs():
    """Two packs of windows with odd bounds, padding at the ends of both streams; weights of the outputs' loss."""
    rng = np.random.default_rng(3)
    normal = lambda length: rng.normal(size=(B, length, N, K)).astype(np.float32)  # noqa: E731
    video, text = tuple(normal(L) for _ in range(3)), tuple(normal(S) for _ in range(3))
    video_ids = np.zeros((B, L), np.int32)
    text_ids = np.zeros((B, S), np.int32)
    for b, (video_bounds, text_bounds) in enumerate([((7, 18, 41), (3, 8, 13)), ((29, 46), (5, 15))]):
        for ids, bounds in ((video_ids, video_bounds), (text_ids, text_bounds)):
            for window, (start, end) in enumerate(zip((0, *bounds), bounds), start=1):
                ids[b, start:end] = window
    return video, text, video_ids, text_ids, normal(L), normal(S)


def run(strategy: AttentionStrategy):
    """Outputs and gradients of all six inputs, on whatever mesh is set."""
    video, text, video_ids, text_ids, video_weight, text_weight = inputs()

    def loss(video, text):
        video_out, text_out = joint_attention(video, text, video_ids, text_ids, strategy=strategy)
        return (video_out * video_weight).sum() + (text_out * text_weight).sum(), (video_out, text_out)

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(video, text)
    return out, grads


@functools.lru_cache
def alone():
    return jax.device_get(run(DENSE))


MESHES = {
    "context 8": (1, 1, 8, 1),
    "data 2 context 4": (2, 1, 4, 1),
    "context 4 tensor 2": (1, 1, 4, 2),
    "fsdp 2 context 2 tensor 2": (1, 2, 2, 2),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ways", MESHES.values(), ids=MESHES)
def test_outputs_and_gradients_are_those_of_one_device(
    mode: str, ways: tuple[int, ...], measured: Callable[[str, float, float], None]
) -> None:
    with jax.set_mesh(create_mesh(MeshConfig(**dict(zip(MESH_AXES, ways, strict=True))))):
        found = jax.device_get(run(AttentionStrategy(kernel="dense", context_parallel=mode)))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(alone()), strict=True):
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        measured(f"attention and its gradients, {mode} over context against dense on one device", error, TOLERANCE)


def collectives(text: str) -> Counter[str]:
    """Kind of collective -> how many of them a compiled program holds."""
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    return Counter(re.findall(rf" ({kinds})(?:-start)?\(", text))
