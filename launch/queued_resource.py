"""A run on TPU VMs through Cloud TPU's queued resources: gcloud creates them, every worker starts the image by ssh.

Google gives this API fixes only, and no new generations: `compute_engine` is where v5p, v6e and tpu7x go. Nothing
watches a queued resource: `launch.supervise` restarts the process of each host, a preempted (SUSPENDED) one has to be
submitted again; the run continues where its checkpoints are.
"""

import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import PurePosixPath

from launch import command, external
from launch.accelerators import TPU_NAMES
from launch.spec import RunSpec
from launch.target import Target

ENDED = ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING")
POLL_S = 30.0


def check(spec: RunSpec) -> None:
    """ValueError on what queued resources cannot do."""
    machines = spec.machines
    if machines.kind != "tpu":
        raise ValueError(
            f"accelerator.type {machines.type} is not a TPU, and queued resources serve TPUs only; use "
            "--target slurm or jobset"
        )
    if not TPU_NAMES[machines.type].vm_runtime:
        raise ValueError(
            f"accelerator.type {machines.type} is not served by the Cloud TPU API; use --target compute-engine or"
            " jobset"
        )
    if machines.hosts > 1 and machines.slice is not None and machines.slice.topology == "2x4":
        raise ValueError(f"accelerator: {machines.type} 2x4 is one machine of 8 chips here; say one_host: true")
    for field in ("image_family", "setup", "flex_start"):
        if getattr(spec.tpu_vm, field):
            raise ValueError(f"tpu_vm.{field} is for --target compute-engine; leave it out")
    for field in ("zone", "project"):
        if not getattr(spec.tpu_vm, field):
            raise ValueError(f"tpu_vm.{field} is missing")
    places: dict[str, tuple[str, ...]] = {
        f"tpu_vm.mounts: {host}": (host, container) for host, container in spec.tpu_vm.mounts.items()
    }
    places |= {f"secrets.{name}.file": (ref.file,) for name, ref in spec.secrets.items()}
    for field, paths in places.items():
        if path := next((path for path in paths if ":" in path), ""):
            raise ValueError(f"{field}: {path!r} has a ':', which parts the folders of docker's --volume; rename it")


def nodes(spec: RunSpec) -> list[str]:
    """The TPU VMs' names, one a slice."""
    count = spec.machines.groups
    return [spec.name] if count == 1 else [f"{spec.name}-{i}" for i in range(count)]


def _place(spec: RunSpec) -> list[str]:
    return ["--project", spec.tpu_vm.project, "--zone", spec.tpu_vm.zone]


def create_argv(spec: RunSpec) -> list[str]:
    """The request. A named reservation is a flag of the alpha commands only."""
    machines = spec.machines
    assert machines.slice is not None
    argv = [
        "gcloud",
        *(["alpha"] if spec.reservation else []),
        "compute",
        "tpus",
        "queued-resources",
        "create",
        spec.name,
    ]
    argv += _place(spec)
    argv += ["--accelerator-type", machines.slice.name]
    argv += ["--runtime-version", spec.tpu_vm.runtime_version or TPU_NAMES[machines.type].vm_runtime]
    if machines.groups == 1:
        argv += ["--node-id", spec.name]
    else:
        argv += ["--node-count", str(machines.groups), "--node-prefix", spec.name]
    if spec.spot:
        argv.append("--spot")
    if spec.reservation:
        argv += ["--reservation", spec.reservation]
    if spec.tpu_vm.network:
        argv += ["--network", spec.tpu_vm.network]
    if spec.service_account:
        argv += ["--service-account", spec.service_account]
    return argv


def docker_argv(spec: RunSpec) -> list[str]:
    """What every worker runs. TPU devices and the host's network need `--privileged`; the VM runs nothing else."""
    argv = [
        "sudo",
        "docker",
        "run",
        "--detach",
        "--name",
        spec.name,
        "--privileged",
        "--network",
        "host",
        "--user",
        "0",
    ]
    argv += ["--stop-timeout", str(spec.grace_s), "--ulimit", "memlock=-1:-1", "--shm-size", "16g"]
    for name, value in command.environment(spec).items():
        argv += ["--env", f"{name}={value}"]
    for host, container in spec.tpu_vm.mounts.items():
        argv += ["--volume", f"{host}:{container}"]
    supervise = ["python", "-m", "launch.supervise", "--restarts", str(spec.restarts)]
    for name, ref in spec.secrets.items():
        argv += ["--volume", f"{ref.file}:/run/secrets/{name}:ro"]
        supervise += ["--secret", f"{name}=/run/secrets/{name}"]
    return [*argv, spec.image, *supervise, "--", *command.train(spec, ["--distributed"])]


