"""A run on TPU VMs of Compute Engine: one managed instance group is one slice (v5p, v6e, tpu7x), whole or not
at all.

The group takes a workload policy with the slice's topology, its size in one piece (`bulk`), and a template whose
start-up script starts the image under `launch.supervise`: a VM that is started again goes on by itself. Capacity is on
demand, spot, a reservation, or flex-start (`tpu_vm.flex_start`). gcloud's own parser has read these lines; no slice was
at hand to run them.
"""

import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path

from launch import external
from launch.accelerators import TPU_NAMES
from launch.queued_resource import docker_argv, homes, images, registry_login
from launch.spec import RunSpec
from launch.target import Target

IMAGE_PROJECT = "ubuntu-os-accelerator-images"
# What a VM that is stopped or deleted gives its services, at best; a spot VM that is taken: less.
SHUTDOWN_S, SPOT_SHUTDOWN_S = 90, 30
DISK_GB = 200
_SCRIPT = "startup.sh"


def check(spec: RunSpec) -> None:
    """ValueError on what a managed instance group of TPU VMs cannot do."""
    machines, vm = spec.machines, spec.tpu_vm
    if machines.kind != "tpu":
        raise ValueError(
            f"accelerator.type {machines.type} is not a TPU, and this target serves TPUs; use --target jobset or slurm"
        )
    if not TPU_NAMES[machines.type].image_family:
        served = ", ".join(name for name, names in TPU_NAMES.items() if names.image_family)
        raise ValueError(f"accelerator.type {machines.type} is not served by Compute Engine, only {served} are")
    if machines.groups > 1:
        raise ValueError(f"accelerator.slices {machines.groups}: a group is one slice; several need --target jobset")
    for field in ("zone", "project"):
        if not getattr(vm, field):
            raise ValueError(f"tpu_vm.{field} is missing")
    if vm.runtime_version:
        raise ValueError("tpu_vm.runtime_version is the Cloud TPU API's; Compute Engine has tpu_vm.image_family")


def _where(spec: RunSpec) -> list[str]:
    return ["--project", spec.tpu_vm.project, "--zone", spec.tpu_vm.zone]


def region(spec: RunSpec) -> str:
    """Of the zone: us-east5 of us-east5-b."""
    return spec.tpu_vm.zone.rpartition("-")[0]


def policy_argv(spec: RunSpec) -> list[str]:
    """The workload policy that makes the VMs one slice; empty for a single host."""
    machines = spec.machines
    if machines.hosts == 1 or machines.slice is None:
        return []
    argv = ["gcloud", "compute", "resource-policies", "create", "workload-policy", spec.name]
    argv += ["--project", spec.tpu_vm.project, "--region", region(spec)]
    return [*argv, "--type", "HIGH_THROUGHPUT", "--accelerator-topology", machines.slice.topology]


def template_argv(spec: RunSpec, script: str) -> list[str]:
    """The instance template; `script`: the file of the start-up script. Flex-start is a flag of the beta commands."""
    machines, vm = spec.machines, spec.tpu_vm
    assert machines.host is not None
    argv = ["gcloud", *(["beta"] if vm.flex_start else []), "compute", "instance-templates", "create", spec.name]
    argv += ["--project", vm.project, "--machine-type", machines.host.machine, "--maintenance-policy", "TERMINATE"]
    argv += ["--image-project", IMAGE_PROJECT]
    argv += ["--image-family", vm.image_family or TPU_NAMES[machines.type].image_family]
    argv += ["--boot-disk-size", f"{DISK_GB}GB", "--scopes", "cloud-platform"]
    if machines.type == "tpu7x":
        argv += ["--boot-disk-type", "hyperdisk-balanced"]
    argv += _capacity(spec)
    if vm.network:
        argv += ["--network", vm.network]
    if spec.service_account:
        argv += ["--service-account", spec.service_account]
    return [*argv, f"--metadata-from-file=startup-script={script}"]


def _capacity(spec: RunSpec) -> list[str]:
    if spec.tpu_vm.flex_start:
        return [
            "--provisioning-model", "FLEX_START", "--max-run-duration", spec.tpu_vm.flex_start,
            "--instance-termination-action", "DELETE", "--reservation-affinity", "none",
        ]  # fmt: skip
    if spec.spot:
        return ["--provisioning-model", "SPOT", "--instance-termination-action", "DELETE"]
    if spec.reservation:
        return ["--reservation-affinity", "specific", "--reservation", spec.reservation]
    return []


