"""The pod of a run on GKE: a trainer in a container, with its arguments, environment, resources, place and volumes."""

from collections.abc import Mapping
from typing import Any

from launch import command, gpu_network
from launch.accelerators import GPU_MACHINES, TPU_NAMES
from launch.manifest_check import CONTAINER
from launch.spec import RunSpec

REPLICATED_JOB = "slice"
USER = 1000
# TPU runtime, megascale, JAX's coordinator, TPU metrics: for readers and NetworkPolicies; a pod listens with or without
# them.
TPU_PORTS = {"tpu": 8471, "megascale": 8080, "coordinator": command.COORDINATOR_PORT, "tpu-metrics": 8431}
FUSE = "gcsfuse.csi.storage.gke.io"
JOBSET = "jobset.sigs.k8s.io"


def template(spec: RunSpec) -> dict[str, Any]:
    machines = spec.machines
    volumes, mounts = _volumes(spec)
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": spec.grace_s,
        # The trainer never talks to Kubernetes.
        "automountServiceAccountToken": False,
        "nodeSelector": _node_selector(spec),
        "tolerations": _tolerations(spec),
        "securityContext": _pod_security(spec),
        "containers": [
            {
                "name": CONTAINER,
                "image": spec.image,
                "command": ["python", *map(_literal, _arguments(spec))],
                "env": _environment(spec),
                "ports": [{"name": name, "containerPort": port} for name, port in _ports(spec).items()],
                "resources": _resources(spec),
                "securityContext": _container_security(spec),
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if spec.service_account:
        pod["serviceAccountName"] = spec.service_account
    if spec.priority and not spec.queue:
        pod["priorityClassName"] = spec.priority
    if spec.host_network:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    metadata: dict[str, Any] = {
        "labels": {"app.kubernetes.io/name": "omnihuman", "app.kubernetes.io/instance": spec.name}
    }
    if any(on_fuse(volume.source) for volume in spec.volumes):
        # The sidecar's own limits (256 MiB) are for web servers; what a training job reads and writes needs more.
        metadata["annotations"] = {
            "gke-gcsfuse/volumes": "true",
            **{f"gke-gcsfuse/{what}-limit": "0" for what in ("cpu", "memory", "ephemeral-storage")},
            "gke-gcsfuse/cpu-request": "2",
            "gke-gcsfuse/memory-request": "4Gi",
        }
    assert machines.kind in ("tpu", "gpu"), machines.kind
    return {"metadata": metadata, "spec": pod}


def _literal(argument: str) -> str:
    """The kubelet fills `$(NAME)` in a command in, and makes one `$` of two."""
    return argument.replace("$", "$$")


def _arguments(spec: RunSpec) -> list[str]:
    """TPU: JAX finds its peers by what GKE injects. GPU: the environment says it; JAX's own search needs the right to
    list pods.
    """
    if spec.machines.kind == "gpu":
        return [*gpu_network.arguments(spec), *command.train(spec, [])]
    argv = command.train(spec, ["--distributed"])
    # The TPU runtime pins memory. A privileged pod may anyway; with SYS_RESOURCE alone the limit is raised first.
    return ["-m", "launch.raise_memlock", *argv] if spec.security_profile == "tpu" else argv


def _environment(spec: RunSpec) -> list[dict[str, Any]]:
    machines = spec.machines
    plain = command.environment(spec)
    fields = {"RESTART_ATTEMPT": f"metadata.annotations['{JOBSET}/restart-attempt']"}
    first = f"{spec.name}-{REPLICATED_JOB}-0-0.{spec.name}"
    if machines.kind == "gpu":
        plain |= command.coordinator(first, machines.processes)
        plain |= command.local_device_ids(machines.devices_per_host)
        fields["JAX_PROCESS_ID"] = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    elif machines.groups > 1:
        plain |= {"MEGASCALE_NUM_SLICES": str(machines.groups), "MEGASCALE_COORDINATOR_ADDRESS": first}
        fields["MEGASCALE_SLICE_ID"] = f"metadata.annotations['{JOBSET}/job-index']"
    return [
        # A path is no reference to another variable; what the user writes in `env` may be one.
        *({"name": n, "value": v if n in spec.env else _literal(v)} for n, v in plain.items()),
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": ref.secret, "key": ref.key}}}
            for name, ref in spec.secrets.items()
        ),
    ]


def _ports(spec: RunSpec) -> dict[str, int]:
    return TPU_PORTS if spec.machines.kind == "tpu" else {"coordinator": command.COORDINATOR_PORT}


def _resources(spec: RunSpec) -> dict[str, Any]:
    """The whole host's chips, and half of its cores and memory: nothing else needs them there, yet without a request
    the pod is the first to be evicted, and quotas refuse it. The other half is room for sidecars and the node's own.
    """
    name, host = "google.com/tpu" if spec.machines.kind == "tpu" else "nvidia.com/gpu", spec.machines.host
    assert host is not None
    amount = {name: spec.machines.chips}
    half = {"cpu": str(host.cpus // 2), "memory": f"{host.memory_gb // 2}G"}
    return {"requests": half | amount, "limits": dict(amount)}


def _node_selector(spec: RunSpec) -> dict[str, str]:
    machines = spec.machines
    if machines.slice is not None:
        selector = {
            "cloud.google.com/gke-tpu-accelerator": TPU_NAMES[machines.type].label,
            "cloud.google.com/gke-tpu-topology": machines.slice.topology,
        }
    else:
        machine = GPU_MACHINES[machines.type]
        selector = {"cloud.google.com/gke-accelerator": machine.label}
        selector |= {"kubernetes.io/arch": "arm64"} if machine.arm else {}
    if spec.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    if spec.reservation:
        selector["cloud.google.com/reservation-name"] = spec.reservation
    if spec.placement_policy:
        selector["cloud.google.com/placement-policy-name"] = spec.placement_policy
    return selector


def _tolerations(spec: RunSpec) -> list[dict[str, str]]:
    key = "google.com/tpu" if spec.machines.kind == "tpu" else "nvidia.com/gpu"
    rows = [{"key": key, "operator": "Exists", "effect": "NoSchedule"}]
    if spec.machines.kind == "gpu" and GPU_MACHINES[spec.machines.type].arm:
        rows.append({"key": "kubernetes.io/arch", "operator": "Equal", "value": "arm64", "effect": "NoSchedule"})
    if spec.spot:
        rows.append({"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    return rows


def _pod_security(spec: RunSpec) -> dict[str, Any]:
    """`restricted` passes Pod Security's profile of that name. TPU pods run as root: a capability reaches no other
    user.
    """
    common: dict[str, Any] = {
        "fsGroup": USER,
        # Not every file of a dataset again at every start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if spec.security_profile == "restricted":
        return {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, **common}
    return {"runAsUser": 0, "runAsGroup": 0, **common}


def _container_security(spec: RunSpec) -> dict[str, Any]:
    if spec.security_profile == "privileged":
        return {"privileged": True}
    context: dict[str, Any] = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    if spec.security_profile == "tpu":
        context["capabilities"]["add"] = ["SYS_RESOURCE"]
    return context


def _volumes(spec: RunSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}, {"name": "tmp", "emptyDir": {}}]
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}]
    for volume in spec.volumes:
        source = dict(volume.source)
        if spec.host_network and on_fuse(source):
            # Without it a pod on its node's network has no identity for the bucket.
            attributes = {"hostNetworkPodKSA": "true"} | dict(source["csi"].get("volumeAttributes") or {})
            source["csi"] = dict(source["csi"]) | {"volumeAttributes": attributes}
        volumes.append({"name": volume.name, **source})
        mounts.append(
            {"name": volume.name, "mountPath": volume.mount, **({"readOnly": True} if volume.read_only else {})}
        )
    return volumes, mounts


def on_fuse(source: Mapping[str, Any]) -> bool:
    """Whether a volume is a bucket mounted by GCS FUSE."""
    return FUSE in str(source.get("csi", ""))
