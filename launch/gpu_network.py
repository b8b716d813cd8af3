"""GPU pods on GKE's fast networks: what NCCL's plugins need of a pod, as profiles that a spec names.

By Google's pages (cloud.google.com/kubernetes-engine/docs/how-to/gpu-bandwidth-gpudirect-tcpx, .../ai-hypercomputer,
2026): TCPXO on A3 Mega, a daemon beside the trainer; gIB on A3 Ultra, A4 and A4X, RDMA without one. Neither was run:
no such node was at hand.
"""

import dataclasses
import json
from typing import Any

from launch.accelerators import GPU_MACHINES, NVLINK_NODES
from launch.spec import RunSpec

_LIBRARIES = "/usr/local/nvidia"
_APERTURES = "/dev/aperture_devices"
_CLAIM = "compute-domain-channel"
DAEMON = "tcpxo-daemon"
# What the daemon may see besides the network cards.
_DEVICES = [f"/dev/nvidia{i}" for i in range(8)] + ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/dmabuf_import_helper"]
_DAEMON_LINE = (
    "chmod 755 /fts/entrypoint_rxdm_container.sh && exec /fts/entrypoint_rxdm_container.sh --num_hops=2 --num_nics=8"
    " --uid= --alsologtostderr"
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """machines: types that have it, each with its network cards; networks: default names, first interface; script: that
    sets NCCL's variables.
    """

    machines: dict[str, int]
    networks: str
    first: int
    script: str


PROFILES = {
    "tcpxo": Profile(
        machines={"h100-mega": 8}, networks="vpc{}", first=1, script=f"{_LIBRARIES}/lib64/nccl-env-profile.sh"
    ),
    "gib": Profile(
        machines={"h200": 8, "b200": 8, "gb200": 4}, networks="rdma-{}", first=0,
        script="/usr/local/gib/scripts/set_nccl_env.sh",
    ),
}  # fmt: skip


def check(spec: RunSpec) -> None:
    """ValueError on a profile that the machine does not have, or lacks a part."""
    network, kind = spec.gpu_network, spec.machines.type
    arm = kind in GPU_MACHINES and GPU_MACHINES[kind].arm
    if network.profile and network.profile not in PROFILES:
        raise ValueError(f"gpu_network.profile {network.profile!r} is unknown; it is one of {', '.join(PROFILES)}")
    if network.profile and kind not in PROFILES[network.profile].machines:
        has = ", ".join(PROFILES[network.profile].machines)
        raise ValueError(f"gpu_network.profile {network.profile} is of {has}, not of {kind}; leave it out, or patch")
    if (network.networks or network.daemon_image) and not network.profile:
        raise ValueError("gpu_network: networks and daemon_image belong to a profile; name it (tcpxo, gib)")
    if network.networks and len(network.networks) != PROFILES[network.profile].machines[kind]:
        cards = PROFILES[network.profile].machines[kind]
        raise ValueError(f"gpu_network.networks has {len(network.networks)} names; {kind} has {cards} network cards")
    if (network.profile == "tcpxo") != bool(network.daemon_image):
        raise ValueError("gpu_network.daemon_image is tcpxo's receive daemon: give it there, by digest, and only there")
    if arm != bool(network.compute_domain):
        raise ValueError(
            f"gpu_network.compute_domain is what pods of gb200 and gb300 share NVLink by, and {kind} "
            + ("needs it: name the ResourceClaimTemplate of a ComputeDomain" if arm else "has none; leave it out")
        )
    if arm and spec.machines.hosts > NVLINK_NODES:
        raise ValueError(
            f"accelerator.nodes {spec.machines.hosts}: one ComputeDomain of {kind} has at most {NVLINK_NODES} nodes"
        )


def arguments(spec: RunSpec) -> list[str]:
    """What stands before the trainer's own arguments."""
    profile = PROFILES.get(spec.gpu_network.profile)
    return ["-m", "launch.nccl_environment", profile.script] if profile else []


def patch(spec: RunSpec, container: str) -> dict[str, Any]:
    """What the pod's template gets, to be merged by name."""
    network = spec.gpu_network
    if not network.profile and not network.compute_domain:
        return {}
    template: dict[str, Any] = {"metadata": {"annotations": _annotations(spec)}, "spec": _nvlink(spec, container)}
    if not network.profile:
        return template
    pod = template["spec"]
    trainer = pod.setdefault("containers", [{"name": container}])[0]
    trainer["env"] = [{"name": "LD_LIBRARY_PATH", "value": f"{_LIBRARIES}/lib64"}]
    trainer["volumeMounts"] = [{"name": "nvidia", "mountPath": _LIBRARIES, "readOnly": True}]
    pod["volumes"] = [_host("nvidia", "/home/kubernetes/bin/nvidia")]
    if network.profile == "gib":
        trainer["volumeMounts"].append({"name": "gib", "mountPath": "/usr/local/gib", "readOnly": True})
        pod["volumes"].append(_host("gib", "/home/kubernetes/bin/gib"))
        return template
    trainer["env"] += [
        {"name": "NCCL_LIB_DIR", "value": f"{_LIBRARIES}/lib64"},
        {"name": "NCCL_FASTRAK_LLCM_DEVICE_DIRECTORY", "value": _APERTURES},
    ]
    trainer["volumeMounts"].append({"name": "apertures", "mountPath": _APERTURES})
    pod["volumes"] += [_host("apertures", _APERTURES), _host("sys", "/sys"), _host("proc-sys", "/proc/sys")]
    pod["initContainers"] = [_daemon(network.daemon_image)]
    return template


def _annotations(spec: RunSpec) -> dict[str, str]:
    profile = PROFILES.get(spec.gpu_network.profile)
    if profile is None:
        return {}
    cards = profile.machines[spec.machines.type]
    names = spec.gpu_network.networks or [profile.networks.format(profile.first + i) for i in range(cards)]
    # TCPXO's cards are eth1 to eth8; RDMA's begin at eth2, after the second card for plain traffic.
    first = 1 if spec.gpu_network.profile == "tcpxo" else 2
    interfaces = [{"interfaceName": "eth0", "network": "default"}]
    interfaces += [{"interfaceName": f"eth{first + i}", "network": name} for i, name in enumerate(names)]
    rows = {
        "networking.gke.io/default-interface": "eth0",
        "networking.gke.io/interfaces": json.dumps(interfaces, separators=(",", ":")),
    }
    if spec.gpu_network.profile == "tcpxo":
        rows[f"devices.gke.io/container.{DAEMON}"] = "".join(f"- path: {path}\n" for path in _DEVICES)
    return rows


def _nvlink(spec: RunSpec, container: str) -> dict[str, Any]:
    """The claim on the NVLink domain of GB200 and GB300."""
    if not spec.gpu_network.compute_domain:
        return {}
    return {
        "resourceClaims": [{"name": _CLAIM, "resourceClaimTemplateName": spec.gpu_network.compute_domain}],
        "containers": [{"name": container, "resources": {"claims": [{"name": _CLAIM}]}}],
    }


def _daemon(image: str) -> dict[str, Any]:
    """A sidecar that ends with the trainer: an init container that is restarted always (Kubernetes 1.29)."""
    return {
        "name": DAEMON,
        "image": image,
        "restartPolicy": "Always",
        "command": ["/bin/sh", "-c", _DAEMON_LINE],
        "env": [{"name": "LD_LIBRARY_PATH", "value": f"{_LIBRARIES}/lib64"}],
        "securityContext": {
            "runAsUser": 0,
            "runAsNonRoot": False,
            "capabilities": {"add": ["NET_ADMIN", "NET_BIND_SERVICE"]},
        },
        "volumeMounts": [
            {"name": "nvidia", "mountPath": _LIBRARIES},
            {"name": "sys", "mountPath": "/hostsysfs"},
            {"name": "proc-sys", "mountPath": "/hostprocsysfs"},
        ],
    }


def _host(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": path}}
