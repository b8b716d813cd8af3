"""A run as a Kubernetes JobSet (v1alpha2) on GKE: TPU slices, one or several, and GPU nodes; admitted by Kueue if it
has a queue.

One replicated job `slice`: a child Job a TPU slice (or one for all GPU nodes), a pod a host, Python as process 1 by its
argv, so that SIGTERM reaches the trainer itself. Any pod that fails fails its Job at once, and the failure policy
decides for the whole
set: a disruption and a saved stop restart it for free, an error of the user fails it, the rest counts.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from launch import external, gpu_network, kubernetes_names, literals, pod
from launch.manifest_check import CONTAINER, check_manifest, merge, pod_of
from launch.spec import RESERVED_ENV, RunSpec
from launch.target import OPTIONAL_FIELDS, Target
from omnihuman_jax.runtime import exit_codes

# Volumes that end with their pod, or cannot be written.
FLEETING = ("emptyDir", "ephemeral", "configMap", "secret", "downwardAPI", "projected", "image", "gitRepo")
# Of a node with accelerators that goes for maintenance; a spot node's pods get less.
MAX_GRACE_S = 3600
SPOT_GRACE_S = 15
# What the image itself has: a volume over it would hide the configs, or Python.
IN_THE_IMAGE = ("/app", "/opt/venv", "/usr/bin", "/usr/local/bin", "/usr/local/lib")
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
    if spec.grace_s > MAX_GRACE_S:
        raise ValueError(f"grace_s {spec.grace_s}: GKE gives a pod at most {MAX_GRACE_S} s when its node goes")
    if any([spec.gpu_network.profile, spec.gpu_network.compute_domain]) and machines.kind == "tpu":
        raise ValueError(f"gpu_network is for GPU nodes, not for {machines.type}; leave it out")
    if machines.kind == "gpu":
        gpu_network.check(spec)
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
        metadata["annotations"] = {f"alpha.{pod.JOBSET}/exclusive-topology": "cloud.google.com/gke-nodepool"}
    own = merge(pod.template(spec), gpu_network.patch(spec, CONTAINER))
    child = {
        "parallelism": machines.hosts,
        "completions": machines.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": _pod_failure_rules()},
        "template": merge(own, spec.pod_patch),
    }
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "coordinator": {"replicatedJob": pod.REPLICATED_JOB, "jobIndex": 0, "podIndex": 0},
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": spec.restarts,
                "restartStrategy": "BlockingRecreate",
                "rules": _failure_rules(),
            },
            "ttlSecondsAfterFinished": spec.ttl_s,
            "replicatedJobs": [{"name": pod.REPLICATED_JOB, "replicas": machines.groups, "template": {"spec": child}}],
        },
    }
    check_manifest(jobset, chips=machines.chips)
    _check_patch(own["spec"], pod_of(jobset))
    _check_mounts(pod_of(jobset))
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


def _check_mounts(pod: Mapping[str, Any]) -> None:
    """ValueError if a volume lies over what the image has."""
    for mount in (mount for container in pod["containers"] if container["name"] == CONTAINER
                  for mount in container.get("volumeMounts", ())):  # fmt: skip
        place = PurePosixPath(mount["mountPath"])
        for own in map(PurePosixPath, IN_THE_IMAGE):
            if own.is_relative_to(place) or place.is_relative_to(own):
                raise ValueError(
                    f"volume {mount['name']!r}: mount {mount['mountPath']!r} hides {own} of the image, where"
                    " configs and Python are; mount it elsewhere"
                )


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


def homes(spec: RunSpec) -> dict[str, str]:
    """The trainer's mounts, patched, and why what is written there would not last; empty where it would, by the kind of
    volume.
    """
    pod = pod_of(manifest(spec))
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


def render(spec: RunSpec) -> str:
    """What would be sent, as YAML."""
    return yaml.safe_dump(manifest(spec), sort_keys=False, width=120)


def submit(spec: RunSpec) -> int:
    """Creates the JobSet; an existing one of that name is kubectl's error."""
    return external.run(["kubectl", "create", "--filename", "-"], stdin=render(spec))


def status(spec: RunSpec) -> int:
    """The JobSet, its Jobs and pods."""
    selector = ["--namespace", spec.namespace, "--selector", f"{pod.JOBSET}/jobset-name={spec.name}"]
    external.run(["kubectl", "get", "jobset", spec.name, "--namespace", spec.namespace, "--output", "wide"])
    return external.run(["kubectl", "get", "jobs,pods", *selector, "--output", "wide"])


def logs(spec: RunSpec, *, rank: int, follow: bool, lines: int) -> int:
    """What the pod of one process prints."""
    group, host = divmod(rank, spec.machines.hosts)
    index = f"batch.kubernetes.io/job-completion-index={host}"
    selector = f"{pod.JOBSET}/jobset-name={spec.name},{pod.JOBSET}/job-index={group},{index}"
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


def describe(spec: RunSpec) -> str:
    """The machines, with Google's name of one."""
    host = spec.machines.host
    return f"{spec.machines} ({host.machine})" if host else str(spec.machines)


def images(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """The spec's, and those of all containers and volumes."""
    yield "image", spec.image
    yield from literals.images_of_pod(pod_of(manifest(spec)))


def warnings(spec: RunSpec) -> list[str]:
    """What is allowed and may hurt."""
    found = []
    if spec.spot and spec.grace_s > SPOT_GRACE_S:
        found.append(
            f"a spot node's pods get about {SPOT_GRACE_S} s, whatever grace_s {spec.grace_s} says: what a save does not"
            " finish in, the last checkpoint has to hold"
        )
    if spec.machines.kind == "gpu" and spec.machines.hosts > 1 and not spec.gpu_network.profile and not spec.pod_patch:
        found.append(
            f"{spec.machines.hosts} nodes of {spec.machines.type} would talk over eth0 by plain TCP;"
            " gpu_network.profile or a pod_patch names their fast network"
        )
    if spec.gpu_network.profile:
        found.append(
            "gpu_network mounts folders of the nodes: a namespace that enforces Pod Security baseline or restricted"
            " refuses that"
        )
    return found


TARGET = Target(
    name="jobset",
    check=check,
    describe=describe,
    render=render,
    submit=submit,
    status=status,
    logs=logs,
    cancel=cancel,
    homes=homes,
    homes_field="volumes",
    takes=OPTIONAL_FIELDS,
    instead={},
    images=images,
    secrets="kubernetes",
    here=False,
    warnings=warnings,
)
