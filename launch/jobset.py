"""A run as a Kubernetes JobSet (v1alpha2) on GKE: TPU slices, one or several, and GPU nodes; admitted by Kueue if it
has a queue.

One replicated job `slice`: a child Job a TPU slice (or one for all GPU nodes), a pod a host, Python as process 1 by its
argv, so that SIGTERM reaches the trainer itself. Any pod that fails fails its Job at once, and the failure policy
decides for the whole
set: a disruption and a saved stop restart it for free, an error of the user fails it, the rest counts.
"""

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from launch import command, external, kubernetes_names
from launch.accelerators import GPU_MACHINES, TPU_NAMES
from launch.spec import MAX_NAME, RESERVED_ENV, RunSpec
from omnihuman_jax.runtime import exit_codes

REPLICATED_JOB = "slice"
CONTAINER = "train"
USER = 1000
# TPU runtime, megascale, JAX's coordinator, TPU metrics: for readers and NetworkPolicies; a pod listens with or without
# them.
TPU_PORTS = {"tpu": 8471, "megascale": 8080, "coordinator": command.COORDINATOR_PORT, "tpu-metrics": 8431}
# Volumes that end with their pod, or cannot be written.
FLEETING = ("emptyDir", "ephemeral", "configMap", "secret", "downwardAPI", "projected", "image", "gitRepo")
_JOBSET = "jobset.sigs.k8s.io"
_POLICY = "PodFailurePolicy"


def check(spec: RunSpec) -> None:
    """What GKE asks for beyond the schema."""
    kubernetes_names.check(spec)
    machines = spec.machines
    if machines.kind == "cpu":
        raise ValueError("accelerator.type cpu is for --target local and slurm; jobset runs TPU slices and GPU nodes")
    if machines.type == "tpu7x" and machines.hosts > 1 and not spec.placement_policy:
        raise ValueError("placement_policy is missing: GKE places several hosts of tpu7x by a workload policy; name it")
    if machines.type != "tpu7x" and spec.placement_policy:
        raise ValueError(f"placement_policy is for tpu7x, not for {machines.type}")
    if machines.kind == "gpu" and spec.security == "tpu":
        raise ValueError("security: tpu is for TPU pods; a GPU pod is restricted (the default) or privileged")
    if machines.kind == "tpu" and spec.security == "restricted":
        raise ValueError(
            "security: restricted keeps the TPU runtime from pinning memory; take tpu (the default) or privileged"
        )


def manifest(spec: RunSpec) -> dict[str, Any]:
    """The JobSet, ready for `kubectl create -f -`; checked by `check_manifest`."""
    machines = spec.machines
    labels = {"app.kubernetes.io/name": "omnihuman", "app.kubernetes.io/instance": spec.name}
    if spec.queue:
        labels["kueue.x-k8s.io/queue-name"] = spec.queue
        if spec.priority:
            labels["kueue.x-k8s.io/priority-class"] = spec.priority
    metadata: dict[str, Any] = {"name": spec.name, "namespace": spec.namespace, "labels": labels}
    if machines.kind == "tpu" and machines.hosts > 1:
        # A child Job gets a node pool, which is a slice, for itself.
        metadata["annotations"] = {f"alpha.{_JOBSET}/exclusive-topology": "cloud.google.com/gke-nodepool"}
    child = {
        "parallelism": machines.hosts,
        "completions": machines.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": _pod_failure_rules()},
        "template": merge(_pod(spec), spec.pod_patch),
    }
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "coordinator": {"replicatedJob": REPLICATED_JOB, "jobIndex": 0, "podIndex": 0},
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": spec.restarts,
                "restartStrategy": "BlockingRecreate",
                "rules": _failure_rules(),
            },
            "ttlSecondsAfterFinished": spec.ttl_s,
            "replicatedJobs": [{"name": REPLICATED_JOB, "replicas": machines.groups, "template": {"spec": child}}],
        },
    }
    check_manifest(jobset, chips=machines.chips)
    _check_patch(_pod(spec)["spec"], pod_of(jobset))
    return jobset


