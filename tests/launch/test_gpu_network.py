"""GPU pods on GKE's fast networks: profiles, and the environment that a plugin's script sets."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import gpu_network, jobset
from launch.manifest_check import pod_of
from tests.launch.specs import DIGEST, ROOT, spec

DAEMON = f"us-docker.pkg.dev/gce-ai-infra/gpudirect-tcpxo/tcpgpudmarxd-dev@{DIGEST}"


def template(kind: str, **network: Any) -> dict[str, Any]:
    run = spec(accelerator={"type": kind, "nodes": 4}, gpu_network=network)
    return jobset.manifest(run)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]


@pytest.mark.parametrize(
    ("kind", "profile", "cards"),
    [("h100-mega", "tcpxo", 8), ("h200", "gib", 8), ("b200", "gib", 8), ("gb200", "gib", 4)],
)
def test_every_card_has_an_interface(kind: str, profile: str, cards: int) -> None:
    more = {"tcpxo": {"daemon_image": DAEMON}}.get(profile, {})
    domain = {"compute_domain": "domain"} if kind == "gb200" else {}
    pod = template(kind, profile=profile, **more, **domain)
    interfaces = json.loads(pod["metadata"]["annotations"]["networking.gke.io/interfaces"])
    assert len(interfaces) == 1 + cards and interfaces[0] == {"interfaceName": "eth0", "network": "default"}
    assert len({row["interfaceName"] for row in interfaces}) == len({row["network"] for row in interfaces}) == 1 + cards
    trainer = pod["spec"]["containers"][0]
    # The script of the node's own plugin first, then the trainer as process 1.
    assert trainer["command"][:3] == ["python", "-m", "launch.nccl_environment"]
    assert trainer["command"][3] == gpu_network.PROFILES[profile].script
    mounted = {mount["mountPath"] for mount in trainer["volumeMounts"]}
    assert any(gpu_network.PROFILES[profile].script.startswith(mount) for mount in mounted)


def test_the_daemon_ends_with_the_trainer() -> None:
    pod = template("h100-mega", profile="tcpxo", daemon_image=DAEMON)
    (daemon,) = pod["spec"]["initContainers"]
    assert daemon["restartPolicy"] == "Always" and daemon["name"] == "tcpxo-daemon"
    assert [container["name"] for container in pod["spec"]["containers"]] == ["train"]
    assert daemon["securityContext"]["capabilities"] == {"add": ["NET_ADMIN", "NET_BIND_SERVICE"]}
    devices = pod["metadata"]["annotations"]["devices.gke.io/container.tcpxo-daemon"]
    assert devices.count("path: /dev/nvidia") == 10
    assert {mount["name"] for mount in daemon["volumeMounts"]} <= {volume["name"] for volume in pod["spec"]["volumes"]}


def test_names_of_the_clusters_networks() -> None:
    names = [f"gpu-nic{i}" for i in range(8)]
    pod = template("h200", profile="gib", networks=names)
    interfaces = json.loads(pod["metadata"]["annotations"]["networking.gke.io/interfaces"])
    assert [row["network"] for row in interfaces[1:]] == names


def test_nvlink_across_nodes_is_claimed() -> None:
    run = spec(accelerator={"type": "gb300", "nodes": 18}, gpu_network={"compute_domain": "domain"})
    pod = pod_of(jobset.manifest(run))
    (claim,) = pod["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == "domain"
    assert pod["containers"][0]["resources"]["claims"] == [{"name": claim["name"]}]


def test_the_scripts_variables_reach_the_trainer(tmp_path: Path) -> None:
    """With what the script says to its terminal in the log, and Python in the place of the wrapper."""
    script = tmp_path / "set env.sh"
    script.write_text("echo hello\nNCCL_NET=gIB\nexport NCCL_TUNER='a b\nc'\n")
    code = "import os; print(repr([os.environ['NCCL_NET'], os.environ['NCCL_TUNER'], os.environ['MINE'], os.getpid()]))"
    argv = [sys.executable, "-m", "launch.nccl_environment", str(script), "-c", code]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"MINE": "kept"}
    ) as process:
        out, err = process.communicate(timeout=60)
    assert out == f"['gIB', 'a b\\nc', 'kept', {process.pid}]\n" and "hello" in err


def test_a_node_without_the_plugin_is_the_users_error(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "launch.nccl_environment", str(tmp_path / "none.sh"), "-c", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 2 and "the node lacks NCCL's plugin" in done.stderr
