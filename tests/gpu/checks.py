"""The checks of the acceptance, a function each: `python -m tests.gpu.checks NAME SIZE OUT` runs one in this process.

Each gives rows, and runs at two sizes: `full` on a GPU, `tiny` anywhere, so that the script cannot break unseen. Limits
are ours; a row without one is a measurement.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax import assembly, sharding
from omnihuman_jax.attention.gpu import Cudnn, Triton
from omnihuman_jax.attention.kernel import Kernel, attend, window_ids
from omnihuman_jax.attention.xla import Dense
from omnihuman_jax.codecs import hunyuan_vae, vae_codec, wan_vae
from omnihuman_jax.commands import plan_scale
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.config import ExperimentConfig, load_config, planned_shape
from omnihuman_jax.data import packing
from omnihuman_jax.models import flops
from omnihuman_jax.scale import hardware
from omnihuman_jax.training import train_state
from tests.codecs import vae_folders
from tests.gpu.results import Row
from tests.training import tiny_config

ROOT = Path(__file__).resolve().parents[2]
# Of bfloat16 results against float32 ones, in units of the largest reference value.
BF16, FP32 = 0.03, 2e-5


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def seconds_of(call: Callable[[], Any], repeats: int = 5) -> float:
    """Of one call, the median; the first is not counted."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def peak_gib() -> float | None:
    """The most that the device has held in this process."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else None


def relative(found: Any, wanted: Any) -> float:
    """The largest difference over the largest value; inf where one is no number."""
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    return float(np.abs(found - wanted).max() / np.abs(wanted).max()) if np.isfinite(found).all() else float("inf")


def attention(size: str, out: Path) -> list[Row]:
    """Forward and gradients of the kernels against the dense reference: packs for Triton, one window for cuDNN."""
    length, heads, dim = (2048, 8, 128) if size == "full" else (48, 2, 16)
    rng = np.random.default_rng(0)
    dtype = jnp.bfloat16 if on_gpu() else jnp.float32
    q, k, v, weight = (jnp.asarray(rng.standard_normal((1, length, heads, dim)), dtype) for _ in range(4))
    packed = jnp.asarray(np.repeat([1, 2, 3, 0], [length // 2, length // 4, length // 8, length // 8]), jnp.int32)[None]
    whole = jnp.ones((1, length), jnp.int32)
    kernels: list[tuple[str, Kernel, jax.Array]] = [
        ("triton, three windows", Triton(block_q=16, block_kv=16, interpret=True) if not on_gpu() else Triton(), packed)
    ]
    if on_gpu():
        kernels += [("triton, one window", Triton(), whole), ("cudnn, one window", Cudnn(), whole)]

    def both(kernel: Kernel, ids: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            found = attend(kernel, q, k, v, *window_ids(ids)).astype(jnp.float32)
            return (found * weight).sum(), found

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    rows = []
    for name, kernel, ids in kernels:
        run = jax.jit(functools.partial(both, kernel, ids))
        (_, found), grads = run(q, k, v)
        exact = [x.astype(jnp.float32) for x in (q, k, v)]
        (_, wanted), true_grads = jax.jit(functools.partial(both, Dense(), ids))(*exact)
        limit = BF16 if dtype == jnp.bfloat16 else FP32
        rows.append(Row(what=f"{name}: forward", value=relative(found, wanted), unit="of the largest", limit=limit))
        worst = max(relative(x, y) for x, y in zip(grads, true_grads, strict=True))
        rows.append(Row(what=f"{name}: gradients", value=worst, unit="of the largest", limit=2 * limit))
        time_s = seconds_of(functools.partial(run, q, k, v))
        rows.append(Row(what=f"{name}: forward and backward", value=1e3 * time_s, unit="ms"))
    if not on_gpu():
        rows.append(Row(what="cudnn", note="left out: no GPU"))
    return rows


def config_of(size: str, **execution: Any) -> ExperimentConfig:
    """One sequence a step on one device: the 1 B config, or the tests' own."""
    if size == "full":
        config = load_config(ROOT / "configs" / "omnihuman_1b.py")
        config.data.plan.latent_tokens, config.compute_dtype = 8192, "bfloat16"
    else:
        config = tiny_config.get_config()
    config.mesh = sharding.MeshConfig(data=1)
    config.data.plan.sequences_per_step = 1
    config.step.micro_batches = 1
    config.execution = dataclasses.replace(config.execution, **execution)
    return config


