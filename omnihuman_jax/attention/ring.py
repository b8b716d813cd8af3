"""Joint attention where keys and values travel around a ring of devices, and their gradients after them [Liu 2023].

Each device keeps its queries. Every hop is one kernel call on the block that has arrived, merged by its log-sum-exp;
the block after it is on its way meanwhile. The backward pass sends the blocks around once more, each followed by its
gradients, which arrive at home after the last hop. The text's keys are on every device: joined once. The text's queries
meet each block where it lies, and the devices' parts are merged at the end.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from omnihuman_jax.attention.kernel import MASKED, NO_QUERY_ID, QKV, Kernel, named, seen, window_ids


@dataclasses.dataclass(frozen=True)
class Ring:
    """`size` devices of the mesh axis `axis`, each `stride` from the next; `ways` = size * stride devices hold `stride`
    rings.
    """

    axis: str
    size: int
    stride: int = 1

    def place(self) -> jax.Array:
        """Of this device in its ring."""
        return lax.axis_index(self.axis) // self.stride

    def pass_on(self, x: Any) -> Any:
        """What the device before this one held."""
        ways = self.size * self.stride
        return lax.ppermute(x, self.axis, [(i, (i + self.stride) % ways) for i in range(ways)])

    def groups(self) -> list[list[int]] | None:
        """The rings of the axis, for collectives within each."""
        return (
            None if self.stride == 1 else [[i + j * self.stride for j in range(self.size)] for i in range(self.stride)]
        )


class _Block(NamedTuple):
    """A device's video keys, values and ids, wherever they are on their way."""

    k: jax.Array
    v: jax.Array
    ids: jax.Array


