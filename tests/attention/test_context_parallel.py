"""What the devices of the `context` axis exchange changes neither the result nor the gradients, and is what it should
be.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from omnihuman_jax.attention.context_parallel import MODES, heads_ways
from omnihuman_jax.attention.dispatch import AttentionStrategy, joint_attention
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


def strategy_of(mode: str, kernel: str = "dense") -> AttentionStrategy:
    """Two of the devices share out heads where the mode combines: rings of 4, 2 or 1."""
    return AttentionStrategy(kernel=kernel, context_parallel=mode, ulysses_ways=2 if mode == "ulysses_ring" else 0)


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
        found = jax.device_get(run(strategy_of(mode)))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(alone()), strict=True):
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        measured(f"attention and its gradients, {mode} over context against dense on one device", error, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", ["per_head", "blocked", "triton", "splash"])
def test_every_kernel_under_every_mode(kernel: str, mode: str, measured: Callable[[str, float, float], None]) -> None:
    """Pallas kernels run in interpret mode."""
    for ways in (MESHES["data 2 context 4"], MESHES["fsdp 2 context 2 tensor 2"]):
        with jax.set_mesh(create_mesh(MeshConfig(**dict(zip(MESH_AXES, ways, strict=True))))):
            found = jax.device_get(run(strategy_of(mode, kernel)))
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(alone()), strict=True):
            error = np.abs(ours - theirs).max() / np.abs(theirs).max()
            measured(
                "attention and its gradients, any kernel, any context parallelism, against dense alone",
                error,
                TOLERANCE,
            )


# What one call and its gradients exchange, as XLA compiles it for a context of 4. Of the video (V: a device's tokens,
# all its heads) and the text (T: all tokens, all heads of a device, whose gradients every device adds its part to):
COLLECTIVES = {
    # k, v, ids of V, T out; back: gradients of k, v of V and of T out; T's q, k and v gradients in one.
    "gather": {"all-gather": 4, "reduce-scatter": 3, "all-reduce": 1},
    # q, k, v, out of V; back: out, q, k, v of V. ids, T out (by head) and its gradient; T's gradients.
    "ulysses": {"all-to-all": 8, "all-gather": 2, "reduce-scatter": 1, "all-reduce": 1},
    # k, v, ids in each pass's loop; gradients of k, v in the loop, and home. T's queries over all keys: largest
    # log-sum-exp, sums; T's gradients.
    "ring": {"collective-permute": 10, "all-reduce": 3},
    "ulysses_ring": {"all-to-all": 8, "collective-permute": 10, "all-gather": 2, "reduce-scatter": 1, "all-reduce": 3},
}


@pytest.mark.parametrize("mode", MODES)
def test_the_compiled_program_holds_the_exchanges_of_its_mode_alone(mode: str) -> None:
    mesh = create_mesh(MeshConfig(data=1, context=4, tensor=2))
    video, text, video_ids, text_ids, *weights = inputs()
    specs = ("context", None)
    video_place, text_place = (NamedSharding(mesh, PartitionSpec(("data", "fsdp"), axis, "tensor")) for axis in specs)
    places = ((video_place,) * 3, (text_place,) * 3)

    def both(video, text, grads):
        joint = functools.partial(joint_attention, strategy=strategy_of(mode))
        out, back = jax.vjp(lambda video, text: joint(video, text, video_ids, text_ids), video, text)
        return out, back(grads)

    outs = (video_place, text_place)
    with jax.set_mesh(mesh):
        run = jax.jit(both, in_shardings=(*places, outs), out_shardings=(outs, places))
        compiled = run.lower(video, text, tuple(weights)).compile()
    assert collectives(compiled.as_text()) == COLLECTIVES[mode]


def collectives(text: str) -> Counter[str]:
    """Kind of collective -> how many of them a compiled program holds."""
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    return Counter(re.findall(rf" ({kinds})(?:-start)?\(", text))


@pytest.mark.parametrize(
    ("mode", "ulysses_ways", "message"),
    [
        ("ulysses", 0, r"6 heads .*over mesh.context 4; make that one of 1, 2, 3, 6, or .*ulysses_ring \(2 x 2\)"),
        ("ulysses_ring", 4, r"execution.attention.ulysses_ways 4 .*these do: 1, 2"),
    ],
)
def test_heads_that_cannot_be_shared_out_are_an_error_with_what_would_do(
    mode: str, ulysses_ways: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        heads_ways(mode, 6, 4, ulysses_ways)
    assert heads_ways("ulysses_ring", 6, 4) == 2 and heads_ways("ring", 5, 4) == 1 and heads_ways("ulysses", 12, 4) == 4


def test_video_tokens_that_cannot_be_split_are_an_error_unless_they_are_gathered() -> None:
    video, text, video_ids, text_ids, *_ = inputs()
    video, video_ids = tuple(x[:, :45] for x in video), video_ids[:, :45]
    with jax.set_mesh(create_mesh(MeshConfig(data=2, context=4))):
        with pytest.raises(ValueError, match=r"ring: 45 video tokens cannot be split over 4 .*: 44 and 48"):
            joint_attention(video, text, video_ids, text_ids, strategy=strategy_of("ring"))
        whole = jax.jit(functools.partial(joint_attention, strategy=strategy_of("gather")))(
            video, text, video_ids, text_ids
        )
    alone = joint_attention(video, text, video_ids, text_ids, strategy=DENSE)
    np.testing.assert_allclose(whole[0], alone[0], rtol=1e-5, atol=1e-6)