def _check_patch(own: Mapping[str, Any], patched: Mapping[str, Any]) -> None:
    """ValueError if a patch changes what the run's checks stand on: the trainer's command line, and how its processes
    meet.
    """
    before = next(container for container in own["containers"] if container["name"] == CONTAINER)
    after = next(container for container in patched["containers"] if container["name"] == CONTAINER)
    if any(before.get(field) != after.get(field) for field in ("command", "args")):
        raise ValueError(
            f"pod_patch: command and args of {CONTAINER!r} come from the spec; fields of the config go to overrides"
        )
    for entry in after.get("env", ()):
        if RESERVED_ENV.fullmatch(entry["name"]) and entry not in before["env"]:
            raise ValueError(f"pod_patch: env {entry['name']} of {CONTAINER!r} is set by the launcher; leave it out")


def pod_of(jobset: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pod's spec of a manifest."""
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def _pod_failure_rules() -> list[dict[str, Any]]:
    """Which failed pods give their Job a reason of its own; all others end in BackoffLimitExceeded, which is
    counted.
    """
    codes = [exit_codes.FREE_RESTARTS, exit_codes.FAIL_AT_ONCE]
    return [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        *(
            {
                "action": "FailJob",
                "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": sorted(values)},
            }
            for values in codes
        ),
    ]


def _failure_rules() -> list[dict[str, Any]]:
    """The first that matches wins; none: a counted restart. The patterns are the Job controller's own messages."""
    free = "|".join(map(str, sorted(exit_codes.FREE_RESTARTS)))
    fail = "|".join(map(str, sorted(exit_codes.FAIL_AT_ONCE)))
    rows = [
        ("disruption", "RestartJobSetAndIgnoreMaxRestarts", "has condition DisruptionTarget"),
        ("savedAndStopped", "RestartJobSetAndIgnoreMaxRestarts", f"failed with exit code ({free}) "),
        ("userError", "FailJobSet", f"failed with exit code ({fail}) "),
    ]
    return [
        {"name": name, "action": action, "onJobFailureReasons": [_POLICY], "onJobFailureMessagePatterns": [pattern]}
        for name, action, pattern in rows
    ]


def _pod(spec: RunSpec) -> dict[str, Any]:
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
    if any("gcsfuse" in str(volume.source.get("csi", "")) for volume in spec.volumes):
        metadata["annotations"] = {"gke-gcsfuse/volumes": "true"}
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
        return command.train(spec, [])
    argv = command.train(spec, ["--distributed"])
    # The TPU runtime pins memory. A privileged pod may anyway; with SYS_RESOURCE alone the limit is raised first.
    return ["-m", "launch.raise_memlock", *argv] if spec.security_profile == "tpu" else argv


def _environment(spec: RunSpec) -> list[dict[str, Any]]:
    machines = spec.machines
    plain = command.environment(spec)
    fields = {"RESTART_ATTEMPT": f"metadata.annotations['{_JOBSET}/restart-attempt']"}
    first = f"{spec.name}-{REPLICATED_JOB}-0-0.{spec.name}"
    if machines.kind == "gpu":
        plain |= command.coordinator(first, machines.processes)
        plain |= command.local_device_ids(machines.devices_per_host)
        fields["JAX_PROCESS_ID"] = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    elif machines.groups > 1:
        plain |= {"MEGASCALE_NUM_SLICES": str(machines.groups), "MEGASCALE_COORDINATOR_ADDRESS": first}
        fields["MEGASCALE_SLICE_ID"] = f"metadata.annotations['{_JOBSET}/job-index']"
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
    """The whole host's chips; the rest of the host comes with them, since nothing else fits there."""
    name = "google.com/tpu" if spec.machines.kind == "tpu" else "nvidia.com/gpu"
    amount = {name: spec.machines.chips}
    return {"requests": dict(amount), "limits": dict(amount)}