def group_argvs(spec: RunSpec) -> list[list[str]]:
    """The group, empty, and its size: with a policy all VMs come together or none does."""
    group = ["gcloud", "compute", "instance-groups", "managed"]
    create = [*group, "create", spec.name, *_where(spec), "--template", spec.name, "--size", "0"]
    if policy_argv(spec):
        policy = f"projects/{spec.tpu_vm.project}/regions/{region(spec)}/resourcePolicies/{spec.name}"
        create += ["--target-size-policy-mode", "bulk", "--workload-policy", policy]
    # A VM of a slice cannot be replaced alone.
    create += ["--default-action-on-vm-failure", "do-nothing"]
    return [create, [*group, "resize", spec.name, *_where(spec), "--size", str(spec.machines.hosts)]]


def startup_script(spec: RunSpec) -> str:
    """What root runs at each start of a VM."""
    start = docker_argv(spec)
    return "\n".join([
        "#!/bin/bash",
        "set -u",
        "command -v docker >/dev/null || { apt-get update && apt-get install --yes docker.io; }",
        *spec.tpu_vm.setup,
        *(shlex.join(argv) for argv in registry_login(spec)),
        # Of an earlier start of this VM.
        f"docker rm --force {shlex.quote(spec.name)} 2>/dev/null",
        shlex.join(start),
        "",
    ])  # fmt: skip


def _argvs(spec: RunSpec, script: str) -> list[list[str]]:
    return [argv for argv in [policy_argv(spec), template_argv(spec, script), *group_argvs(spec)] if argv]


def render(spec: RunSpec) -> str:
    """The script as a here-document, and the commands in order."""
    lines = [shlex.join(argv) for argv in _argvs(spec, _SCRIPT)]
    return f"cat >{_SCRIPT} <<'END'\n{startup_script(spec)}END\n" + "".join(f"{line}\n" for line in lines)


def submit(spec: RunSpec) -> int:
    """Asks for the VMs; the group waits for capacity by itself, and each VM starts the run."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / _SCRIPT
        script.write_text(startup_script(spec), encoding="utf-8")
        for argv in _argvs(spec, str(script)):
            external.run(argv)
    return 0


def _list_argv(spec: RunSpec, *more: str) -> list[str]:
    return ["gcloud", "compute", "instance-groups", "managed", "list-instances", spec.name, *_where(spec), *more]


def status(spec: RunSpec) -> int:
    """The group's VMs, and why one that is missing does not come."""
    external.run(_list_argv(spec))
    argv = ["gcloud", "compute", "instance-groups", "managed", "list-errors", spec.name, *_where(spec)]
    return external.run([*argv, "--limit", "5"])


def logs(spec: RunSpec, *, rank: int, follow: bool, lines: int) -> int:
    """What one VM's container prints; `rank` counts the VMs by name, which is not the order of the processes."""
    names = sorted(external.ask(_list_argv(spec, "--format=value(instance.basename())")).split())
    if rank >= len(names):
        raise ValueError(f"--rank {rank}: {spec.name} has {len(names)} VMs now")
    show = ["sudo", "docker", "logs", "--tail", str(lines), *(["--follow"] if follow else []), spec.name]
    return external.run(["gcloud", "compute", "ssh", names[rank], *_where(spec), f"--command={shlex.join(show)}"])


def cancel(spec: RunSpec) -> int:
    """Deletes the group (its VMs shut down, and docker gives the trainers their grace period), template and policy."""
    where = ["--project", spec.tpu_vm.project, "--quiet"]
    argvs = [
        ["gcloud", "compute", "instance-groups", "managed", "delete", spec.name, *_where(spec), "--quiet"],
        ["gcloud", "compute", "instance-templates", "delete", spec.name, *where],
    ]
    if policy_argv(spec):
        argvs.append(["gcloud", "compute", "resource-policies", "delete", spec.name, "--region", region(spec), *where])
    return external.run_all(argvs)  # a submit that failed half-way has left some of them


def describe(spec: RunSpec) -> str:
    """The slice, with Google's name of a host."""
    host = spec.machines.host
    assert host is not None
    return f"{spec.machines} ({host.machine})"


def warnings(spec: RunSpec) -> list[str]:
    """What is allowed and may hurt."""
    limit = SPOT_SHUTDOWN_S if spec.spot else SHUTDOWN_S
    if spec.grace_s <= limit:
        return []
    return [
        f"a VM that goes gives about {limit} s, whatever grace_s {spec.grace_s} says; checkpoint.interval has to help"
    ]


INSTEAD: Mapping[str, str] = {"volumes": "TPU VMs have tpu_vm.mounts"}
TARGET = Target(
    name="compute-engine",
    check=check,
    describe=describe,
    render=render,
    submit=submit,
    status=status,
    logs=logs,
    cancel=cancel,
    homes=homes,
    homes_field="tpu_vm.mounts",
    takes=("service_account", "spot"),
    instead=INSTEAD,
    images=images,
    secrets="files",
    here=False,
    warnings=warnings,
)
