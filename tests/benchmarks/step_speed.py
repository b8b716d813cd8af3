"""Speed and memory of one machine: our forward pass and train step against diffusers' HunyuanVideo in PyTorch, in one
run.

    python -m tests.benchmarks.step_speed              # what `make bench` runs
    python -m tests.benchmarks.step_speed --rounds 9 --only jax,torch-compile --checkpointing off --width 1024

Same sizes, float32, one packed window of 1024 + 64 tokens, all cores. Every variant is a process of its own that stays
alive; a round asks each of them in turn for one forward pass, one train step and one matrix product, so that a machine
whose speed drifts slows all of them alike. Each is done twice and the second is timed, as in a loop. A train step is
noise, forward, backward, clipping, AdamW and EMA on either side.
All run under what `omnihuman` sets on a CPU (`platform_flags.cpu_settings`: huge pages), or, with `--pages default`,
none of them. Without checkpointing ours keeps every product's output and computes element-wise work again
(`remat: products`), PyTorch
keeps what autograd keeps: neither computes a product twice. Medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from omnihuman_jax.runtime import platform_flags

VARIANTS = ("jax", "torch-eager", "torch-compile")
FRAMES, HEIGHT, WIDTH, TEXT = 4, 16, 16, 64  # tokens
COMMON = {
    "latent_channels": 16,
    "text_width": 512,
    "pooled_width": 128,
    "num_refiner_layers": 1,
    "rope_axes": (16, 56, 56),
}
SIZES = {
    512: {"width": 512, "num_heads": 4, "num_dual_layers": 4, "num_single_layers": 4, **COMMON},
    1024: {"width": 1024, "num_heads": 8, "num_dual_layers": 2, "num_single_layers": 2, **COMMON},
}
MATMUL = 2048
SETTLE_S = 0.5  # threads of the one before spin for a while after their last operation, and take a core from the next
RATE, DECAY, CLIP, EMA = 1e-4, 0.01, 1.0, 0.999

Work = dict[str, Callable[[], None]]


def jax_work(checkpointing: bool, width: int = 512) -> tuple[Work, int]:
    """forward, step and matmul of ours, and the FLOPs of a step."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from omnihuman_jax import sharding
    from omnihuman_jax.conditions import Condition, ConditionSet
    from omnihuman_jax.diffusion.flow_matching import FlowMatchingConfig
    from omnihuman_jax.models import flops, mmdit
    from omnihuman_jax.models.execution import ExecutionConfig
    from omnihuman_jax.training import optimizer as optim
    from omnihuman_jax.training import train_state
    from omnihuman_jax.training.train_step import Controls, Objective, make_train_step, place_controls
    from tests.interop.cases import Window, packed_batch, shape_for

    model = mmdit.MMDiTConfig(**SIZES[width])
    execution = ExecutionConfig(remat="block" if checkpointing else "products")
    shape = shape_for(
        model, latent_tokens=FRAMES * HEIGHT * WIDTH, text_tokens=TEXT, windows=1, latent_frames=FRAMES, frames=17
    )
    window = Window(
        latents=FRAMES, height=HEIGHT, width=WIDTH, text_tokens=TEXT, active=ConditionSet.of(Condition.TEXT)
    )
    mesh = sharding.create_mesh(sharding.MeshConfig(), jax.devices()[:1])
    batch = jax.device_put(packed_batch(shape, [[window]]), sharding.batch_shardings(mesh, shape, 1))
    optimizer_config = optim.OptimizerConfig(learning_rate=RATE, weight_decay=DECAY, clip_norm=CLIP, warmup_steps=0)
    shapes, axes = mmdit.abstract_params(model)
    labels = train_state.group_labels(axes)
    optimizer = optim.create_optimizer(optimizer_config, labels, axes)
    shardings = train_state.state_shardings(mesh, shapes, axes, optimizer)
    objective = Objective(model=model, execution=execution, flow=FlowMatchingConfig(), seed=0, dtype=jnp.float32)
    train_step = make_train_step(
        objective,
        optimizer,
        optimizer_config,
        optim.EmaConfig(decay=EMA),
        labels,
        mesh=mesh,
        shape=shape,
        batch=1,
        shardings=shardings,
    )
    controls = place_controls(
        Controls(learning_rate=RATE, trainable={"base": True}, stage_start=False, interval_start=False)
    )
    apply = jax.jit(lambda params, tokens, t, batch: mmdit.apply(model, params, tokens, t, batch, execution=execution))
    product = jax.jit(lambda a, b: a @ b)
    with jax.set_mesh(mesh):
        held = {"state": train_state.create_train_state(model, optimizer, shardings, 0)}
        t = jnp.full((1, 1), 0.5, jnp.float32)
        square = jnp.asarray(np.random.default_rng(0).standard_normal((MATMUL, MATMUL), np.float32))

    def forward() -> None:
        with jax.set_mesh(mesh):
            jax.block_until_ready(apply(held["state"].params, batch.latents_BLC, t, batch))

    def step() -> None:
        with jax.set_mesh(mesh):
            held["state"], metrics = train_step(held["state"], batch, controls)
            jax.block_until_ready(metrics)

    return {"forward": forward, "step": step, "matmul": lambda: jax.block_until_ready(product(square, square))}, (
        flops.train_step_flops(model, shape, 1)
    )