def batch_of(config: ExperimentConfig, parts: assembly.StepParts, seed: int = 0) -> Any:
    """One window of random content that fills the sequence."""
    shape, model, rng = parts.shape, config.model, np.random.default_rng(seed)
    side = 8 if shape.latent_tokens <= 1024 else 64  # of a latent frame: (side / 2)^2 tokens
    tokens = (side // 2) ** 2
    latents = min(shape.latent_frames, shape.latent_tokens // tokens - 1)
    margin = config.data.plan.margin
    rows = 1 + 4 * (latents - 1) + 2 * margin

    def draw(*dims: int) -> np.ndarray:
        return rng.standard_normal(dims).astype(np.float32)

    active = ConditionSet.of(*Condition)
    active = active if model.audio else active.without(Condition.AUDIO)
    active = active if model.pose else active.without(Condition.POSE)
    window = packing.PackInput(
        latents_FHWC=draw(latents, side, side, model.latent_channels),
        reference_HWC=draw(side, side, model.latent_channels),
        text_SE=draw(min(8, shape.text_tokens), shape.text_width),
        pooled_E=draw(shape.pooled_width),
        active=active,
        audio_TE=draw(rows, shape.audio_width),
        audio_valid_T=np.ones(rows, bool),
        keypoints_TJ3=np.abs(draw(rows, shape.keypoints, 3)),
        keypoints_valid_T=np.ones(rows, bool),
        margin=margin,
    )
    return jax.device_put(packing.pack_batch([[window]], shape), parts.batch_shardings)


def trained(config: ExperimentConfig, steps: int) -> tuple[np.ndarray, list[float], int]:
    """(losses, seconds of each step, FLOPs of a step) on one repeated batch."""
    mesh = sharding.create_mesh(config.mesh, jax.devices()[:1])
    parts = assembly.assemble_step(config, mesh, planned_shape(config))
    with jax.set_mesh(mesh):
        state = train_state.create_train_state(config.model, parts.optimizer, parts.state_shardings, 0)
        step, batch = assembly.compile_step(parts, state), batch_of(config, parts)
        losses, times = [], []
        last = config.stages.total_steps - 1
        for index in range(steps):
            controls = assembly.controls_at(config, parts.groups, min(index, last))
            began = time.perf_counter()
            state, metrics = step(state, batch, controls)
            losses.append(float(metrics["loss"]))
            times.append(time.perf_counter() - began)
    return np.asarray(losses), times, flops.train_step_flops(config.model, parts.shape, 1)


def train_step(size: str, out: Path, remat: str = "block") -> list[Row]:
    """The step of the 1 B model: time, MFU, memory."""
    config = config_of(size, remat=remat)
    losses, times, step_flops = trained(config, 6 if size == "full" else 2)
    median = float(np.median(times[1:]))
    rows = [
        Row(what=f"remat {remat}: step", value=median, unit="s"),
        Row(what=f"remat {remat}: losses not finite", value=float((~np.isfinite(losses)).sum()), limit=0),
    ]
    peak = hardware.device_flops(jax.devices()[0].device_kind)
    if peak is not None:
        rows.append(Row(what=f"remat {remat}: MFU", value=100 * step_flops / median / peak, unit="%"))
    if (held := peak_gib()) is not None:
        rows.append(Row(what=f"remat {remat}: peak memory", value=held, unit="GiB"))
    if remat == "block":
        (out / "step.json").write_text(json.dumps({"step_s": median, "size": size}))
    return rows


def bfloat16_losses(size: str, out: Path) -> list[Row]:
    """Fifty steps in bfloat16 and in float32, from the same weights on the same batch."""
    steps, found = (50, {}) if size == "full" else (4, {})
    for dtype in ("float32", "bfloat16"):
        config = config_of(size)
        if size == "full":
            config.model.num_dual_layers, config.model.num_single_layers = 2, 2
            config.data.plan.latent_tokens = 2048
        config.compute_dtype = dtype
        found[dtype] = trained(config, steps)[0]
    gap = np.abs(found["bfloat16"] - found["float32"]) / found["float32"]
    return [
        Row(what=f"bfloat16 beside float32, {steps} steps: largest gap", value=float(gap.max()), unit="of the loss",
            limit=0.05),
        Row(what="loss of the last step, float32", value=float(found["float32"][-1])),
    ]  # fmt: skip


def resume(size: str, out: Path) -> list[Row]:
    """Train, kill -9, go on: the last checkpoint has the bits of a run that nobody disturbed."""
    from tests.gpu import kill_and_resume

    differing, arrays = kill_and_resume.compare(out / "resume")
    return [Row(what=f"killed and resumed: arrays of {arrays} that differ", value=float(differing), limit=0)]


def encode(size: str, out: Path) -> list[Row]:
    """Both video autoencoders at 480p, random weights: 17 frames, encoded and decoded."""
    full = {"AutoencoderKLHunyuanVideo": hunyuan_vae.HunyuanVaeConfig(), "AutoencoderKLWan": wan_vae.WanVaeConfig()}
    frames, height, width = (17, 480, 832) if size == "full" else (5, 32, 48)
    rows = []
    for kind, family in vae_codec.FAMILIES.items():
        config = full[kind] if size == "full" else vae_folders.CONFIGS[kind]
        abstract, _ = vae_codec.describe(kind, config, jnp.float32)
        leaves, tree = jax.tree.flatten(abstract)
        keys = jax.random.split(jax.random.key(0), len(leaves))
        make = lambda key, leaf: 0.05 * jax.random.normal(key, leaf.shape, leaf.dtype)  # noqa: E731
        params = jax.tree.unflatten(tree, [make(key, leaf) for key, leaf in zip(keys, leaves, strict=True)])
        video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (frames, height, width, 3)), jnp.float32)
        name = kind.removeprefix("AutoencoderKL")
        latents = vae_codec.run("encode", kind, config, family.options(), params, video)
        for method, array in (("encode", video), ("decode", latents)):
            work = functools.partial(vae_codec.run, method, kind, config, family.options(), params, array)
            wrong = float((~np.isfinite(np.asarray(work()))).sum())
            rows.append(Row(what=f"{name} {method}: values not finite", value=wrong, limit=0))
            rows.append(Row(what=f"{name} {method}, {frames} frames of {height}p", value=seconds_of(work, 1), unit="s"))
    if (held := peak_gib()) is not None:
        rows.append(Row(what="peak memory of both", value=held, unit="GiB"))
    return rows