def _node_selector(spec: RunSpec) -> dict[str, str]:
    machines = spec.machines
    if machines.slice is not None:
        selector = {
            "cloud.google.com/gke-tpu-accelerator": TPU_NAMES[machines.type].label,
            "cloud.google.com/gke-tpu-topology": machines.slice.topology,
        }
    else:
        selector = {"cloud.google.com/gke-accelerator": GPU_MACHINES[machines.type].label}
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
    if spec.spot:
        rows.append({"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    return rows


def _pod_security(spec: RunSpec) -> dict[str, Any]:
    """`restricted` passes Pod Security's profile of that name. TPU pods run as root: a capability reaches no other
    user.
    """
    common: dict[str, Any] = {"fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}}
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
        volumes.append({"name": volume.name, **volume.source})
        mounts.append(
            {"name": volume.name, "mountPath": volume.mount, **({"readOnly": True} if volume.read_only else {})}
        )
    return volumes, mounts


def homes(pod: Mapping[str, Any]) -> dict[str, str]:
    """The trainer's mounts, and why what is written there would not last; empty where it would, by the kind of
    volume.
    """
    train = next(container for container in pod["containers"] if container["name"] == CONTAINER)
    volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
    reasons = {}
    for mount in train.get("volumeMounts", ()):
        sources = {kind: source for kind, source in volumes[mount["name"]].items() if kind != "name"}
        kind = next(iter(sources), "emptyDir")
        reason = f"the volume {mount['name']!r}, of kind {kind}, which ends with its pod" if kind in FLEETING else ""
        if mount.get("readOnly") or (sources.get(kind) or {}).get("readOnly"):
            reason = f"the volume {mount['name']!r}, which is read-only"
        reasons[mount["mountPath"]] = reason
    return reasons


def merge(base: Any, patch: Any) -> Any:
    """`patch` laid over `base`: mappings by key (None removes one), lists of things with a name by name, other lists
    appended.
    """
    if isinstance(base, Mapping) and isinstance(patch, Mapping):
        merged = {key: value for key, value in base.items() if key not in patch or patch[key] is not None}
        return merged | {key: merge(merged.get(key), value) for key, value in patch.items() if value is not None}
    if isinstance(base, list) and isinstance(patch, list):
        if all(isinstance(item, Mapping) and "name" in item for item in (*base, *patch)):
            named = {item["name"]: item for item in base}
            return list((named | {item["name"]: merge(named.get(item["name"]), item) for item in patch}).values())
        return [*base, *patch]
    return patch


@functools.cache
def schema() -> dict[str, Any]:
    """JobSet v0.12's schema, closed: an unknown field is an error, as it is to the API server's strict validation."""
    return json.loads(
        resources.files("launch").joinpath("schemas/jobset.v1alpha2.closed.schema.json").read_text(encoding="utf-8")
    )


def check_manifest(jobset: Mapping[str, Any], *, chips: int) -> None:
    """ValueError, one line with the field, on what the API server, the webhooks or the scheduler would refuse.

    The schema knows fields and types; restart policy, counts, names and quantities are looked at here.
    """
    import jsonschema

    errors = sorted(
        jsonschema.Draft202012Validator(schema()).iter_errors(jobset), key=lambda error: list(map(str, error.path))
    )
    if errors:
        where = ".".join(map(str, errors[0].absolute_path)) or "the manifest"
        raise ValueError(f"JobSet: {where}: {' '.join(errors[0].message.split())[:200]}")
    name = jobset["metadata"]["name"]
    if len(name) > MAX_NAME:
        raise ValueError(f"JobSet: metadata.name {name!r} has {len(name)} characters, at most {MAX_NAME}")
    if any("name" not in rule for rule in jobset["spec"]["failurePolicy"]["rules"]):
        raise ValueError("JobSet: failurePolicy.rules: a rule without a name")
    for replicated in jobset["spec"]["replicatedJobs"]:
        job = replicated["template"]["spec"]
        pod = job["template"]["spec"]
        if job["parallelism"] != job["completions"]:
            raise ValueError(f"JobSet: parallelism {job['parallelism']} is not completions {job['completions']}")
        if pod.get("restartPolicy") != "Never":
            raise ValueError(f"JobSet: restartPolicy {pod.get('restartPolicy')!r}: a podFailurePolicy needs Never")
        _check_pod(pod, chips)


def _check_pod(pod: Mapping[str, Any], chips: int) -> None:
    containers = [*pod["containers"], *pod.get("initContainers", ())]
    for what, names in (
        ("container", [container["name"] for container in containers]),
        ("volume", [volume["name"] for volume in pod.get("volumes", ())]),
        *((f"env of {c['name']}", [entry["name"] for entry in c.get("env", ())]) for c in containers),
        *((f"volumeMount of {c['name']}", [m["mountPath"] for m in c.get("volumeMounts", ())]) for c in containers),
    ):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"JobSet: {what} {', '.join(twice)} is there twice")
    train = next((container for container in pod["containers"] if container["name"] == CONTAINER), None)
    if train is None:
        raise ValueError(f"JobSet: there is no container {CONTAINER!r}; the exit codes of the failure policy are its")
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    for mount in train.get("volumeMounts", ()):
        if mount["name"] not in volumes:
            raise ValueError(
                f"JobSet: volumeMount {mount['mountPath']} names a volume {mount['name']!r} that is not there"
            )
    limits, requests = (train.get("resources", {}).get(kind, {}) for kind in ("limits", "requests"))
    chip_kinds = [resource for resource in ("google.com/tpu", "nvidia.com/gpu") if resource in {**limits, **requests}]
    if not chip_kinds:
        raise ValueError(f"JobSet: container {CONTAINER!r} asks for no chips; there must be {chips}")
    for resource in chip_kinds:
        if not int(limits.get(resource, -1)) == int(requests.get(resource, -1)) == chips:
            raise ValueError(
                f"JobSet: {resource}: limits {limits.get(resource)} and requests {requests.get(resource)} must both be"
                f" {chips}"
            )


def render(spec: RunSpec) -> str:
    """What would be sent, as YAML."""
    return yaml.safe_dump(manifest(spec), sort_keys=False, width=120)


def submit(spec: RunSpec) -> int:
    """Creates the JobSet; an existing one of that name is kubectl's error."""
    return external.run(["kubectl", "create", "--filename", "-"], stdin=render(spec))


def status(spec: RunSpec) -> int:
    """The JobSet, its Jobs and pods."""
    selector = ["--namespace", spec.namespace, "--selector", f"{_JOBSET}/jobset-name={spec.name}"]
    external.run(["kubectl", "get", "jobset", spec.name, "--namespace", spec.namespace, "--output", "wide"])
    return external.run(["kubectl", "get", "jobs,pods", *selector, "--output", "wide"])


def logs(spec: RunSpec, *, rank: int, follow: bool, lines: int) -> int:
    """What the pod of one process prints."""
    group, host = divmod(rank, spec.machines.hosts)
    index = f"batch.kubernetes.io/job-completion-index={host}"
    selector = f"{_JOBSET}/jobset-name={spec.name},{_JOBSET}/job-index={group},{index}"
    argv = [
        "kubectl",
        "logs",
        "--namespace",
        spec.namespace,
        "--selector",
        selector,
        "--container",
        CONTAINER,
        "--tail",
        str(lines),
    ]
    return external.run([*argv, "--follow"] if follow else argv)


def cancel(spec: RunSpec) -> int:
    """Deletes the JobSet: its pods get SIGTERM, and `grace_s` to save."""
    return external.run(["kubectl", "delete", "jobset", spec.name, "--namespace", spec.namespace])
