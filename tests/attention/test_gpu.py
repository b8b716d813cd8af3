"""What can be known about the GPU kernels without a GPU: that they lower for CUDA, and that what surrounds cuDNN is
right.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnihuman_jax import sharding
from omnihuman_jax.attention import gpu as attention_gpu
from omnihuman_jax.attention.dispatch import AttentionStrategy, check_one_window, joint_attention, resolve
from omnihuman_jax.attention.gpu import Cudnn, Triton, fused
from omnihuman_jax.attention.kernel import Kernel, attend, window_ids
from omnihuman_jax.attention.xla import Dense
from omnihuman_jax.models import mmdit
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.training.train_step import loss_fn
from omnihuman_jax.typing import ArraySpec
from tests.training import tiny

CUDNN_VERSION = 91_000


@pytest.fixture
def cudnn_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax asks the library that is installed for its version before it lowers anything; there is none here."""
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: CUDNN_VERSION)


def lowered(kernel: Kernel) -> str:
    """Forward and backward for CUDA: bfloat16, heads of 128, lengths that are no multiple of a block."""
    b, m, s, n, k = 2, 1000, 1100, 3, 128
    tokens = lambda length: jax.ShapeDtypeStruct((b, length, n, k), jnp.bfloat16)  # noqa: E731
    ids = lambda length: jax.ShapeDtypeStruct((b, length), jnp.int32)  # noqa: E731

    def loss(q, k, v, q_ids, kv_ids):
        return jnp.square(attend(kernel, q, k, v, q_ids, kv_ids).astype(jnp.float32)).sum()

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    traced = grad.trace(tokens(m), tokens(s), tokens(s), ids(m), ids(s))
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_the_packed_kernel_lowers_for_cuda_forward_and_backward() -> None:
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        text = lowered(Triton())
    for name in ("forward", "backward_q", "backward_kv"):
        assert f"packed_attention_{name}" in text
    assert text.count("__gpu$xla.gpu.triton") == 3


