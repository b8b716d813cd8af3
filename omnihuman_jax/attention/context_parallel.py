"""Joint attention of video tokens that are split over the mesh's `context` axis and text tokens that every device
holds.

What runs here runs inside `shard_map`: arrays are one device's, and every exchange is written out.

gather    keys and values of the video are gathered; each device keeps its queries. Any number of heads; memory for all
keys.
ulysses   an all-to-all turns a part of the tokens with all heads into all tokens with a part of the heads, and back
[Jacobs 2023].
ring      keys and values travel around, queries stay (`ring.py`). Any number of heads; memory for two blocks of keys.
ulysses_ring
          groups of `ulysses_ways` neighbours do the first among themselves, and the groups form rings.

The text's queries are shared out as well (gather: by token where that divides, ulysses: by head), and gathered at the
end.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from omnihuman_jax.attention.kernel import QKV, Kernel, attend, window_ids
from omnihuman_jax.attention.ring import Ring, ring_attention

AXIS = "context"
MODES = ("gather", "ulysses", "ring", "ulysses_ring")

Joint: TypeAlias = Callable[[QKV, QKV, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def exchange(kernel: Kernel, *, mode: str, ways: int, heads: int, ulysses_ways: int = 0) -> Joint:
    """The joint attention of one device of `ways`, to be run inside `shard_map`.

    Args:
        mode: one of `MODES`.
        ways: of the axis `context`; 1 exchanges nothing.
        heads: that this device holds (after `tensor` has had its share).
        ulysses_ways: of `ways`, those that share out heads under `ulysses_ring`.
    """
    if ways == 1:
        return functools.partial(local, kernel)
    if mode == "gather":
        return functools.partial(_gather, kernel, ways)
    shared = heads_ways(mode, heads, ways, ulysses_ways)
    ring = Ring(axis=AXIS, size=ways // shared, stride=shared)
    inner = functools.partial(local, kernel) if ring.size == 1 else functools.partial(ring_attention, kernel, ring)
    if shared == 1:
        return lambda video, text, *ids: inner(video, _like(text, video), *ids)
    neighbours = None if ring.size == 1 else [[i * shared + j for j in range(shared)] for i in range(ring.size)]
    return functools.partial(_ulysses, inner, shared, neighbours)


def heads_ways(mode: str, heads: int, ways: int, ulysses_ways: int = 0) -> int:
    """Devices of `ways` that share out `heads` under `mode`; ValueError, with what would do, where they cannot."""
    if mode in ("gather", "ring"):
        return 1
    both = [n for n in range(1, ways + 1) if ways % n == 0 and heads % n == 0]
    if mode == "ulysses_ring":
        shared = ulysses_ways or both[-1]
        if shared not in both:
            raise ValueError(
                f"execution.attention.ulysses_ways {shared} does not divide both mesh.context {ways} and the {heads}"
                f" heads of a device (model.num_heads / mesh.tensor); these do: {', '.join(map(str, both))}"
            )
        return shared
    if heads % ways:
        fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ValueError(
            f"execution.attention.context_parallel ulysses: {heads} heads (model.num_heads / mesh.tensor) cannot be"
            f" shared out over mesh.context {ways}; make that one of {fitting}, or take"
            f" execution.attention.context_parallel=ulysses_ring ({both[-1]} x {ways // both[-1]})"
        )
    return ways


def check_tokens(mode: str, tokens: int, ways: int) -> None:
    """ValueError where `ways` devices cannot split `tokens`, and the mode needs them split."""
    if tokens % ways and mode != "gather":
        below, above = tokens // ways * ways, -(-tokens // ways) * ways
        raise ValueError(
            f"execution.attention.context_parallel {mode}: {tokens} video tokens cannot be split over {ways} devices"
            f" (mesh.context); nearest that can: {below or above} and {above}"
        )


def local(
    kernel: Kernel, video: QKV, text: QKV, video_ids_BL: jax.Array, text_ids_BS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Both streams whole: one kernel call over the joined tokens."""
    ids = jnp.concatenate([video_ids_BL, text_ids_BS], axis=1)
    text = _like(text, video)
    q, k, v = (jnp.concatenate([a, b], axis=1) for a, b in zip(video, text, strict=True))
    out = attend(kernel, q, k, v, *window_ids(ids))
    return out[:, : video_ids_BL.shape[1]], out[:, video_ids_BL.shape[1] :]


def _gather(kernel: Kernel, ways: int, video: QKV, text: QKV, video_ids_BL, text_ids_BS) -> tuple[jax.Array, jax.Array]:
    text = _like(text, video)
    k, v = (jnp.concatenate([lax.all_gather(video[i], AXIS, axis=1, tiled=True), text[i]], axis=1) for i in (1, 2))
    _, video_kv_ids = window_ids(lax.all_gather(video_ids_BL, AXIS, axis=1, tiled=True))
    text_q_ids, text_kv_ids = window_ids(text_ids_BS)
    # Each device answers its share of the text's queries, where they divide.
    shared = text_ids_BS.shape[1] % ways == 0
    text_q = _part(text[0], 1, ways) if shared else text[0]
    q_ids = jnp.concatenate([window_ids(video_ids_BL)[0], _part(text_q_ids, 1, ways) if shared else text_q_ids], axis=1)
    out = attend(
        kernel,
        jnp.concatenate([video[0], text_q], axis=1),
        k,
        v,
        q_ids,
        jnp.concatenate([video_kv_ids, text_kv_ids], axis=1),
    )
    video_out, text_out = out[:, : video_ids_BL.shape[1]], out[:, video_ids_BL.shape[1] :]
    return video_out, lax.all_gather(text_out, AXIS, axis=1, tiled=True) if shared else text_out


def _ulysses(
    inner: Joint, ways: int, groups, video: QKV, text: QKV, video_ids_BL, text_ids_BS
) -> tuple[jax.Array, jax.Array]:
    """`inner` on `ways` times the tokens and one part in `ways` of the heads; `groups` of devices exchange among
    themselves.
    """
    to_heads = functools.partial(
        lax.all_to_all, axis_name=AXIS, split_axis=2, concat_axis=1, axis_index_groups=groups, tiled=True
    )
    to_tokens = functools.partial(
        lax.all_to_all, axis_name=AXIS, split_axis=1, concat_axis=2, axis_index_groups=groups, tiled=True
    )
    video_ids = lax.all_gather(video_ids_BL, AXIS, axis=1, axis_index_groups=groups, tiled=True)
    video_q, video_k, video_v = (to_heads(x) for x in video)
    text_q, text_k, text_v = (_part(x, 2, ways) for x in _like(text, video))
    video_out, text_out = inner((video_q, video_k, video_v), (text_q, text_k, text_v), video_ids, text_ids_BS)
    return to_tokens(video_out), lax.all_gather(text_out, AXIS, axis=2, axis_index_groups=groups, tiled=True)


def _part(x: jax.Array, axis: int, ways: int) -> jax.Array:
    """This device's part of `ways` of an array that every device holds."""
    size = x.shape[axis] // ways
    return lax.dynamic_slice_in_dim(x, lax.axis_index(AXIS) % ways * size, size, axis)


def _like(text: QKV, video: QKV) -> QKV:
    q, k, v = (t.astype(x.dtype) for t, x in zip(text, video, strict=True))
    return q, k, v
