"""What is looked at before anything is sent, beside the spec's own fields: the target, the image, the config on the
accelerator.
"""

import dataclasses
import json
import os
import posixpath
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any

from launch import command, jobset, literals, local, queued_resource, slurm
from launch.spec import RunSpec

if TYPE_CHECKING:
    from omnihuman_jax.config import ExperimentConfig

TARGETS: dict[str, ModuleType] = {"jobset": jobset, "queued-resource": queued_resource, "slurm": slurm, "local": local}
# Fields that some targets have no use for; elsewhere they are refused, not dropped. `local` takes all: it stands for
# the cluster.
_KUBERNETES = (
    "namespace",
    "queue",
    "priority",
    "placement_policy",
    "ttl_s",
    "security",
    "host_network",
    "volumes",
    "pod_patch",
)
TAKEN_BY = {
    **dict.fromkeys(_KUBERNETES, ("jobset",)),
    "service_account": ("jobset", "queued-resource"),
    "spot": ("jobset", "queued-resource"),
}
INSTEAD = {
    "slurm": {
        # A class of Kubernetes has no number that SLURM could take.
        "priority": "SLURM has slurm.qos, and slurm.directives such as --nice=100",
        "queue": "SLURM has slurm.partition",
        "spot": "SLURM has slurm.partition",
        "volumes": "the nodes' own file systems are there, in a container by slurm.binds",
    },
    "queued-resource": {"volumes": "TPU VMs have tpu_vm.mounts"},
}
# What a save costs, for a warning: bytes a parameter, and bytes a second that a host writes to a disk of the network.
STATE_BYTES = 16
WRITE_RATE = 0.5e9
# Metrics and event logs are appended to, which object stores cannot do.
_NO_BUCKET = (
    "; logs are appended to there, which a bucket's URI cannot: mount the bucket, and give `checkpoints` the URI"
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """allow_tag: an image that is named by tag may pass; preflight: ask `omnihuman plan` whether the run fits in
    memory.
    """

    allow_tag: bool = False
    preflight: bool = False


def check(spec: RunSpec, target: str, options: Options) -> None:
    """ValueError or FileNotFoundError, one line with the cure, on the first thing that is wrong."""
    spec.validate()
    TARGETS[target].check(spec)
    check_fields(spec, target)
    if target != "local":
        check_secrets(spec, target)
    pod = jobset.pod_of(jobset.manifest(spec)) if target == "jobset" else {}
    config = load(spec)
    if target != "local":
        check_images(spec, target, pod, allow_tag=options.allow_tag)
        check_output(spec, target, config.checkpoint.directory, pod)
    check_mesh(spec, target, config)
    if options.preflight:
        preflight(spec)


def check_fields(spec: RunSpec, target: str) -> None:
    """What a target cannot do is an error; the blocks `slurm`, `tpu_vm` and `local` say themselves whose they are."""
    unset = RunSpec(name="", config="", output="", accelerator=spec.accelerator)
    for field, targets in TAKEN_BY.items():
        if target not in (*targets, "local") and getattr(spec, field) != getattr(unset, field):
            hint = INSTEAD.get(target, {}).get(field, "leave it out")
            raise ValueError(f"{field} has no effect with --target {target}, only with {' and '.join(targets)}; {hint}")


def load(spec: RunSpec) -> "ExperimentConfig":
    """The config with its overrides, as the trainer will load it."""
    from omnihuman_jax.config import load_config

    return load_config(spec.config, command.overrides(spec))


def check_images(spec: RunSpec, target: str, pod: Mapping[str, Any], *, allow_tag: bool) -> None:
    """The spec's image, those that its lines for SLURM name, and those of the pod, which a patch may change."""
    if target == "slurm":
        for image in literals.images_in_text([*spec.slurm.directives, *spec.slurm.setup]):
            literals.check_image("slurm: the image", image, allow_tag=allow_tag)
        if spec.slurm.runtime == "python":
            return
    if not spec.image:
        raise ValueError(f"image is missing; --target {target} runs one, by digest: repo@sha256:...")
    literals.check_image("image", spec.image, allow_tag=allow_tag)
    for where, image in literals.images_of_pod(pod):
        literals.check_image(where, image, allow_tag=allow_tag)


def check_output(spec: RunSpec, target: str, directory: str, pod: Mapping[str, Any]) -> None:
    """A restart has to find the run again: on a volume or a shared file system, not inside a container.

    Args:
        spec: the run.
        target: not `local`.
        directory: of the checkpoints, as the config says with all overrides; empty: in the output.
        pod: jobset: the pod as it will be, patched.
    """
    places = {"output": spec.output}
    if directory and ("://" not in directory or directory.startswith("file:")):
        own = (
            "overrides.checkpoint.directory"
            if "checkpoint.directory" in spec.overrides
            else f"checkpoint.directory of {spec.config}"
        )
        places["checkpoints" if spec.checkpoints else own] = directory
    for field, place in places.items():
        if not place.startswith("/"):
            raise ValueError(
                f"{field} {place!r} must be an absolute path with --target "
                f"{target}{(_NO_BUCKET if '://' in place else '')}"
            )
    homes = _homes(spec, target, pod)
    if homes is None:
        return
    where = {"jobset": "volumes", "queued-resource": "tpu_vm.mounts", "slurm": "output and slurm.binds"}[target]
    lasting = f"{where} ({', '.join(home for home, reason in homes.items() if not reason) or 'there are none'})"
    for field, place in places.items():
        path = PurePosixPath(posixpath.normpath(place))
        around = [home for home in homes if path.is_relative_to(home)]
        if not around:
            raise ValueError(
                f"{field} {place!r} is on none of {lasting}, so a restart would not find it; put it on one of them"
            )
        if reason := homes[max(around, key=lambda home: len(PurePosixPath(home).parts))]:
            raise ValueError(
                f"{field} {place!r} is on {reason}, so a restart would not find it; put it on one of {lasting}"
            )


def _homes(spec: RunSpec, target: str, pod: Mapping[str, Any]) -> dict[str, str] | None:
    """The folders that the trainer sees from outside its container, and why what is written there would not last; None:
    all.
    """
    if target == "jobset":
        return jobset.homes(pod)
    if target == "queued-resource":
        own = ("/tmp", "/var/tmp", "/dev/shm", "/run")
        return {
            container: (
                f"{host} of the VM, which does not last"
                if any(PurePosixPath(host).is_relative_to(o) for o in own)
                else ""
            )
            for host, container in spec.tpu_vm.mounts.items()
        }
    if spec.slurm.runtime == "apptainer":
        binds = [bind.split(":") for bind in spec.slurm.binds]
        inside = {(parts[1] if len(parts) > 1 else parts[0]): "ro" in parts[2:] for parts in binds}
        return {spec.output: ""} | {path: "a bind that is read-only" if fixed else "" for path, fixed in inside.items()}
    return None


def check_secrets(spec: RunSpec, target: str) -> None:
    """Kubernetes' secrets for pods, files for machines."""
    for name, ref in spec.secrets.items():
        if target == "jobset" and ref.file:
            raise ValueError(f"secrets.{name}: pods read Kubernetes secrets; give secret and key instead of file")
        if target != "jobset" and ref.secret:
            raise ValueError(
                f"secrets.{name}: --target {target} reads files on the machines; give file instead of secret and key"
            )


def check_mesh(spec: RunSpec, target: str, config: "ExperimentConfig") -> None:
    """The config's mesh has to split model and batch over exactly these devices."""
    from omnihuman_jax.training.splits import check_splits

    machines, slices, devices, where = spec.machines, None, spec.machines.devices, str(spec.machines)
    if target == "local":
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
    from omnihuman_jax.scale.hardware import ACCELERATORS

    generation = machines.type.removesuffix("-mega")
    if generation not in ACCELERATORS:
        raise ValueError(
            f"--preflight: `omnihuman plan` has no figures of {generation}, only of {', '.join(ACCELERATORS)}; submit"
            " without it"
        )
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