def torch_work(compiled: bool, checkpointing: bool, width: int = 512) -> tuple[Work, int]:
    """The same of diffusers' HunyuanVideoTransformer3DModel."""
    import torch
    from diffusers import HunyuanVideoTransformer3DModel

    torch.manual_seed(0)
    sizes = SIZES[width]
    model = HunyuanVideoTransformer3DModel(
        in_channels=sizes["latent_channels"],
        out_channels=sizes["latent_channels"],
        num_attention_heads=sizes["num_heads"],
        attention_head_dim=sizes["width"] // sizes["num_heads"],
        num_layers=sizes["num_dual_layers"],
        num_single_layers=sizes["num_single_layers"],
        num_refiner_layers=sizes["num_refiner_layers"],
        guidance_embeds=False,
        text_embed_dim=sizes["text_width"],
        pooled_projection_dim=sizes["pooled_width"],
        rope_theta=256.0,
        rope_axes_dim=sizes["rope_axes"],
    )
    if checkpointing:
        model.enable_gradient_checkpointing()
    parameters = list(model.parameters())
    ema = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY, foreach=True)
    run = torch.compile(model) if compiled else model
    latents = torch.randn(1, sizes["latent_channels"], FRAMES, 2 * HEIGHT, 2 * WIDTH)
    text, pooled = torch.randn(1, TEXT, sizes["text_width"]), torch.randn(1, sizes["pooled_width"])
    mask = torch.ones(1, TEXT, dtype=torch.bool)
    square = torch.randn(MATMUL, MATMUL)

    def velocity(noisy: torch.Tensor) -> torch.Tensor:
        t = torch.full((1,), 500.0)
        return run(noisy, t, text, mask, pooled, return_dict=False)[0]

    def forward() -> None:
        with torch.no_grad():
            velocity(latents)

    def step() -> None:
        noise = torch.randn_like(latents)
        loss = (velocity(0.5 * latents + 0.5 * noise) - (noise - latents)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(ema, parameters, 1 - EMA)

    return {"forward": forward, "step": step, "matmul": lambda: torch.mm(square, square)}, 0


def worker(variant: str, checkpointing: bool, width: int) -> None:
    """Builds and warms up, then answers one line of JSON to each line of its input: {'seconds'} of that work, or of
    `memory`.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes elsewhere
    before = _status("VmRSS")
    if variant == "jax":
        work, flops = jax_work(checkpointing, width)
    else:
        work, flops = torch_work(variant == "torch-compile", checkpointing, width)
    for name in ("forward", "step", "step", "matmul"):
        work[name]()
    platform_flags.give_back_memory()  # as the trainer does once it has compiled
    # The high-water mark from here on is the steps' own: building and compiling are over.
    Path("/proc/self/clear_refs").write_text("5")
    answers.write(json.dumps({"flops": flops}) + "\n")
    for line in sys.stdin:
        name = line.strip()
        if name == "memory":
            answers.write(json.dumps({"peak_mib": _status("VmHWM") / 1024, "import_mib": before / 1024}) + "\n")
            continue
        work[name]()  # as in a loop: caches, allocator and threads are those of the one before
        start = time.perf_counter()
        work[name]()
        answers.write(json.dumps({"seconds": time.perf_counter() - start}) + "\n")


def _status(field: str) -> int:
    """KiB of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


class Variant:
    """One process, asked a line at a time."""

    def __init__(self, name: str, checkpointing: bool, width: int, environment: dict[str, str]):
        self.name = name
        command = [sys.executable, "-m", "tests.benchmarks.step_speed", "--worker", name]
        self.process = subprocess.Popen(
            [*command, "--checkpointing", "on" if checkpointing else "off", "--width", str(width)], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.seconds: dict[str, list[float]] = {"forward": [], "step": [], "matmul": []}
        self.flops = int(self._read()["flops"])

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(
                f"{self.name} ended with code {self.process.wait()}; run it with --worker to see why"
            )
        return json.loads(line)

    def ask(self, name: str) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(names: Sequence[str], checkpointing: bool, width: int, rounds: int, environment: dict[str, str]) -> None:
    """Prints the table of one setting."""
    from rich.console import Console
    from rich.table import Table

    from omnihuman_jax.runtime.progress import progress_bar

    variants = []
    with progress_bar(stays=True) as bar:
        building = f"building, width {width}, checkpointing {'on' if checkpointing else 'off'}"
        for name in bar.track(names, description=building):
            variants.append(Variant(name, checkpointing, width, environment))
        for _ in bar.track(range(rounds), description="measuring"):
            for work in ("matmul", "forward", "step"):
                for variant in variants:
                    time.sleep(SETTLE_S)
                    variant.seconds[work].append(variant.ask(work)["seconds"])
    flops = max(variant.flops for variant in variants)
    peaks = {variant.name: 2 * MATMUL**3 / min(variant.seconds["matmul"]) / 1e9 for variant in variants}
    peak = max(peaks.values())
    medians = {
        variant.name: {work: statistics.median(times) for work, times in variant.seconds.items()}
        for variant in variants
    }
    fastest = min((medians[name]["step"] for name in names if name.startswith("torch")), default=None)
    table = Table(title=f"width {width}, checkpointing {'on' if checkpointing else 'off'}, {rounds} rounds, medians")
    columns = ("forward s", "step s", "speed, of the faster torch step", "GFLOP/s of step", "of the machine's peak")
    for column in ("", *columns, "own matmul GFLOP/s", "step's peak MiB"):
        table.add_column(column, justify="right" if column else "left")
    for variant in variants:
        memory, own = variant.ask("memory"), medians[variant.name]
        rate = flops / own["step"] / 1e9
        table.add_row(
            variant.name, f"{own['forward']:.3f}", f"{own['step']:.3f}",
            f"{fastest / own['step']:.2f}" if fastest else "-",
            f"{rate:.0f}", f"{rate / peak:.0%}", f"{peaks[variant.name]:.0f}", f"{memory['peak_mib']:.0f}",
        )  # fmt: skip
        variant.close()
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    parser.add_argument("--only", default=",".join(VARIANTS), metavar="NAME,...", help="(%(default)s)")
    parser.add_argument("--checkpointing", choices=("on", "off", "both"), default="both", help="(%(default)s)")
    parser.add_argument("--width", choices=("512", "1024", "both"), default="both", help="(%(default)s)")
    parser.add_argument("--pages", choices=("huge", "default"), default="huge", help="(%(default)s)")
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.checkpointing == "on", int(options.width))
        return
    environment = dict(os.environ) | {"JAX_PLATFORMS": "cpu"}
    if options.pages == "huge":
        environment |= platform_flags.cpu_settings(environment)
    for width in SIZES:
        for checkpointing in (False, True):
            if options.width in ("both", str(width)) and options.checkpointing in (
                "both",
                "on" if checkpointing else "off",
            ):
                measure(options.only.split(","), checkpointing, width, options.rounds, environment)


if __name__ == "__main__":
    main()
