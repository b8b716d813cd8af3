"""Kernels that walk blocks leave out those between windows, and compute what dense attention computes all the same."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnihuman_jax.attention.block_pairs import block_pairs, fit_block
from omnihuman_jax.attention.gpu import Triton
from omnihuman_jax.attention.kernel import Kernel, attend, window_ids
from omnihuman_jax.attention.tpu import Splash
from omnihuman_jax.attention.xla import Blocked, Dense

TOLERANCE = 1e-5


def pack(video: int, text: int, video_lengths: list[int], text_lengths: list[int]) -> np.ndarray:
    """Ids of a joined sequence: the windows' video tokens, padding, the windows' text tokens, padding."""
    parts = [np.repeat(np.arange(1, len(lengths) + 1), lengths) for lengths in (video_lengths, text_lengths)]
    return np.concatenate([np.pad(ids, (0, size - len(ids))) for ids, size in zip(parts, (video, text))]).astype(
        np.int32
    )


@pytest.mark.parametrize("block_q", [1, 4, 12])
@pytest.mark.parametrize("block_kv", [1, 3, 24])
def test_no_pair_is_missed_and_within_a_stream_none_is_too_many(block_q: int, block_kv: int) -> None:
    ids = pack(60, 12, [13, 1, 22, 17], [3, 2, 4, 1])
    q, kv = (np.asarray(x) for x in window_ids(ids))
    found = np.asarray(block_pairs(q, kv, block_q, block_kv))
    needed = (q[:, None] == kv[None, :]).reshape(72 // block_q, block_q, 72 // block_kv, block_kv).any(axis=(1, 3))
    assert not (needed & ~found).any()
    # 60 and 72 are multiples of every block here but 24: no block holds both streams.
    if block_kv != 24:
        np.testing.assert_array_equal(found, needed)
        assert found.mean() < 0.7


@pytest.mark.parametrize(
    ("length", "block", "unit", "expected"),
    [(33792, 1024, 128, 1024), (1344, 1024, 128, 768), (57, 128, 128, 128), (70, 16, 1, 14)],
)
def test_a_block_cuts_a_length_with_little_to_fill_up(length: int, block: int, unit: int, expected: int) -> None:
    assert fit_block(length, block, unit) == expected


KERNELS: dict[str, tuple[Kernel, int, int, list[int], list[int]]] = {
    # Lengths that are no multiple of a block, windows of odd length, a window of one token, padding.
    "blocked": (Blocked(block_q=16, block_kv=9), 70, 11, [23, 1, 30], [4, 2, 3]),
    "triton": (Triton(block_q=32, block_kv=16, interpret=True), 150, 21, [43, 1, 70], [4, 6, 3]),
    "splash, one backward kernel": (
        Splash(block_q=256, block_kv=128, fused_backward=True, interpret=True),
        610,
        57,
        [183, 1, 160],
        [20, 9, 16],
    ),
    "splash": (Splash(block_q=256, block_kv=128, interpret=True), 610, 57, [183, 1, 160], [20, 9, 16]),
}


def case(name: str):
    kernel, video, text, video_lengths, text_lengths = KERNELS[name]
    ids = pack(video, text, video_lengths, text_lengths)
    rng = np.random.default_rng(5)
    q, k, v, weight = (rng.normal(size=(2, ids.size, 2, 8)).astype(np.float32) for _ in range(4))
    # The second sequence holds one window alone.
    both = np.stack([ids, pack(video, text, [sum(video_lengths)], [text_lengths[0]])])
    return kernel, q, k, v, weight, window_ids(both)


def results(kernel: Kernel, q, k, v, weight, ids):
    def loss(q, k, v):
        out = attend(kernel, q, k, v, *ids)
        return (out * weight).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return jax.device_get((out, *grads))


@pytest.mark.parametrize("name", KERNELS)
def test_outputs_and_gradients_are_those_of_dense_attention(
    name: str, measured: Callable[[str, float, float], None]
) -> None:
    kernel, *arrays = case(name)
    for ours, theirs in zip(results(kernel, *arrays), results(Dense(), *arrays), strict=True):
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        measured(
            f"attention and its gradients, {name}, blocks between windows left out, against dense", error, TOLERANCE
        )


@pytest.mark.parametrize("name", KERNELS)
def test_blocks_between_windows_are_not_computed(name: str) -> None:
    """A block of keys that is computed shows: what is not a number stays none through masked weights of zero."""
    kernel, q, k, v, weight, (q_ids, kv_ids) = case(name)
    block_q, block_kv = kernel.block_q, kernel.block_kv
    if name != "triton":
        unit = 1 if name == "blocked" else 128
        block_q, block_kv = fit_block(q.shape[1], block_q, unit), fit_block(k.shape[1], block_kv, unit)
    # Queries of the first window alone: of the keys, only blocks that hold a token of it may be touched.
    q_ids = jnp.where(q_ids == 1, q_ids, -1)[:1]
    kv_ids = kv_ids[:1]
    fill = lambda ids, block: np.pad(np.asarray(ids[0]), (0, -ids.shape[1] % block), constant_values=-9)  # noqa: E731
    pairs = np.array(block_pairs(fill(q_ids, block_q), fill(kv_ids, block_kv), block_q, block_kv))
    pairs[:, 0] |= ~pairs.any(axis=1)  # splash computes one masked block where there is none
    untouched = np.repeat(~pairs.any(axis=0), block_kv)[: k.shape[1]]
    assert untouched.mean() > 0.3
    poisoned_k, poisoned_v = (np.where(untouched[None, :, None, None], np.nan, x[:1]) for x in (k, v))
    found = results(kernel, q[:1], poisoned_k, poisoned_v, weight[:1], (q_ids, kv_ids))
    assert all(np.isfinite(x).all() for x in found)
    np.testing.assert_array_equal(found[0], results(kernel, q[:1], k[:1], v[:1], weight[:1], (q_ids, kv_ids))[0])
    assert not found[2][:, untouched].any() and not found[3][:, untouched].any()
    touched = results(Dense(), q[:1], poisoned_k, poisoned_v, weight[:1], (q_ids, kv_ids))
    assert not np.isfinite(touched[0]).all(), "a kernel that computes every block would show it"