def test_cudnn_lowers_for_cuda_forward_and_backward(cudnn_installed: None) -> None:
    text = lowered(Cudnn())
    assert text.count("@__cudnn$fmhaSoftmax(") == 1 and text.count("@__cudnn$fmhaSoftmaxBackward(") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "mode", "windows"),
    [("auto", "ulysses", 3), ("auto", "ring", 3), ("cudnn", "ulysses", 1), ("cudnn", "ring", 1)],
)
def test_the_loss_of_a_sharded_model_lowers_for_cuda(
    attention: str, mode: str, windows: int, cudnn_installed: None
) -> None:
    """Gradients of the training loss in bfloat16 on data 2 x context 2; packs as a described GPU mesh has them."""
    ways, axes = (2, 1, 2, 1), sharding.MESH_AXES
    if attention == "auto":
        device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
        types = (jax.sharding.AxisType.Auto,) * len(axes)
        mesh: Any = jax.sharding.AbstractMesh(ways, axes, axis_types=types, abstract_device=device)
        active = jax.sharding.use_abstract_mesh(mesh)
    else:  # cuDNN's primitive wants devices, whatever they are, when it is lowered
        mesh = sharding.create_mesh(sharding.MeshConfig(**dict(zip(axes, ways, strict=True))), jax.devices()[:4])
        active = jax.set_mesh(mesh)
    config = tiny.model_config(dual=1, single=1)
    strategy = AttentionStrategy(kernel=attention, context_parallel=mode)
    execution = ExecutionConfig(remat="none", attention=strategy)
    objective = dataclasses.replace(tiny.objective(config, execution), dtype=jnp.bfloat16)

    def place(leaf: Any, logical: tuple[str | None, ...]) -> jax.ShapeDtypeStruct:
        placed = sharding.named_sharding(mesh, logical, leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

    params = jax.tree.map(place, *mmdit.abstract_params(config))
    shape = dataclasses.replace(tiny.packed_shape(), windows=windows)
    places = sharding.batch_shardings(mesh, shape, tiny.SEQUENCES)
    batch = jax.tree.map(ArraySpec.abstract, shape.arrays(tiny.SEQUENCES), places)
    with active:
        grad = jax.jit(jax.grad(lambda params, batch: loss_fn(params, objective, jnp.int32(0), batch)[0]))
        text = grad.trace(params, batch).lower(lowering_platforms=("cuda",)).as_text()
    exchange = {"ulysses": "all_to_all", "ring": "collective_permute"}[mode]
    assert f"stablehlo.{exchange}" in text
    if attention == "auto":
        assert "packed_attention_backward_kv" in text and "cudnn" not in text
    else:
        assert "@__cudnn$fmhaSoftmax(" in text and "@__cudnn$fmhaSoftmaxBackward(" in text


def test_around_cudnn_the_windows_keys_are_found_wherever_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's two passes written out, on what they are given: sorted keys, lengths, and in the second log-sum-exp and
    output.
    """

    def scores(q, k, lengths, scale):
        masked = (jnp.arange(k.shape[1]) < lengths[:, None])[:, None, None, :]
        return jnp.where(masked, jnp.einsum("bmnk,bsnk->bnms", q, k) * scale, -1e30)

    def forward(q, k, v, *, q_seqlen, kv_seqlen, scale, mask_type, return_residual):
        assert mask_type == fused.MaskType.PADDING and return_residual and q_seqlen.shape == kv_seqlen.shape
        found = scores(q, k, kv_seqlen, scale)
        lse = jax.nn.logsumexp(found, axis=-1)
        return jnp.einsum("bnms,bsnk->bmnk", jnp.exp(found - lse[..., None]), v), lse

    def backward(scale, *settings):
        *_, residuals, grad = settings  # what lies between differs by JAX's version
        q, k, v, _, _, lengths, *_, lse, out = residuals
        weights = jnp.exp(scores(q, k, lengths, scale) - lse[..., None])
        aligned = jnp.einsum("bmnk,bmnk->bnm", out, grad)[..., None]
        back = weights * (jnp.einsum("bmnk,bsnk->bnms", grad, v) - aligned) * scale
        pairs = (("bnms,bsnk->bmnk", back, k), ("bnms,bmnk->bsnk", back, q), ("bnms,bmnk->bsnk", weights, grad))
        return *(jnp.einsum(*pair) for pair in pairs), *[None] * 7

    monkeypatch.setattr(attention_gpu.fused, "dot_product_attention", forward)
    monkeypatch.setattr(attention_gpu.fused, "_dot_product_attention_bwd_rule", backward)
    rng = np.random.default_rng(0)
    ids = np.zeros((2, 40), np.int32)
    ids[0, :23], ids[0, 30:36] = 1, 1  # video, padding, text, padding
    ids[1] = 1
    q, k, v, weight = (rng.normal(size=(2, 40, 2, 8)).astype(np.float32) for _ in range(4))

    def loss(kernel, q, k, v):
        out = attend(kernel, q, k, v, *window_ids(ids))
        return (out * weight).sum(), out

    found, wanted = (
        jax.jit(jax.value_and_grad(functools.partial(loss, kernel), argnums=(0, 1, 2), has_aux=True))(q, k, v)
        for kernel in (Cudnn(), Dense())
    )
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    assert not np.asarray(found[0][1])[ids == 0].any()


def test_which_kernel_a_gpu_gets(cudnn_installed: None) -> None:
    gpu = jax.sharding.AbstractDevice(device_kind="H100", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("context",), abstract_device=gpu)):
        assert resolve(AttentionStrategy(), one_window=True) == Cudnn()
        assert resolve(AttentionStrategy()) == Triton()
        assert resolve(AttentionStrategy(kernel="cudnn")) == Triton(), "audio and the text refiner have ids"
    x = jnp.zeros((1, 4, 1, 8))
    run = functools.partial(joint_attention, (x,) * 3, (x,) * 3, None, None, strategy=AttentionStrategy(kernel="cudnn"))
    with pytest.raises(
        ValueError, match=r"cudnn takes one window a sequence, data.plan.windows is 3; take triton or auto"
    ):
        run(windows=3)
    with pytest.raises(ValueError, match=r"cudnn computes in bfloat16, compute_dtype is float32"):
        run(windows=1)
    auto = AttentionStrategy()
    assert check_one_window(auto, 1, jnp.bfloat16) and not check_one_window(auto, 1, jnp.float32)
    with pytest.raises(ValueError, match=r"execution.attention.block_q 48: triton takes powers of two"):
        AttentionStrategy(kernel="triton", block_q=48).validate()
