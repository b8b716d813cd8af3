"""One run, written once: what is trained, on what, how often it may fail. Every target is rendered from it.

A spec is a YAML file with exactly the fields of `RunSpec`; examples lie in launch/examples/. Reading it checks names
and types, `RunSpec.validate` what can be checked without a target, `launch.checks` the rest.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from launch import accelerators, literals
from launch.accelerators import Machines
from omnihuman_jax.plain_values import check_finite, structure

# JobSet's webhook: the coordinator's label `<name>-slice-0-0.<name>` has at most 63 characters.
MAX_NAME = 26
SECURITY = ("restricted", "tpu", "privileged")
SLURM_RUNTIMES = ("python", "apptainer")
# What renderers set themselves: a value in `env` would be overwritten, or break the meeting of the processes.
RESERVED_ENV = re.compile(
    r"JAX_(COORDINATOR_ADDRESS|NUM_PROCESSES|PROCESS_ID|LOCAL_DEVICE_IDS)|MEGASCALE_\w+|RESTART_ATTEMPT|TPU_WORKER_\w+"
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AcceleratorSpec:
    """What the run computes on.

    type: a TPU generation (v4 v5e v5p v6e tpu7x), a GPU machine (h100 h100-mega h200 b200 gb200 gb300), or `cpu`
    topology: of a TPU slice, such as 4x4x8
    one_host: v5e, v6e 2x4: the 8 chips of one machine (ct5lp-hightpu-8t, ct6e-standard-8t), not two of 4
    slices: TPU slices
    nodes: GPU or CPU nodes
    devices: cpu: simulated devices a node
    """

    type: str
    topology: str = ""
    slices: int = 1
    nodes: int = 1
    devices: int = 1
    one_host: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SecretRef:
    """Where a secret lies: never what it is. `secret` and `key` of a Kubernetes Secret, or a `file` on the machines
    (mode 0600).
    """

    secret: str = ""
    key: str = ""
    file: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """A volume of the pods: `source` is Kubernetes' own (`persistentVolumeClaim: {claimName: data}`), `mount` where it
    is seen.
    """

    name: str
    mount: str
    source: Mapping[str, Any]
    read_only: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Slurm:
    """What only SLURM asks for.

    runtime: `python` (an environment on a shared file system) or `apptainer` (the spec's image)
    python, workdir: for runtime `python`: the interpreter, and the folder that holds the configs
    binds: for runtime `apptainer`: folders that the container sees beside the output, `HOST[:CONTAINER]`
    time: limit, D-HH:MM:SS
    directives: more `#SBATCH` lines, such as `--exclude=node7`
    setup: lines of bash before the first start, such as `module load cuda`
    """

    runtime: str = "python"
    python: str = ""
    workdir: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    binds: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TpuVm:
    """What only TPU VMs ask for, of Compute Engine and of the older Cloud TPU API.

    zone, project, network: where; `network` is the VPC's name
    mounts: folders of the VMs, and where the container sees them
    runtime_version: queued-resource: defaults to the generation's
    image_family: compute-engine: defaults to the generation's, of project ubuntu-os-accelerator-images
    setup: compute-engine: lines of bash, as root, before the container starts: what mounts the folders
    flex_start: compute-engine: how long the VMs are wanted, such as 3d (10m to 7d): queued until they are free, not
        preempted, deleted at the end
    """

    zone: str = ""
    project: str = ""
    network: str = ""
    mounts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    runtime_version: str = ""
    image_family: str = ""
    setup: tuple[str, ...] = ()
    flex_start: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GpuNetwork:
    """What GPU pods need to use the network between nodes, instead of plain TCP over eth0.

    profile: `tcpxo` (A3 Mega, h100-mega) or `gib` (RDMA: A3 Ultra, A4, A4X; h200, b200, gb200)
    networks: the cluster's Network objects, one a network card, in order; empty: the names of Google's pages
    daemon_image: tcpxo: of the receive daemon, by digest, of the version that the plugin's installer has
    compute_domain: gb200, gb300: the ResourceClaimTemplate of the namespace's ComputeDomain
    """

    profile: str = ""
    networks: tuple[str, ...] = ()
    daemon_image: str = ""
    compute_domain: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """How the run fits on this machine; 0 means what the spec says: a process a host, with its host's devices
    simulated.

    simulate: False takes the machine's own devices, in one process
    """

    processes: int = 0
    devices: int = 0
    simulate: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """A run.

    name: of the job on every target; lower case, at most 26 characters
    config, overrides: of `omnihuman train`: a file (of the image), and fields of it such as `data.dataset`
    output: the run directory, continued at every restart; on a cluster it is on a volume, a shared file system or in
        gs://
    checkpoints: where the checkpoints go instead of OUTPUT/checkpoints: a folder or a URI such as gs://bucket/run
    image: by digest (`repo@sha256:...`)
    namespace, queue, priority, service_account: Kubernetes; `queue` is Kueue's LocalQueue, `priority` its
        WorkloadPriorityClass (without a queue: the pods' PriorityClass)
    spot, reservation: which capacity; at most one of them
    placement_policy: GKE's, which several hosts of tpu7x need
    env, secrets: of every process; values in the open, secrets by reference only
    not_secret: names of variables and options, or whole fields, that look like a secret and are none
    grace_s: between SIGTERM and SIGKILL: one step and one blocking save have to fit in
    restarts: after crashes; preemptions cost none, errors of the user get none
    ttl_s: how long a finished JobSet stays for reading
    security: of the pods: `restricted` (GPU's default), `tpu` (TPU's), `privileged`; see docs/security.md
    host_network: pods use the nodes' network: faster between slices, outside of any NetworkPolicy
    compilation_cache: JAX's persistent cache, a folder or URI that nobody else can write
    volumes: of the pods
    gpu_network: of GPU pods: see GpuNetwork
    pod_patch: merged into the pod template last (lists of things with a `name` by name): sidecars and annotations of
        GPU networks
    """

    name: str
    config: str
    overrides: Mapping[str, str | int | float | bool] = dataclasses.field(default_factory=dict)
    output: str
    checkpoints: str = ""
    accelerator: AcceleratorSpec
    image: str = ""
    namespace: str = "default"
    queue: str = ""
    priority: str = ""
    service_account: str = ""
    spot: bool = False
    reservation: str = ""
    placement_policy: str = ""
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    secrets: Mapping[str, SecretRef] = dataclasses.field(default_factory=dict)
    not_secret: tuple[str, ...] = ()
    grace_s: int = 120
    restarts: int = 10
    ttl_s: int = 43200
    security: str = ""
    host_network: bool = False
    compilation_cache: str = ""
    volumes: tuple[Volume, ...] = ()
    gpu_network: GpuNetwork = dataclasses.field(default_factory=GpuNetwork)
    pod_patch: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    slurm: Slurm = dataclasses.field(default_factory=Slurm)
    tpu_vm: TpuVm = dataclasses.field(default_factory=TpuVm)
    local: Local = dataclasses.field(default_factory=Local)

    @property
    def machines(self) -> Machines:
        """What the accelerator is in hosts and devices; ValueError if there is no such thing."""
        a = self.accelerator
        return accelerators.machines(
            a.type, topology=a.topology, slices=a.slices, nodes=a.nodes, devices=a.devices, one_host=a.one_host
        )

    @property
    def security_profile(self) -> str:
        return self.security or ("tpu" if self.machines.kind == "tpu" else "restricted")

    def validate(self) -> None:
        """ValueError, one line with the field, on whatever is wrong for every target."""
        if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.name):
            raise ValueError(
                f"name {self.name!r} must have lower-case letters, digits and '-' only, and begin with a letter"
            )
        if len(self.name) > MAX_NAME:
            raise ValueError(
                f"name {self.name!r} has {len(self.name)} characters; the names of pods leave room for {MAX_NAME}"
            )
        for field in ("config", "output"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty")
        self._validate_paths()
        _ = self.machines
        if self.spot and self.reservation:
            raise ValueError(f"spot and reservation {self.reservation!r} exclude each other; keep one of them")
        if self.grace_s < 1 or self.restarts < 0 or self.ttl_s < 0:
            raise ValueError(
                f"grace_s {self.grace_s} must be >= 1, restarts {self.restarts} and ttl_s {self.ttl_s} >= 0"
            )
        if self.security and self.security not in SECURITY:
            raise ValueError(f"security {self.security!r} is unknown; it is one of {', '.join(SECURITY)}")
        if self.host_network and self.security_profile == "restricted":
            raise ValueError(
                "host_network is not allowed by security 'restricted'; say security: privileged, or leave it out"
            )
        for name in self.overrides:
            if name.startswith(("-", "config.")) or "=" in name:
                raise ValueError(f"overrides.{name}: give the field alone, such as data.dataset or checkpoint.interval")
        if self.checkpoints and "checkpoint.directory" in self.overrides:
            raise ValueError("overrides.checkpoint.directory repeats `checkpoints`; remove the override")
        self._validate_env()
        _unique("volumes: name", [volume.name for volume in self.volumes])
        _unique("volumes: mount", [volume.mount for volume in self.volumes])
        for volume in self.volumes:
            if not volume.mount.startswith("/"):
                raise ValueError(f"volumes.{volume.name}: mount {volume.mount!r} is not an absolute path")
            if len(volume.source) != 1:
                raise ValueError(
                    f"volumes.{volume.name}: source must name one kind of volume, not {list(volume.source)}"
                )
        self._validate_machines()
        check_finite(self.overrides, "overrides")
        if self.local.processes < 0 or self.local.devices < 0:
            raise ValueError(f"local: processes {self.local.processes} and devices {self.local.devices} must be >= 0")

    def _validate_paths(self) -> None:
        """Blanks, quotes and `$` survive every target; a line break or another control character is no part of a
        path that anybody means.
        """
        texts = {name: getattr(self, name) for name in ("config", "output", "checkpoints", "compilation_cache")}
        texts |= {f"overrides.{name}": value for name, value in self.overrides.items() if isinstance(value, str)}
        texts |= {"slurm.python": self.slurm.python, "slurm.workdir": self.slurm.workdir}
        texts |= {f"slurm.binds[{i}]": bind for i, bind in enumerate(self.slurm.binds)}
        for host, container in self.tpu_vm.mounts.items():
            texts |= {f"tpu_vm.mounts: {host!r}": f"{host}{container}"}
        texts |= {f"volumes.{volume.name}": volume.mount for volume in self.volumes}
        texts |= {f"secrets.{name}.file": ref.file for name, ref in self.secrets.items()}
        texts |= {f"slurm.{name}": getattr(self.slurm, name) for name in ("partition", "account", "qos")}
        texts["reservation"] = self.reservation
        for field, text in texts.items():
            if found := re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]", text):
                raise ValueError(f"{field} {text!r} has the control character {found[0]!r}; take it out")
        for volume in self.volumes:
            if ":" in volume.mount:
                raise ValueError(f"volumes.{volume.name}: mount {volume.mount!r} has a ':', which Kubernetes refuses")

    def _validate_machines(self) -> None:
        slurm, vm = self.slurm, self.tpu_vm
        if vm.flex_start and not re.fullmatch(r"(\d+d)?(\d+h)?(\d+m)?", vm.flex_start):
            raise ValueError(f"tpu_vm.flex_start {vm.flex_start!r} must be a time such as 3d, 12h or 1d6h")
        if vm.flex_start and (self.spot or self.reservation):
            raise ValueError("tpu_vm.flex_start is a kind of capacity, as spot and reservation are; keep one of them")
        if slurm.runtime not in SLURM_RUNTIMES:
            raise ValueError(f"slurm.runtime {slurm.runtime!r} is unknown; it is one of {', '.join(SLURM_RUNTIMES)}")
        if slurm.time and not re.fullmatch(r"(\d+-)?\d{1,2}:\d{2}:\d{2}|\d+", slurm.time):
            raise ValueError(f"slurm.time {slurm.time!r} must be D-HH:MM:SS, HH:MM:SS or minutes")
        for line in slurm.directives:
            if not re.fullmatch(r"--[a-z][-a-z]*(=\S+)?", line):
                raise ValueError(f"slurm.directives: {line!r} is not of the form --name=value")
        for field, lines in (("slurm.setup", slurm.setup), ("tpu_vm.setup", vm.setup)):
            if broken := [line for line in lines if "\n" in line]:
                raise ValueError(f"{field} must be a list with one command an item, not {broken[0]!r}")

    def _validate_env(self) -> None:
        for name in (*self.env, *self.secrets):
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise ValueError(f"env {name!r} is not a valid name of an environment variable")
            if RESERVED_ENV.fullmatch(name):
                raise ValueError(f"env {name} is set by the launcher; leave it out")
        if twice := set(self.env) & set(self.secrets):
            raise ValueError(f"{', '.join(sorted(twice))} is in env and in secrets; keep the one in secrets")
        literals.check_secrets(dataclasses.asdict(dataclasses.replace(self, not_secret=())), self.not_secret)
        for name, ref in self.secrets.items():
            if bool(ref.secret) != bool(ref.key) or bool(ref.secret) == bool(ref.file):
                raise ValueError(f"secrets.{name}: give either secret and key (Kubernetes), or file")


def load_spec(path: str | Path) -> RunSpec:
    """The checked spec of a YAML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown or repeated key (with the nearest known one), a wrong type, or what `validate`
            refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; examples to start from are in launch/examples/")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-01
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    try:
        spec = spec_from_dict(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except RecursionError:
        raise ValueError(f"{path}: a YAML alias refers to the node that contains it; write the value out") from None
    return spec


def spec_from_dict(data: Any) -> RunSpec:
    """The checked spec of plain values; ValueError as `load_spec`."""
    spec = structure(RunSpec, data, whole="the spec")
    spec.validate()
    return spec


class _StrictLoader(yaml.SafeLoader):
    """YAML without objects, and without silently dropped duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key has to be text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _unique(what: str, values: list[str]) -> None:
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"{what} {', '.join(twice)} is there twice")
