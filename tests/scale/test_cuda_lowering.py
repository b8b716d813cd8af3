"""The whole train step lowers for CUDA: packed attention's Triton kernels, sharding, micro-batches and host memory
together.
"""

import importlib

import jax
import pytest

from omnihuman_jax import sharding
from omnihuman_jax.attention import dispatch
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.training.train_step import StepConfig
from tests.scale.compile_cost import trace_step
from tests.training import tiny

pytestmark = pytest.mark.slow


def test_the_whole_step_lowers_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    # There is no GPU here to ask; the program is only written, not compiled.
    monkeypatch.setattr(dispatch, "platform", lambda: "gpu")
    if jax.__version_info__ >= (0, 12):
        # Pallas asks which GPU: the mesh's devices, here CPUs, are to pass for one.
        gpus = importlib.import_module("jax._src.pallas.triton.gpu_info")
        h100 = gpus.get_gpu_info_from_version(gpus.GpuVersion.H100)
        monkeypatch.setitem(gpus.registry, "cpu", lambda: h100)
    trainer = tiny.Trainer(
        sharding.MeshConfig(data=1, fsdp=2, context=2, tensor=2),
        config=tiny.model_config(single=1, refiner=1),
        execution=ExecutionConfig(remat="attention_offload"),
        step=StepConfig(micro_batches=2, offload="moments_ema"),
    )
    traced = trace_step(trainer)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for kernel in ("forward", "backward_q", "backward_kv"):
        assert f"packed_attention_{kernel}" in text
    assert "__gpu$xla.gpu.triton" in text
    assert (
        text.count("annotate_device_placement") >= 2 * len(jax.tree.leaves(trainer.shardings.ema))
        and "pinned_host" in text
    )
