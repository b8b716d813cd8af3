"""A JobSet's manifest against what the API server, the webhooks and the scheduler would refuse."""

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from launch.spec import MAX_NAME

# The trainer's container: the exit codes of the failure policy are its.
CONTAINER = "train"


def pod_of(jobset: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pod's spec of a manifest."""
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


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
