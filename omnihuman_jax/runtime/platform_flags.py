"""Settings of XLA for NVIDIA GPUs, of JAX where a TPU's driver has no TPU, and of the C library for CPUs, in one place.
They have to be in the environment before JAX starts (the C library's, before Python does): no JAX here.

What is set already stays as it is, so a user's own XLA_FLAGS win, flag by flag, and so does JAX_PLATFORMS.
`OMNIHUMAN_GPU_FLAGS=off` and `OMNIHUMAN_CPU_FLAGS=off` set nothing. TPUs need nothing: libtpu schedules collectives
behind compute by default.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

SWITCH = "OMNIHUMAN_GPU_FLAGS"

# Overlap of collectives with compute: what XLA's own optimisation level 1 for GPUs switches on
# (openxla.org/xla/gpu_optimization_ levels). The model is a scan over blocks, so that without double buffering a
# block's gather of weights waits for the block before.
XLA_FLAGS: dict[str, str] = {
    "xla_gpu_enable_latency_hiding_scheduler": "true",
    "xla_gpu_enable_pipelined_all_gather": "true",
    "xla_gpu_enable_pipelined_reduce_scatter": "true",
    "xla_gpu_enable_pipelined_all_reduce": "true",
    "xla_gpu_enable_while_loop_double_buffering": "true",
}
# JAX takes three quarters of a GPU's memory by default; NVIDIA's guide for training says 0.8 to 0.9.
VARIABLES: dict[str, str] = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}


CPU_SWITCH = "OMNIHUMAN_CPU_FLAGS"
# glibc's malloc asks for huge pages. XLA:CPU takes a step's temporaries from malloc and gives them back after it: with
# pages of 4 KiB the kernel spends a tenth of the step on handing out 650 MiB of them again (docs/speed.md).
TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_HUGE_PAGES_FILE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def settings(platform: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to set for `platform` (`cuda`, `tpu`, `cpu`), given those that are set."""
    if platform != "cuda" or environment.get(SWITCH, "").lower() in ("off", "0"):
        return {}
    present = environment.get("XLA_FLAGS", "").split()
    names = {flag.lstrip("-").split("=", 1)[0] for flag in present}
    added = [f"--{name}={value}" for name, value in XLA_FLAGS.items() if name not in names]
    result = {name: value for name, value in VARIABLES.items() if name not in environment}
    return result | ({"XLA_FLAGS": " ".join([*present, *added])} if added else {})


def platform_of(environment: Mapping[str, str], root: Path = Path("/")) -> str:
    """What JAX will start on, as far as can be told without starting it: its own variable, else GPUs with a plugin for
    them, else a TPU with its driver.
    """
    asked = environment.get("JAX_PLATFORMS", "").lower().split(",")[0]
    if asked:
        return "cuda" if asked in ("cuda", "gpu") else asked
    if any(_installed(f"jax_cuda{version}_plugin") for version in (12, 13)) and (root / "dev" / "nvidiactl").exists():
        return "cuda"
    return "tpu" if _installed("libtpu") and has_tpu(environment, root) else "cpu"


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# Whoever gives a machine TPUs sets some of them (Google's images, GKE's device plugin, JAX's own switch).
_TPU_VARIABLES = ("JAX_FORCE_TPU_INIT", "TPU_ACCELERATOR_TYPE", "TPU_NAME", "TPU_WORKER_ID", "CLOUD_TPU_TASK_ID")
_GOOGLE = "0x1ae0"
_STORAGE_OR_NETWORK = ("0x01", "0x02")  # classes of the other devices that Google makes