def export(size: str, out: Path) -> list[Row]:
    """The exported PyTorch pipeline beside `omnihuman generate`: one picture, one voice, one seed."""
    from tests.gpu import exported_pipeline

    return exported_pipeline.compare(out / "export", device="cuda" if on_gpu() else "cpu")


def plan(size: str, out: Path) -> list[Row]:
    """What `omnihuman plan --topology h100:1 --estimate` says of the step that `train_step` measured."""
    file = out / "step.json"
    if not file.is_file():
        return [Row(what="prediction", note="left out: train_step has measured nothing", failed=size == "full")]
    kind = jax.devices()[0].device_kind
    names = [name for name in hardware.ACCELERATORS if name in kind.lower().split() or f"{name}-" in kind.lower()]
    known = next((name for name in names if hardware.ACCELERATORS[name].platform == "gpu"), None)
    if known is None and on_gpu():
        return [Row(what="prediction", note=f"left out: no row for {kind!r} in scale/hardware.py")]
    topology = hardware.parse_topology(f"{known or 'h100'}:1")
    report = plan_scale.plan(config_of(size, remat="block"), topology, compile_step=False)
    measured, line = json.loads(file.read_text())["step_s"], report.roofline
    assert line is not None
    return [
        Row(what=f"step predicted for {topology.name}", value=line.as_compiled_s, unit="s"),
        Row(what="measured over predicted", value=measured / line.as_compiled_s, unit="times",
            note="" if known else "not this machine: the number says nothing"),
    ]  # fmt: skip


CHECKS: dict[str, Callable[[str, Path], list[Row]]] = {
    "attention": attention,
    "train_step": train_step,
    "train_step_attention": functools.partial(train_step, remat="attention"),
    "train_step_offload": functools.partial(train_step, remat="block_offload"),
    "plan": plan,
    "bfloat16_losses": bfloat16_losses,
    "resume": resume,
    "encode": encode,
    "export": export,
}


def main(name: str, size: str, out: Path) -> None:
    """Writes OUT/NAME.json."""
    if size == "full" and not on_gpu():
        raise SystemExit(f"JAX sees no GPU ({jax.default_backend()} only): install jax[cuda12], or give --platform cpu")
    rows = CHECKS[name](size, out)
    (out / f"{name}.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    os.chdir(ROOT)
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