def ssh_argv(spec: RunSpec, node: str, remote: list[list[str]], *, worker: str = "all") -> list[str]:
    """Commands for one slice's workers: argv lists, quoted for the one shell that ssh cannot do without."""
    line = " && ".join(shlex.join(argv) for argv in remote)
    return [
        "gcloud",
        "compute",
        "tpus",
        "tpu-vm",
        "ssh",
        node,
        *_place(spec),
        f"--worker={worker}",
        f"--command={line}",
    ]


def registry_login(spec: RunSpec) -> list[list[str]]:
    """What lets docker pull from Google's own registries."""
    host = spec.image.split("/", 1)[0]
    google = host.endswith((".pkg.dev", "gcr.io"))
    return [["sudo", "gcloud", "auth", "configure-docker", host, "--quiet"]] if google else []


def start_argvs(spec: RunSpec) -> list[list[str]]:
    """One ssh a slice, to all of its workers."""
    login = registry_login(spec)
    return [ssh_argv(spec, node, [*login, docker_argv(spec)]) for node in nodes(spec)]


def describe_argv(spec: RunSpec) -> list[str]:
    argv = ["gcloud", "compute", "tpus", "queued-resources", "describe", spec.name, *_place(spec)]
    return [*argv, "--format=value(state.state)"]


def render(spec: RunSpec) -> str:
    """The commands as a shell would take them, in order."""
    return "".join(f"{shlex.join(argv)}\n" for argv in [create_argv(spec), describe_argv(spec), *start_argvs(spec)])


def submit(spec: RunSpec) -> int:
    """Requests, waits until the resource is ACTIVE (Ctrl-C leaves the request in the queue), starts all workers."""
    external.run(create_argv(spec))
    wait(spec)
    for argv in start_argvs(spec):
        external.run(argv)
    return 0


def wait(spec: RunSpec) -> None:
    """Until ACTIVE; ChildProcessError if the request ended instead."""
    before = ""
    while (state := external.ask(describe_argv(spec))) != "ACTIVE":
        if state in ENDED:
            raise ChildProcessError(
                f"{spec.name} is {state}; gcloud gives the reason; cancel the job and submit it again"
            )
        if state != before:
            print(f"{spec.name}: {state}", flush=True)
        before = state
        time.sleep(POLL_S)


def status(spec: RunSpec) -> int:
    """The request's state, and each worker's container."""
    print(f"{spec.name}: {external.ask(describe_argv(spec))}", flush=True)
    listing = ["sudo", "docker", "ps", "--all", "--filter", f"name={spec.name}", "--format", "{{.Names}} {{.Status}}"]
    for node in nodes(spec):
        external.run(ssh_argv(spec, node, [listing]))
    return 0


def logs(spec: RunSpec, *, rank: int, follow: bool, lines: int) -> int:
    """What one host's container prints."""
    group, host = divmod(rank, spec.machines.hosts)
    argv = ["sudo", "docker", "logs", "--tail", str(lines), *(["--follow"] if follow else []), spec.name]
    return external.run(ssh_argv(spec, nodes(spec)[group], [argv], worker=str(host)))


def cancel(spec: RunSpec) -> int:
    """Stops the containers inside the grace period (they save), then deletes request and VMs."""
    for node in nodes(spec):
        try:
            external.run(ssh_argv(spec, node, [["sudo", "docker", "stop", "--time", str(spec.grace_s), spec.name]]))
        except ChildProcessError as error:
            # A request that waits or was preempted has no VMs, and is to go all the same.
            print(f"warning: {node}: nothing was stopped there ({error})", file=sys.stderr)
    argv = ["gcloud", "compute", "tpus", "queued-resources", "delete", spec.name, *_place(spec), "--force", "--quiet"]
    return external.run(argv)


def homes(spec: RunSpec) -> dict[str, str]:
    """The container's mounts, and why what is written there would not last."""
    own = ("/tmp", "/var/tmp", "/dev/shm", "/run")
    return {
        container: (
            f"{host} of the VM, which does not last" if any(PurePosixPath(host).is_relative_to(o) for o in own) else ""
        )
        for host, container in spec.tpu_vm.mounts.items()
    }


def images(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """The one that every VM runs."""
    yield "image", spec.image


def warnings(spec: RunSpec) -> list[str]:
    """Where to go instead."""
    if not TPU_NAMES[spec.machines.type].image_family:
        return []
    return ["Google gives the Cloud TPU API fixes only; --target compute-engine takes the same spec"]


def describe(spec: RunSpec) -> str:
    """The slices by the API's own names."""
    return str(spec.machines)


TARGET = Target(
    name="queued-resource",
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
    instead={"volumes": "TPU VMs have tpu_vm.mounts"},
    images=images,
    secrets="files",
    here=False,
    warnings=warnings,
)
