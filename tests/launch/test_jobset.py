"""Manifests of the whole accelerator table against JobSet's closed schema and what no schema knows."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from launch import jobset, manifest_check
from launch.accelerators import GPU_MACHINES, TPU_NAMES
from tests.launch.specs import spec

FLAT = ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"]
SOLID = ["2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"]
TABLE = [
    *(("v4", topology) for topology in [*SOLID, "8x8x12"]),
    *(("v5e", topology) for topology in FLAT),
    *(("v5p", topology) for topology in [*SOLID, "16x16x16", "16x16x24"]),
    *(("v6e", topology) for topology in FLAT),
    *(("tpu7x", topology) for topology in ["1x1x1", *SOLID]),
]
NVLINK = {kind: {"compute_domain": "domain"} for kind in ("gb200", "gb300")}
CAPACITY = {"spot": {"spot": True}, "reserved": {"reservation": "r"}}


def chips_of(topology: str) -> int:
    product = 1
    for dim in topology.split("x"):
        product *= int(dim)
    return product


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def env_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return {
        entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in pod_of(manifest)["containers"][0]["env"]
    }


@pytest.mark.parametrize("capacity", CAPACITY)
@pytest.mark.parametrize(("kind", "topology"), TABLE)
def test_every_tpu_manifest_validates(kind: str, topology: str, capacity: str) -> None:
    hosts = max(1, chips_of(topology) // 4)
    policy = {"placement_policy": "workload"} if kind == "tpu7x" else {}
    for slices in (1, 2) if hosts > 1 else (1,):
        run = spec(CAPACITY[capacity], policy, accelerator={"type": kind, "topology": topology, "slices": slices})
        manifest = jobset.manifest(run)  # checks itself
        replicated = manifest["spec"]["replicatedJobs"][0]
        job, pod = replicated["template"]["spec"], pod_of(manifest)
        assert replicated["replicas"] == slices
        assert job["parallelism"] == job["completions"] == hosts
        limits = pod["containers"][0]["resources"]["limits"]
        assert hosts * limits["google.com/tpu"] == chips_of(topology)
        selector = pod["nodeSelector"]
        assert selector["cloud.google.com/gke-tpu-accelerator"] == TPU_NAMES[kind].label
        assert selector["cloud.google.com/gke-tpu-topology"] == topology
        assert ("cloud.google.com/gke-spot" in selector) == (capacity == "spot")
        assert ("cloud.google.com/reservation-name" in selector) == (capacity == "reserved")
        assert ("MEGASCALE_NUM_SLICES" in env_of(manifest)) == (slices > 1)


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("kind", GPU_MACHINES)
def test_every_gpu_manifest_validates(kind: str, nodes: int) -> None:
    manifest = jobset.manifest(spec(accelerator={"type": kind, "nodes": nodes}, gpu_network=NVLINK.get(kind, {})))
    pod, env = pod_of(manifest), env_of(manifest)
    arm = {"kubernetes.io/arch": "arm64"} if kind.startswith("gb") else {}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": GPU_MACHINES[kind].label} | arm
    assert any(toleration["key"] == "kubernetes.io/arch" for toleration in pod["tolerations"]) == bool(arm)
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": GPU_MACHINES[kind].gpus}
    # Explicit: JAX's own search would count the pods of one child Job and want to list them.
    assert env["JAX_COORDINATOR_ADDRESS"] == "run-slice-0-0.run:8482" and env["JAX_NUM_PROCESSES"] == str(nodes)
    assert (
        env["JAX_PROCESS_ID"]["fieldRef"]["fieldPath"]
        == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    )
    assert len(env["JAX_LOCAL_DEVICE_IDS"].split(",")) == GPU_MACHINES[kind].gpus
    assert "--distributed" not in pod["containers"][0]["command"]
    security = pod["containers"][0]["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    assert security["capabilities"] == {"drop": ["ALL"]} and security["readOnlyRootFilesystem"]


def test_python_is_process_one_and_finds_its_peers() -> None:
    container = pod_of(jobset.manifest(spec(overrides={"seed": 3})))["containers"][0]
    assert container["command"][:4] == ["python", "-m", "launch.raise_memlock", "-m"]
    assert container["command"][-2:] == ["--distributed", "--config.seed=3"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["SYS_RESOURCE"]}
    assert "args" not in container
    privileged = pod_of(jobset.manifest(spec(security="privileged")))["containers"][0]
    assert privileged["securityContext"] == {"privileged": True} and "launch.raise_memlock" not in privileged["command"]


def test_the_failure_policy_tells_preemption_crash_and_user_error_apart() -> None:
    """By the Job controller's own messages, as Kubernetes 1.31 writes them."""
    manifest = jobset.manifest(spec(restarts=7))
    policy = manifest["spec"]["failurePolicy"]
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert policy["maxRestarts"] == 7 and job["backoffLimit"] == 0

    def action(code: int, disrupted: bool = False) -> str:
        for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
            if "onPodConditions" in rule and disrupted:
                reason, message = (
                    "PodFailurePolicy",
                    f"Pod ns/p has condition DisruptionTarget matching FailJob rule at index {index}",
                )
                break
            if "onExitCodes" in rule and code in rule["onExitCodes"]["values"]:
                reason = "PodFailurePolicy"
                message = (
                    f"Container train for pod ns/p failed with exit code {code} matching FailJob rule at index {index}"
                )
                break
        else:
            reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        for rule in policy["rules"]:
            if reason in rule["onJobFailureReasons"] and any(
                re.search(p, message) for p in rule["onJobFailureMessagePatterns"]
            ):
                return rule["action"]
        return "RestartJobSet"  # JobSet's default: counted

    assert action(143, disrupted=True) == action(2, disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action(42) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action(2) == action(130) == "FailJobSet"
    assert {action(code) for code in (1, 43, 44, 134, 137, 143, 255, 142, 242, 20)} == {"RestartJobSet"}


def test_queue_secrets_and_the_rest() -> None:
    run = spec(
        queue="q", priority="high", secrets={"HF_TOKEN": {"secret": "hub", "key": "token"}}, env={"A": "b"}, grace_s=77,
        service_account="trainer", compilation_cache="gs://b/cache", checkpoints="gs://b/run",
        volumes=[
            {"name": "runs", "mount": "/runs", "source": {"csi": {"driver": "gcsfuse.csi.storage.gke.io"}}}
        ],
    )  # fmt: skip
    manifest = jobset.manifest(run)
    template = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    assert "priorityClassName" not in template["spec"]
    assert template["metadata"]["annotations"] == {
        "gke-gcsfuse/volumes": "true",
        "gke-gcsfuse/cpu-limit": "0",
        "gke-gcsfuse/memory-limit": "0",
        "gke-gcsfuse/ephemeral-storage-limit": "0",
        "gke-gcsfuse/cpu-request": "2",
        "gke-gcsfuse/memory-request": "4Gi",
    }
    assert template["spec"]["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    assert (
        template["spec"]["terminationGracePeriodSeconds"] == 77 and template["spec"]["serviceAccountName"] == "trainer"
    )
    assert template["spec"]["automountServiceAccountToken"] is False and "hostNetwork" not in template["spec"]
    assert "--config.checkpoint.directory=gs://b/run" in template["spec"]["containers"][0]["command"]
    env = env_of(manifest)
    assert env["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert env["A"] == "b" and env["JAX_COMPILATION_CACHE_DIR"] == "gs://b/cache"
    assert (
        env["RESTART_ATTEMPT"]["fieldRef"]["fieldPath"] == "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']"
    )
    assert pod_of(jobset.manifest(spec(priority="high")))["priorityClassName"] == "high"
    on_host = pod_of(jobset.manifest(spec(host_network=True)))
    assert on_host["hostNetwork"] and on_host["dnsPolicy"] == "ClusterFirstWithHostNet"


def test_the_rendered_text_is_the_manifest() -> None:
    run = spec()
    assert yaml.safe_load(jobset.render(run)) == jobset.manifest(run)


MUTATIONS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("unknown top field", lambda m: m.update(speck={}), "'speck' was unexpected"),
    ("unknown pod field", lambda m: pod_of(m).update(hostIpc=True), "'hostIpc' was unexpected"),
    ("unknown container field", lambda m: pod_of(m)["containers"][0].update(cmd=[]), "'cmd' was unexpected"),
    ("wrong type", lambda m: pod_of(m).update(terminationGracePeriodSeconds="60"), "is not of type 'integer'"),
    ("command as text", lambda m: pod_of(m)["containers"][0].update(command="python"), "is not of type 'array'"),
    (
        "env value as number",
        lambda m: pod_of(m)["containers"][0]["env"].append({"name": "A", "value": 3}),
        "is not of type 'string'",
    ),
    ("bad enum", lambda m: m["spec"]["failurePolicy"].update(restartStrategy="Again"), "is not one of"),
    ("bad action", lambda m: m["spec"]["failurePolicy"]["rules"][0].update(action="Restart"), "is not one of"),
    (
        "rule without a name",
        lambda m: m["spec"]["failurePolicy"]["rules"][0].pop("name"),
        "'name' is a required property",
    ),
    ("container without a name", lambda m: pod_of(m)["containers"][0].pop("name"), "'name' is a required property"),
    ("long name", lambda m: m["metadata"].update(name="a" * 27), "has 27 characters, at most 26"),
    (
        "counts differ",
        lambda m: m["spec"]["replicatedJobs"][0]["template"]["spec"].update(completions=3),
        "is not completions 3",
    ),
    ("restart policy", lambda m: pod_of(m).update(restartPolicy="Always"), "needs Never"),
    (
        "env twice",
        lambda m: pod_of(m)["containers"][0]["env"].append({"name": "PYTHONUNBUFFERED", "value": "0"}),
        "is there twice",
    ),
    (
        "volume twice",
        lambda m: pod_of(m)["volumes"].append({"name": "shm", "emptyDir": {}}),
        "volume shm is there twice",
    ),
    ("volume missing", lambda m: pod_of(m)["volumes"].pop(), "that is not there"),
    (
        "other chips",
        lambda m: pod_of(m)["containers"][0]["resources"]["limits"].update({"google.com/tpu": 8}),
        "must both be 4",
    ),
    ("container renamed", lambda m: pod_of(m)["containers"][0].update(name="main"), "there is no container 'train'"),
]


@pytest.mark.parametrize(("what", "mutate", "message"), MUTATIONS, ids=[row[0] for row in MUTATIONS])
def test_a_wrong_manifest_is_caught(what: str, mutate: Callable[[dict[str, Any]], Any], message: str) -> None:
    manifest = copy.deepcopy(jobset.manifest(spec()))
    manifest_check.check_manifest(manifest, chips=4)
    mutate(manifest)
    with pytest.raises(ValueError, match="JobSet") as error:
        manifest_check.check_manifest(manifest, chips=4)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_patch_is_merged_by_name() -> None:
    patch = {
        "metadata": {"annotations": {"a": "b"}},
        "spec": {
            "hostPID": None,
            "tolerations": [{"key": "x", "operator": "Exists"}],
            "containers": [
                {
                    "name": "train",
                    "env": [{"name": "LD_LIBRARY_PATH", "value": "/lib"}, {"name": "PYTHONUNBUFFERED", "value": "0"}],
                },
                {"name": "tcpx", "image": "daemon@sha256:0", "resources": {}},
            ],
        },
    }
    manifest = jobset.manifest(spec(accelerator={"type": "h100", "nodes": 2}, pod_patch=patch))
    pod = pod_of(manifest)
    assert [container["name"] for container in pod["containers"]] == ["train", "tcpx"]
    assert env_of(manifest)["LD_LIBRARY_PATH"] == "/lib" and env_of(manifest)["PYTHONUNBUFFERED"] == "0"
    assert pod["containers"][0]["command"][0] == "python" and len(pod["tolerations"]) == 2 and "hostPID" not in pod


def test_a_pod_asks_for_half_of_its_host() -> None:
    """So that it is not the first to be evicted, and quotas of cpu and memory let it in."""
    resources = pod_of(jobset.manifest(spec()))["containers"][0]["resources"]
    assert resources["requests"] == {"cpu": "104", "memory": "224G", "google.com/tpu": 4}
    assert resources["limits"] == {"google.com/tpu": 4}


def test_a_machine_of_eight_chips() -> None:
    for kind in ("v5e", "v6e"):
        one = jobset.manifest(spec(accelerator={"type": kind, "topology": "2x4", "one_host": True}))
        assert one["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == 1
        assert pod_of(one)["containers"][0]["resources"]["limits"] == {"google.com/tpu": 8}
        two = jobset.manifest(spec(accelerator={"type": kind, "topology": "2x4"}))
        assert two["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == 2


def test_a_pod_on_its_nodes_network_keeps_its_identity_for_the_bucket() -> None:
    volume = {"name": "runs", "mount": "/runs", "source": {"csi": {"driver": "gcsfuse.csi.storage.gke.io"}}}
    pod = pod_of(jobset.manifest(spec(volumes=[volume], host_network=True)))
    assert pod["volumes"][-1]["csi"]["volumeAttributes"] == {"hostNetworkPodKSA": "true"}
