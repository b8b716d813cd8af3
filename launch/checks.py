"""What is looked at before anything is sent, beside the spec's own fields: the target, the image, the config on the
accelerator.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from launch import command, literals, local, places
from launch.spec import RunSpec
from launch.target import OPTIONAL_FIELDS, Target
from launch.targets import TARGETS

if TYPE_CHECKING:
    from omnihuman_jax.config import ExperimentConfig

# What a save costs, for a warning: bytes a parameter, and bytes a second that a host writes to a disk of the network.
STATE_BYTES = 16
WRITE_RATE = 0.5e9


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """allow_tag: an image that is named by tag may pass; preflight: ask `omnihuman plan` whether the run fits in
    memory.
    """

    allow_tag: bool = False
    preflight: bool = False


def check(spec: RunSpec, target: Target, options: Options) -> None:
    """ValueError or FileNotFoundError, one line with the cure, on the first thing that is wrong."""
    spec.validate()
    target.check(spec)
    check_fields(spec, target)
    check_secrets(spec, target)
    config = load(spec)
    check_images(spec, target, allow_tag=options.allow_tag)
    if not target.here:
        places.check(spec, target, config)
    check_mesh(spec, target, config)
    if options.preflight:
        preflight(spec)


def warnings(spec: RunSpec, target: Target) -> list[str]:
    """What is allowed and may hurt, a line each; of a checked spec."""
    own = target.warnings(spec)
    return own if target.here else [*own, *places.warnings(spec, load(spec))]


def check_fields(spec: RunSpec, target: Target) -> None:
    """What a target cannot do is an error; the blocks `slurm`, `tpu_vm` and `local` say themselves whose they are."""
    unset = RunSpec(name="", config="", output="", accelerator=spec.accelerator)
    for field in OPTIONAL_FIELDS:
        if field not in target.takes and getattr(spec, field) != getattr(unset, field):
            takers = [name for name, other in TARGETS.items() if field in other.takes and not other.here]
            hint = target.instead.get(field, "leave it out")
            raise ValueError(
                f"{field} has no effect with --target {target.name}, only with {' and '.join(takers)}; {hint}"
            )


def load(spec: RunSpec) -> "ExperimentConfig":
    """The config with its overrides, as the trainer will load it."""
    from omnihuman_jax.config import load_config

    return load_config(spec.config, command.overrides(spec))


def check_images(spec: RunSpec, target: Target, *, allow_tag: bool) -> None:
    """All images that the target would run, by digest."""
    for where, image in target.images(spec):
        if not image:
            raise ValueError(f"{where} is missing; --target {target.name} runs one, by digest: repo@sha256:...")
        literals.check_image(where, image, allow_tag=allow_tag)


def check_secrets(spec: RunSpec, target: Target) -> None:
    """Kubernetes' secrets for pods, files for machines."""
    for name, ref in spec.secrets.items():
        if target.secrets == "kubernetes" and ref.file:
            raise ValueError(f"secrets.{name}: pods read Kubernetes secrets; give secret and key instead of file")
        if target.secrets == "files" and ref.secret:
            raise ValueError(
                f"secrets.{name}: --target {target.name} reads files on the machines; give file instead of secret and"
                " key"
            )


def check_mesh(spec: RunSpec, target: Target, config: "ExperimentConfig") -> None:
    """The config's mesh has to split model and batch over exactly these devices."""
    from omnihuman_jax.training.splits import check_splits

    machines, slices, devices, where = spec.machines, None, spec.machines.devices, str(spec.machines)
    if target.here:
        processes = local.processes_of(spec)
        devices, where = (
            processes.count * processes.devices,
            f"{processes.count} local processes of {processes.devices} devices",
        )
        if not devices:
            return  # The machine's own devices: only its process can count them.
    elif machines.kind == "tpu":
        # Only TPUs know of their slices; elsewhere mesh.slices says.
        slices = machines.groups
    try:
        check_splits(
            config.mesh,
            config.model,
            config.execution.attention,
            config.data.plan,
            config.step.micro_batches,
            num_devices=devices,
            slices=slices,
        )
    except ValueError as error:
        raise ValueError(f"{spec.config} does not fit {where}: {error}") from error


def plan_argv(spec: RunSpec) -> list[str]:
    """`omnihuman plan` on the spec's config and topology."""
    machines = spec.machines
    if machines.kind == "cpu":
        raise ValueError("--preflight plans memory on accelerators; accelerator.type is cpu")
    from omnihuman_jax.scale.described_devices import FORMULA_ONLY

    generation = machines.type.removesuffix("-mega")
    shape = machines.slice.topology if machines.slice is not None else str(machines.devices)
    argv = ["-m", "omnihuman_jax.cli", "plan", f"--config={spec.config}", f"--topology={generation}:{shape}"]
    formula = ["--estimate"] if generation in FORMULA_ONLY else []
    return [sys.executable, *argv, f"--slices={machines.groups}", *formula, *command.overrides(spec)]


def preflight(spec: RunSpec) -> None:
    """Shows the memory plan; ValueError if there is none, or the run does not fit."""
    argv = plan_argv(spec)
    print(f"preflight: omnihuman {shlex.join(argv[3:])}", file=sys.stderr, flush=True)
    if "--estimate" in argv:
        print(
            f"preflight: by formula: no program for {spec.machines.type} can be compiled here",
            file=sys.stderr,
            flush=True,
        )
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "plan.json"
        # On a machine that has accelerators too, the plan is a matter of the CPU.
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run([*argv, f"--json={answer}"], stdout=sys.stderr, env=environment, check=False)
        if done.returncode or not answer.is_file():
            raise ValueError(
                f"preflight: `omnihuman plan` refuses this run on {spec.machines} (code {done.returncode}), see above"
            )
        plan = json.loads(answer.read_text(encoding="utf-8"))
        memory = plan["memory"]
    if not memory["fits"]:
        of_host = memory["peak"] <= memory["limit"]
        needed = (
            f"{memory['host' if of_host else 'peak'] / 2**30:.1f} GiB a device{' in host memory' if of_host else ''}"
        )
        raise ValueError(
            f"preflight: {spec.config} needs {needed} on {spec.machines}, which is more than a device has; see above"
        )
    if warning := grace_warning(spec, plan["parameters"]):
        print(f"preflight: warning: {warning}", file=sys.stderr, flush=True)


def grace_warning(spec: RunSpec, parameters: int) -> str:
    """Why `grace_s` may be too short for the save that a SIGTERM asks for; empty if it is not.

    Each host writes its share of the state: 16 bytes a parameter, which are weights, their average and two moments in
        float32.
    """
    share = STATE_BYTES * parameters / spec.machines.processes
    seconds = share / WRITE_RATE
    if seconds <= spec.grace_s:
        return ""
    return (
        f"a save of {share / 1e9:.1f} GB a host takes {seconds:.1f} s at an assumed {WRITE_RATE / 1e9:g} GB/s, more"
        f" than grace_s {spec.grace_s}: a preempted run would lose the steps since its last checkpoint; raise grace_s,"
        " or measure the rate (omnihuman bench-checkpoint)"
    )
