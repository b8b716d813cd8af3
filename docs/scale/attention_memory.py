"""What libtpu plans for attention alone: temporaries of a call and its gradients, by exchange and by backward kernel.

    python docs/scale/attention_memory.py

Sizes of 13 B at 720p; minutes on two cores. The figures stand in docs/attention.md.
"""

import functools
from typing import Any

from omnihuman_jax.scale import described_devices

described_devices.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from omnihuman_jax.attention.dispatch import AttentionStrategy, joint_attention  # noqa: E402
from omnihuman_jax.attention.tpu import Splash  # noqa: E402
from omnihuman_jax.scale.hardware import GIB, parse_topology  # noqa: E402
from omnihuman_jax.sharding import MeshConfig, create_mesh  # noqa: E402

HEADS, HEAD_DIM = 24, 128
TOPOLOGIES = {"v5p": "v5p:2x2x2", "v6e": "v6e:2x4"}


def temporaries(function: Any, *arguments: Any) -> float:
    """GiB of temporaries that libtpu plans for a jitted function."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes / GIB


def of_mode(topology: str, mode: str, latent: int = 119808, text: int = 256) -> float:
    """Of the joint attention and its gradients over 8 devices."""
    mesh = create_mesh(MeshConfig(data=1, context=8), described_devices.describe(parse_topology(topology)))

    def array(tokens: int, axis: str | None, *rest: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        spec = NamedSharding(mesh, PartitionSpec(None, axis))
        return jax.ShapeDtypeStruct((1, tokens, *rest), dtype, sharding=spec)

    video, words = (array(n, axis, HEADS, HEAD_DIM) for n, axis in ((latent, "context"), (text, None)))
    ids = array(latent, "context", dtype=jnp.int32), array(text, None, dtype=jnp.int32)

    def both(video: Any, words: Any, ids: Any, grads: Any) -> Any:
        joint = functools.partial(joint_attention, strategy=AttentionStrategy(context_parallel=mode))
        return jax.vjp(lambda video, words: joint(video, words, *ids), video, words)[1](grads)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return temporaries(both, (video,) * 3, (words,) * 3, ids, (video, words))


def of_backward(topology: str, *, fused: bool, tokens: int, heads: int = 3) -> float:
    """Of the backward call of one device."""
    (device, *_) = described_devices.describe(parse_topology(topology))
    place = jax.sharding.SingleDeviceSharding(device)
    array = functools.partial(jax.ShapeDtypeStruct, sharding=place)
    tokens_by_head = array((1, tokens, heads, HEAD_DIM), jnp.bfloat16)
    ids, lse = array((1, tokens), jnp.int32), array((1, heads, tokens), jnp.float32)
    return temporaries(
        Splash(fused_backward=fused).backward, *(tokens_by_head,) * 3, ids, ids, tokens_by_head, lse, tokens_by_head
    )


def main() -> None:
    """Prints a line a figure, as it is there."""
    for name, topology in TOPOLOGIES.items():
        for tokens in (123904, 33792):
            for fused in (False, True):
                found = of_backward(topology, fused=fused, tokens=tokens)
                print(
                    f"{name}: backward of {tokens} tokens, {'one kernel' if fused else 'two kernels'}: {found:.2f} GiB",
                    flush=True,
                )
    for name, topology in TOPOLOGIES.items():
        for mode in ("ulysses", "ring", "gather"):
            print(f"{name}: {mode}: {of_mode(topology, mode):.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