def has_tpu(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether this machine may have a TPU: rather one too many than a TPU that nobody uses."""
    if any(name in environment for name in _TPU_VARIABLES):
        return True
    if any(True for names in ("accel*", "vfio/[0-9]*") for _ in (root / "dev").glob(names)):
        return True
    found = (root / "sys/bus/pci/devices").glob("*/vendor")
    google = [vendor.with_name("class") for vendor in found if vendor.read_text().strip() == _GOOGLE]
    return not all(kind.read_text().startswith(_STORAGE_OR_NETWORK) for kind in google)


def apply(environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> dict[str, str]:
    """Sets what the platform of this machine asks for; returns what it set."""
    platform = platform_of(environment, root)
    chosen = settings(platform, environment)
    if platform == "cpu" and _idle_libtpu(environment):
        # libtpu compiles for described slices on any machine. Left to itself, JAX starts it as a driver too: it looks
        # for a metadata server, prints a page of errors and takes the lock of all who compile with it.
        chosen["JAX_PLATFORMS"] = "cpu"
    environment.update(chosen)
    return chosen


def _idle_libtpu(environment: Mapping[str, str]) -> bool:
    """libtpu is installed, and no plugin that JAX could find something else by."""
    if "JAX_PLATFORMS" in environment or not _installed("libtpu"):
        return False
    return not (_installed("jax_plugins") or importlib.metadata.entry_points(group="jax_plugins"))


def cpu_settings(environment: Mapping[str, str], kernel: Path = _HUGE_PAGES_FILE) -> dict[str, str]:
    """Variables that a process which computes on the CPU should be started with, given those that are set."""
    on_request = kernel.exists() and "[madvise]" in kernel.read_text()
    present = environment.get(TUNABLES, "")
    if not on_request or HUGE_PAGES in present or environment.get(CPU_SWITCH, "").lower() in ("off", "0"):
        return {}
    return {TUNABLES: ":".join(filter(None, (present, f"{HUGE_PAGES}=1")))}


def restart_for_cpu(environment: Mapping[str, str] = os.environ) -> None:
    """Starts this program anew, as the same process, if it computes on the CPU and `cpu_settings` has something to
    set.
    """
    if platform_of(environment) == "cpu" and (wanted := cpu_settings(environment)):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**environment, **wanted})


def give_back_memory() -> None:
    """Returns to the system what malloc holds and nobody uses: a gigabyte after XLA:CPU has compiled a step."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def map_large_buffers(least: int = 1 << 20) -> None:
    """From now on malloc maps every buffer of `least` bytes or more by itself and unmaps it when it is freed.

    Left alone, glibc raises that threshold to 32 MiB as such buffers are freed, cuts later ones from its heaps, and a
    small one that lives on behind them keeps their memory: what streams a model in slices then holds many times a slice
    (docs/parity.md).
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if option is not None:
        option(_M_MMAP_THRESHOLD, least)


_M_MMAP_THRESHOLD = -3  # malloc.h


def slurm_device_ids(environment: Mapping[str, str]) -> list[int] | None:
    """GPUs that this SLURM task should use, as `jax.distributed.initialize(local_device_ids=...)` takes them; None:
    JAX's choice.

    JAX gives a SLURM task the one GPU of its SLURM_LOCALID: with one task a node the others idle without a word. Here
    the GPUs that the task can see are shared out among the node's tasks, one or more each.

    Raises:
        ValueError: they cannot be, with the numbers and the srun options that cure it.
    """
    local = environment.get("SLURM_LOCALID")
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE"))
    if local is None or tasks is None or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    visible = (
        environment.get("CUDA_VISIBLE_DEVICES")
        or environment.get("SLURM_STEP_GPUS")
        or environment.get("SLURM_JOB_GPUS")
    )
    if not visible:
        return None  # no GPU was asked for: a job on CPUs
    gpus = len([gpu for gpu in visible.split(",") if gpu])
    # `4(x2),3`: tasks of each node; jobs here have the same on every node.
    counts = {int(part.split("(")[0]) for part in tasks.split(",")}
    if len(counts) > 1:
        raise ValueError(
            f"SLURM runs {tasks} tasks on the nodes of this job; give every node the same with --ntasks-per-node"
        )
    here, index = counts.pop(), int(local)
    if gpus == 1 and here > 1:
        return [0]  # bound by SLURM (--gpus-per-task, --gpu-bind): what the task sees is its own
    if gpus % here:
        raise ValueError(
            f"{here} SLURM tasks on a node of {gpus} GPUs cannot share them evenly; take --ntasks-per-node=1 or "
            f"--ntasks-per-node={gpus}"
        )
    share = gpus // here
    return list(range(index * share, (index + 1) * share))
