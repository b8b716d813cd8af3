"""Splash and what is around it, compiled for real TPU topologies by libtpu, on a machine without one."""

import math
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

# Mode and remat policy -> passes of the splash kernel and exchanges in the compiled program of a loss's gradients.
# bfloat16, heads of 128, 4096 + 200 tokens: no multiple of a block.
SCRIPT = """
import json, re, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from omnihuman_jax.attention.dispatch import AttentionStrategy, joint_attention
from omnihuman_jax.sharding import MeshConfig, create_mesh

mode, remat = sys.argv[1:]
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices
mesh = create_mesh(MeshConfig(data=1, context=4), devices)
ways = 2 if mode == "ulysses_ring" else 0
strategy = AttentionStrategy(context_parallel=mode, block_q=512, block_kv=512, ulysses_ways=ways)

def both(video, text, video_ids, text_ids):
    return joint_attention(video, text, video_ids, text_ids, strategy=strategy)

if remat != "none":
    keep = jax.checkpoint_policies.save_only_these_names("attention")
    policy = keep if remat == "attention" else jax.checkpoint_policies.nothing_saveable
    both = jax.checkpoint(both, policy=policy, prevent_cse=True)

def loss(*args):
    return sum(jnp.square(x.astype(jnp.float32)).sum() for x in both(*args))

def struct(dims, dtype, axis):
    spec = PartitionSpec(("data", "fsdp"), axis, *(("tensor", None) if len(dims) == 4 else ()))
    return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, spec))

video, text = (struct((1, n, 8, 128), jnp.bfloat16, axis) for n, axis in ((4096, "context"), (200, None)))
ids = (struct((1, n), jnp.int32, axis) for n, axis in ((4096, "context"), (200, None)))
with jax.set_mesh(mesh):
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower((video,) * 3, (text,) * 3, *ids).compile()
print(compiled.as_text())
"""


def compiled(mode: str, remat: str) -> str:
    """The program for four v5p chips, as text. A process of its own: this one has its devices already."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT, mode, remat], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def kernels(text: str) -> Counter[str]:
    """Pass -> calls of splash's kernel for it."""
    calls = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    return Counter(match[1] for line in calls if (match := re.search(r"splash_mha_(fwd|dq|dkv)_segmented", line)))


def exchanges(text: str) -> set[str]:
    """Kinds of collective whose arrays are larger than the text's (200 x 8 x 128): XLA takes small ones apart as it
    likes.
    """
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    found = set()
    for line in text.splitlines():
        if match := re.search(rf" = (.*?) ({kinds})(?:-start)?\(", line):
            arrays = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", match[1])]
            if max(arrays, default=0) > 250_000:
                found.add(match[2])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "expected", "calls"),
    [
        ("ulysses", {"all-to-all"}, 1),
        # The blocks in a loop, the text's keys before it.
        ("ring", {"collective-permute"}, 2),
        ("ulysses_ring", {"all-to-all", "collective-permute"}, 2),
    ],
)
def test_on_tpus_the_video_moves_by_the_exchanges_of_its_mode_alone(mode: str, expected: set[str], calls: int) -> None:
    text = compiled(mode, "none")
    assert kernels(text) == {"fwd": calls, "dq": calls, "dkv": calls}
    assert exchanges(text) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "forward"), [("attention", 1), ("block", 2)])
def test_remat_by_the_name_attention_runs_the_forward_kernel_once(remat: str, forward: int) -> None:
    assert kernels(compiled("ulysses", remat)) == {"fwd": forward, "dq": 1, "dkv": 1}