class _Queries(NamedTuple):
    """Video queries, then text queries, and the ids that they meet each block with."""

    q: jax.Array
    ids: jax.Array
    """To meet the device's own block: both streams."""
    video_ids: jax.Array
    """To meet a block that travels: the text's queries have met it, or will, where it lives."""
    ids_for_text: jax.Array
    """To meet the text's keys: the text's own queries do so on one device of the ring only."""

    @classmethod
    def of(
        cls, ring: Ring, video_q: jax.Array, text_q: jax.Array, video_ids: jax.Array, text_ids: jax.Array
    ) -> "_Queries":
        video, text = window_ids(video_ids)[0], window_ids(text_ids)[0]
        nobody = jnp.full_like(text, NO_QUERY_ID)
        with_text = lambda text: jnp.concatenate([video, text], axis=1)  # noqa: E731
        return cls(
            q=jnp.concatenate([video_q, text_q], axis=1),
            ids=with_text(text),
            video_ids=with_text(nobody),
            ids_for_text=with_text(jnp.where(ring.place() == 0, text, nobody)),
        )

    def at(self, hop: jax.Array) -> jax.Array:
        return jnp.where(hop == 0, self.ids, self.video_ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def ring_attention(
    kernel: Kernel, ring: Ring, video: QKV, text: QKV, video_ids_BL: jax.Array, text_ids_BS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Both streams' outputs on one device of the ring, inside `shard_map`; as `context_parallel.local`, of all devices'
    tokens.
    """
    return _forward(kernel, ring, video, text, video_ids_BL, text_ids_BS)[0]


def _merge(out_BMNK: jax.Array, lse_BNM: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """What was computed over some keys (float32, zero where none was seen) and a kernel's result over others, as
    one.
    """
    part_out, part_lse = part
    part_out = jnp.where(seen(part_lse), part_out.astype(jnp.float32), 0.0)
    part_lse = jnp.maximum(part_lse, MASKED)
    lse = jnp.logaddexp(lse_BNM, part_lse)
    share, part_share = (jnp.exp(x - lse).transpose(0, 2, 1)[..., None] for x in (lse_BNM, part_lse))
    return out_BMNK * share + part_out * part_share, lse


def _forward(kernel: Kernel, ring: Ring, video: QKV, text: QKV, video_ids, text_ids):
    tokens = video_ids.shape[1]
    queries = _Queries.of(ring, video[0], text[0], video_ids, text_ids)
    q = queries.q
    nothing = jnp.zeros(q.shape, jnp.float32), jnp.full((q.shape[0], q.shape[2], q.shape[1]), MASKED)
    joined = kernel.forward(q, text[1], text[2], queries.ids_for_text, window_ids(text_ids)[1])

    # One kernel in a loop: it compiles once for all hops. The last hop's block travels on for nothing, beside its
    # computation.
    def travel(carry, hop):
        block, out, lse = carry
        following = ring.pass_on(block)
        return (following, *_merge(out, lse, kernel.forward(q, block.k, block.v, queries.at(hop), block.ids))), None

    start = _Block(video[1], video[2], window_ids(video_ids)[1]), *_merge(*nothing, joined)
    (_, out, lse), _ = lax.scan(travel, start, jnp.arange(ring.size))
    text_out, text_lse = _merge_devices(ring, out[:, tokens:], lse[..., tokens:])
    out = jnp.concatenate([out[:, :tokens], text_out], axis=1)
    lse = jnp.concatenate([lse[..., :tokens], text_lse], axis=2)
    out, lse = named(jnp.where(seen(lse), out, 0.0).astype(video[0].dtype), lse)
    return (out[:, :tokens], out[:, tokens:]), (video, text, video_ids, text_ids, out, lse)


def _merge_devices(ring: Ring, out_BSNK: jax.Array, lse_BNS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same queries' results over every device's keys, as one, on every device."""
    peak = lax.pmax(lse_BNS, ring.axis, axis_index_groups=ring.groups())
    share = jnp.exp(lse_BNS - peak)
    weighted = out_BSNK * share.transpose(0, 2, 1)[..., None]
    weighted, total = lax.psum((weighted, share), ring.axis, axis_index_groups=ring.groups())
    return weighted / total.transpose(0, 2, 1)[..., None], peak + jnp.log(total)


def _backward(kernel: Kernel, ring: Ring, residuals, grads: tuple[jax.Array, jax.Array]):
    video, text, video_ids, text_ids, out, lse = residuals
    tokens = video_ids.shape[1]
    queries = _Queries.of(ring, video[0], text[0], video_ids, text_ids)
    # The text's output is the same on every device of the ring, and shard_map splits the gradient of such an output
    # evenly.
    grad = jnp.concatenate([grads[0], grads[1] * ring.size], axis=1)
    grad = jnp.where(seen(lse), grad, jnp.zeros((), grad.dtype))
    arrays = (out, lse, grad)

    def add(to: jax.Array, more: jax.Array) -> jax.Array:
        return to + more.astype(jnp.float32)

    def travel(carry, hop):
        block, (grad_k, grad_v), grad_q = carry
        # The block's gradients so far come one hop behind it: all that travels does so beside this hop's computation.
        following, (grad_k, grad_v) = ring.pass_on(block), ring.pass_on((grad_k, grad_v))
        more_q, more_k, more_v = kernel.backward(queries.q, block.k, block.v, queries.at(hop), block.ids, *arrays)
        return (following, (add(grad_k, more_k), add(grad_v, more_v)), add(grad_q, more_q)), None

    joined = kernel.backward(queries.q, text[1], text[2], queries.ids_for_text, window_ids(text_ids)[1], *arrays)
    nothing = jnp.zeros(video[1].shape, jnp.float32), jnp.zeros(video[2].shape, jnp.float32)
    start = _Block(video[1], video[2], window_ids(video_ids)[1]), nothing, joined[0].astype(jnp.float32)
    (_, block_grads, grad_q), _ = lax.scan(travel, start, jnp.arange(ring.size))
    grad_k, grad_v = ring.pass_on(block_grads)  # home
    grad_video = tuple(
        x.astype(like.dtype) for x, like in zip((grad_q[:, :tokens], grad_k, grad_v), video, strict=True)
    )
    grad_text = tuple(x.astype(like.dtype) for x, like in zip((grad_q[:, tokens:], *joined[1:]), text, strict=True))
    return grad_video, grad_text, None, None


ring_attention.defvjp(_forward, _backward)
