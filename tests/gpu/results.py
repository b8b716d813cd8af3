"""A row of the acceptance's table, and what it was measured on."""

import dataclasses
import importlib.metadata
import platform
import shutil
import subprocess
import sys
from typing import Any

PACKAGES = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "flax", "torch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What was looked at, its number and unit, the limit that it must keep (None: a measurement), and a word."""

    what: str
    value: float | None = None
    unit: str = ""
    limit: float | None = None
    note: str = ""
    failed: bool = False

    @property
    def ok(self) -> bool:
        """Not failed, and within its limit; a value that is no number is not."""
        return not self.failed and (self.limit is None or (self.value is not None and self.value <= self.limit))


def versions() -> dict[str, Any]:
    """Python, packages, card and driver, as far as they are there."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "machine": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30).stdout
        found["card"], found["driver"], found["memory"] = ([w.strip() for w in told.split(",")] + ["", "", ""])[:3]
    return found
