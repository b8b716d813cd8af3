"""Specs for the tests: one good one, and changes of it."""

import copy
from pathlib import Path
from typing import Any

from launch.spec import RunSpec, spec_from_dict

ROOT = Path(__file__).resolve().parent.parent.parent
DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGE = f"us-docker.pkg.dev/p/omnihuman/trainer@{DIGEST}"
VOLUMES = [{"name": "runs", "mount": "/runs", "source": {"persistentVolumeClaim": {"claimName": "runs"}}}]

# omnihuman_7b fits 256 devices: v5p 4x8x8.
GOOD: dict[str, Any] = {
    "name": "run",
    "config": str(ROOT / "configs" / "omnihuman_7b.py"),
    "output": "/runs/run",
    "accelerator": {"type": "v5p", "topology": "4x8x8"},
    "image": IMAGE,
    "volumes": VOLUMES,
}
SLURM = {"python": "/shared/venv/bin/python", "workdir": "/shared/omnihuman", "time": "1-00:00:00", "partition": "gpu"}
ON_SLURM = {
    "accelerator": {"type": "h100", "nodes": 32},
    "output": "/shared/run",
    "image": "",
    "volumes": [],
    "slurm": SLURM,
}
TPU_VM = {"project": "p", "zone": "us-east5-b", "mounts": {"/mnt/runs": "/runs"}}
ON_COMPUTE_ENGINE = {"accelerator": {"type": "v6e", "topology": "16x16"}, "volumes": [], "tpu_vm": TPU_VM}
ON_TPU_VM = {"accelerator": {"type": "v6e", "topology": "16x16"}, "volumes": [], "tpu_vm": TPU_VM}


def changed(*changes: dict[str, Any], drop: str = "") -> dict[str, Any]:
    """GOOD with fields replaced, in order, and one left out."""
    data = copy.deepcopy(GOOD)
    for change in changes:
        data |= copy.deepcopy(change)
    data.pop(drop, None)
    return data


def spec(*changes: dict[str, Any], **fields: Any) -> RunSpec:
    return spec_from_dict(changed(*changes, fields))
