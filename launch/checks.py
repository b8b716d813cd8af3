"""What is looked at before anything is sent, beside the spec's own fields: the target, the image, the config on the accelerator."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from types import ModuleType

from launch import command, jobset, literals, local, queued_resource, slurm
from launch.spec import RunSpec

TARGETS: dict[str, ModuleType] = {"jobset": jobset, "queued-resource": queued_resource, "slurm": slurm, "local": local}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """allow_tag: an image that is named by tag may pass; preflight: ask `omnihuman plan` whether the run fits in memory."""

    allow_tag: bool = False
    preflight: bool = False


def check(spec: RunSpec, target: str, options: Options) -> None:
    """ValueError or FileNotFoundError, one line with the cure, on the first thing that is wrong."""
    spec.validate()
    if target != "local":
        check_image(spec, target, allow_tag=options.allow_tag)
        check_output(spec, target)
        check_secrets(spec, target)
    TARGETS[target].check(spec)
    check_config(spec, target)
    if target == "jobset":
        for where, image in literals.images_of_pod(jobset.pod_of(jobset.manifest(spec))):
            literals.check_image(where, image, allow_tag=options.allow_tag)
    if options.preflight:
        preflight(spec)


def check_image(spec: RunSpec, target: str, *, allow_tag: bool) -> None:
    """The spec's image, and those that its lines for SLURM name; `check` looks at the pods' own, which a patch may change."""
    if target == "slurm":
        for image in literals.images_in_text([*spec.slurm.directives, *spec.slurm.setup]):
            literals.check_image("slurm: the image", image, allow_tag=allow_tag)
        if spec.slurm.runtime == "python":
            return
    if not spec.image:
        raise ValueError(f"image is missing; --target {target} runs one, by digest: repo@sha256:...")
    literals.check_image("image", spec.image, allow_tag=allow_tag)


def check_output(spec: RunSpec, target: str) -> None:
    """A restart has to find the run again: on a volume or a shared file system, not inside a container."""
    places = {"output": spec.output}
    if spec.checkpoints and "://" not in spec.checkpoints:
        places["checkpoints"] = spec.checkpoints
    for field, place in places.items():
        if not place.startswith("/"):
            hint = "; mount the bucket (volumes), checkpoints alone may be a URI" if "://" in place else ""
            raise ValueError(f"{field} {place!r}: an absolute path for --target {target}{hint}")
    if target == "jobset":
        homes = [volume.mount for volume in spec.volumes if not volume.read_only]
    elif target == "queued-resource":
        homes = list(spec.tpu_vm.mounts.values())
    else:
        return
    where = f"{'volumes' if target == 'jobset' else 'tpu_vm.mounts'} ({', '.join(homes) or 'there are none'})"
    for field, place in places.items():
        if not any(PurePosixPath(place).is_relative_to(home) for home in homes):
            raise ValueError(f"{field} {place!r} lies on none of {where}: restarts would not find it")


def check_secrets(spec: RunSpec, target: str) -> None:
    """Kubernetes' secrets for pods, files for machines."""
    for name, ref in spec.secrets.items():
        if target == "jobset" and ref.file:
            raise ValueError(f"secrets.{name}: pods read Kubernetes secrets; give secret and key instead of file")
        if target != "jobset" and ref.secret:
            raise ValueError(f"secrets.{name}: --target {target} reads files on the machines; give file instead of secret and key")


def check_config(spec: RunSpec, target: str) -> None:
    """The config has to load with its overrides, and its mesh to split model and batch over exactly these devices."""
    from omnihuman_jax.config import load_config
    from omnihuman_jax.scale.splits import check_splits

    config = load_config(spec.config, command.overrides(spec))
    machines, slices, devices, where = spec.machines, None, spec.machines.devices, str(spec.machines)
    if target == "local":
        layout = local.layout_of(spec)
        devices, where = layout.processes * layout.devices, f"{layout.processes} local processes of {layout.devices} devices"
        if not devices:
            return  # The machine's own devices: only its process can count them.
    elif machines.kind == "tpu":
        # Only TPUs know of their slices; elsewhere mesh.slices says.
        slices = machines.groups
    try:
        check_splits(config.mesh, config.model, config.data.plan, config.step.micro_batches, num_devices=devices, slices=slices)
    except ValueError as error:
        raise ValueError(f"{spec.config} does not fit {where}: {error}") from error


def plan_argv(spec: RunSpec) -> list[str]:
    """`omnihuman plan` on the spec's config and topology."""
    machines = spec.machines
    if machines.kind == "cpu":
        raise ValueError("--preflight plans memory on accelerators; accelerator.type is cpu")
    generation = machines.type.removesuffix("-mega")
    shape = machines.slice.topology if machines.slice is not None else str(machines.devices)
    argv = ["-m", "omnihuman_jax.cli", "plan", f"--config={spec.config}", f"--topology={generation}:{shape}"]
    return [sys.executable, *argv, f"--slices={machines.groups}", *command.overrides(spec)]


def preflight(spec: RunSpec) -> None:
    """Shows the memory plan; ValueError if there is none, or the run does not fit."""
    argv = plan_argv(spec)
    print(f"preflight: omnihuman {shlex.join(argv[3:])}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "plan.json"
        # On a machine that has accelerators too, the plan is a matter of the CPU.
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run([*argv, f"--json={answer}"], stdout=sys.stderr, env=environment, check=False)
        if done.returncode or not answer.is_file():
            raise ValueError(f"preflight: `omnihuman plan` refuses this run on {spec.machines} (code {done.returncode}), see above")
        memory = json.loads(answer.read_text(encoding="utf-8"))["memory"]
    if not memory["fits"]:
        peak = memory["peak"] / 2**30
        raise ValueError(
            f"preflight: {spec.config} needs {peak:.1f} GiB a device on {spec.machines}, more than there is; see above"
        )
