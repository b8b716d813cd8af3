"""Devices that are not here: TPU slices as libtpu describes them, so that programs can be compiled for them on any
machine.
"""

import os
import sys
from typing import Any

from omnihuman_jax.scale.hardware import Topology

# Read when libtpu is loaded. Without them it looks for a metadata server, and for other processes that use the same
# chips.
ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

# Generations whose programs cannot be compiled here, and why: their plans are formula alone.
FORMULA_ONLY = {
    "v4": "a job sees chips, libtpu 0.0.52 describes their cores",
    "tpu8t": "it is announced, and libtpu 0.0.52 describes no slice of it",
    "tpu8i": "it is announced, and libtpu 0.0.52 describes no slice of it",
}


def prepare() -> None:
    """Makes this process compile for described devices and run on the CPU; call it before JAX starts a backend."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    if "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = "cpu"
        return
    import jax

    jax.config.update("jax_platforms", "cpu")


def describe(topology: Topology) -> list[Any]:
    """The devices of a TPU topology, all slices; ValueError if libtpu is missing or does not know it."""
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    if topology.accelerator.platform != "tpu":
        raise ValueError(
            f"{topology.name}: GPU programs cannot be compiled without a GPU; only TPU slices can be described"
        )
    prepare()
    options = {"num_slices": topology.num_slices} if topology.num_slices > 1 else {}
    try:
        found = list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices)
    except ImportError as error:
        raise ValueError(f"{topology.name}: needs libtpu; pip install -e '.[topologies]'") from error
    except (JaxRuntimeError, RuntimeError) as error:
        if reason := FORMULA_ONLY.get(topology.accelerator.name):
            raise ValueError(f"{topology.name}: {reason}; use --estimate for the formula") from error
        text = str(error).splitlines()[0]
        hint = "; pip install libtpu" if "libtpu" in text.lower() else ""
        raise ValueError(f"libtpu cannot describe {topology.name}: {text}{hint}") from error
    if len(found) != topology.devices:
        # `FORMULA_ONLY` says of which this is known.
        raise ValueError(
            f"libtpu describes {topology.name} as {len(found)} devices, but a job there has "
            f"{topology.devices}; its program cannot be compiled here; use --estimate for the formula"
        )
    return found
