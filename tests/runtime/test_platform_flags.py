"""GPU and CPU settings: each where it belongs, never over a user's own, known to XLA; SLURM tasks get the GPUs that are
theirs.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from omnihuman_jax.runtime import platform_flags
from omnihuman_jax.runtime.platform_flags import settings, slurm_device_ids


def test_only_on_gpus_and_never_over_the_users_own() -> None:
    assert settings("cpu", {}) == settings("tpu", {}) == settings("cuda", {"OMNIHUMAN_GPU_FLAGS": "off"}) == {}
    fresh = settings("cuda", {})
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in fresh["XLA_FLAGS"].split()
    own = {
        "XLA_FLAGS": "--xla_dump_to=d --xla_gpu_enable_latency_hiding_scheduler=false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5",
    }
    added = settings("cuda", own)
    assert added["XLA_FLAGS"].startswith(own["XLA_FLAGS"] + " ") and added["XLA_FLAGS"].count("latency_hiding") == 1
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in added
    assert settings("cuda", own | added) == {}  # once


def test_huge_pages_on_request_and_never_over_the_users_own(tmp_path: Path) -> None:
    kernel = tmp_path / "enabled"
    assert platform_flags.cpu_settings({}, kernel) == {}  # another system
    kernel.write_text("always [madvise] never\n")
    assert platform_flags.cpu_settings({}, kernel) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    own = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
    added = platform_flags.cpu_settings(own, kernel)
    assert added == {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"}
    assert platform_flags.cpu_settings(added, kernel) == {}  # once: the program starts itself again with it
    assert platform_flags.cpu_settings({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, kernel) == {}
    assert platform_flags.cpu_settings({"OMNIHUMAN_CPU_FLAGS": "off"}, kernel) == {}
    kernel.write_text("[always] madvise never\n")
    assert platform_flags.cpu_settings({}, kernel) == {}  # there without asking


def test_a_restart_for_the_cpu_is_the_same_program_and_happens_once() -> None:
    code = (
        "import os, sys\nfrom omnihuman_jax.runtime import platform_flags\n"
        "platform_flags.cpu_settings = lambda env: {} if 'SEEN' in env else {'SEEN': '1'}\n"
        "platform_flags.restart_for_cpu()\nprint(sys.argv[1:], os.getpid())"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, "a b", "c"],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.communicate()[0].strip() == f"['a b', 'c'] {run.pid}"


HELD = """
import ctypes, sys
from omnihuman_jax.runtime import platform_flags
if sys.argv[1] == "mapped":
    platform_flags.map_large_buffers()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size = 8 << 20
libc.free(libc.malloc(2 * size))  # glibc learns that such buffers come and go
slices = []
for _ in range(20):
    slices.append(libc.malloc(size))
    libc.memset(slices[-1], 1, size)
small = libc.malloc(512 << 10)  # lives on behind them: too large for a hole before them
rss = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
before = rss()
for address in slices:
    libc.free(address)
print((before - rss()) / size)
"""


@pytest.mark.parametrize(("how", "given_back"), [("mapped", 20), ("left alone", 0)])
def test_freed_slices_go_back_to_the_system_whatever_lies_behind_them(how: str, given_back: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", HELD, how], env=environment, capture_output=True, text=True, check=True
    )
    assert abs(float(done.stdout) - given_back) < 1


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Modules that are there besides what is not asked for; none at first."""
    names: set[str] = set()
    monkeypatch.setattr(platform_flags, "_installed", names.__contains__)
    return names


def machine(root: Path, *devices: str, pci: Sequence[tuple[str, str]] = ()) -> Path:
    """A folder like `/` with devices and, on the PCI bus, (vendor, class)."""
    for device in devices:
        (root / "dev" / device).parent.mkdir(parents=True, exist_ok=True)
        (root / "dev" / device).touch()
    for index, (vendor, kind) in enumerate(pci):
        folder = root / f"sys/bus/pci/devices/0000:00:{index:02}.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    return root


def test_which_platform(tmp_path: Path, installed: set[str]) -> None:
    for asked, platform in {"cpu": "cpu", "cuda,cpu": "cuda", "gpu": "cuda", "tpu": "tpu"}.items():
        assert platform_flags.platform_of({"JAX_PLATFORMS": asked}, tmp_path) == platform
    gpu = machine(tmp_path / "gpu", "nvidiactl")
    tpu = machine(tmp_path / "tpu", "accel0")
    assert platform_flags.platform_of({}, gpu) == platform_flags.platform_of({}, tpu) == "cpu"  # nothing to drive them
    installed |= {"jax_cuda12_plugin", "libtpu"}
    assert platform_flags.platform_of({}, gpu) == "cuda"
    assert platform_flags.platform_of({}, tpu) == "tpu"
    assert platform_flags.platform_of({}, tmp_path / "none") == "cpu"  # drivers without a device


GOOGLES_DISK, GOOGLES_NETWORK = ("0x1ae0", "0x010802"), ("0x1ae0", "0x020000")


@pytest.mark.parametrize(
    ("environment", "devices", "pci"),
    [
        ({}, ["accel0"], []),  # v4 and older, v5e
        ({}, ["vfio/vfio", "vfio/0"], []),  # newer ones
        ({}, [], [("0x8086", "0x060000"), GOOGLES_NETWORK, ("0x1ae0", "0x120000")]),
        ({"TPU_WORKER_ID": "0"}, [], []),
        ({"JAX_FORCE_TPU_INIT": "1"}, [], []),
    ],
)
def test_a_machine_with_a_tpu_is_left_to_jax(
    environment: dict[str, str], devices: list[str], pci: list, tmp_path: Path, installed: set[str]
) -> None:
    installed.add("libtpu")
    assert platform_flags.apply(dict(environment), machine(tmp_path, *devices, pci=pci)) == {}


def test_a_tpus_driver_without_a_tpu_is_not_started(tmp_path: Path, installed: set[str]) -> None:
    root = machine(tmp_path, "vfio/vfio", pci=[("0x8086", "0x060000"), GOOGLES_NETWORK, GOOGLES_DISK])
    assert platform_flags.apply({}, root) == {}  # nothing that could be started
    installed.add("libtpu")
    assert platform_flags.apply({}, root) == {"JAX_PLATFORMS": "cpu"}
    for own in ("", "tpu", "cpu", "proxy,cpu"):
        assert platform_flags.apply({"JAX_PLATFORMS": own}, root) == {}
    installed.add("jax_plugins")
    assert platform_flags.apply({}, root) == {}  # what another plugin finds is not ours to say


@pytest.mark.parametrize(("before", "loaded"), [("platform_flags.apply(root=nowhere)", False), ("pass", True)])
def test_jax_loads_libtpu_only_where_it_may_find_a_tpu(before: str, loaded: bool, tmp_path: Path) -> None:
    """With the libtpu that the tests compile with; the second line is JAX alone, and what it would print."""
    code = (
        "from pathlib import Path\nfrom omnihuman_jax.runtime import platform_flags\n"
        f"nowhere = Path({str(tmp_path)!r})\n"
        f"{before}\nimport jax\njax.devices()\nprint('libtpu.so' in Path('/proc/self/maps').read_text())"
    )
    names = ("JAX_PLATFORMS", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in names} | {"TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(loaded)]
    assert loaded or done.stderr == ""


def test_xla_knows_every_flag() -> None:
    """XLA ends a process whose flags it does not know."""
    run = [sys.executable, "-c", "import jax; print(int(jax.jit(lambda x: x + 1)(1)))"]
    environment = os.environ | {"XLA_FLAGS": settings("cuda", {})["XLA_FLAGS"], "JAX_PLATFORMS": "cpu"}
    assert subprocess.run(run, env=environment, capture_output=True, text=True).stdout.strip() == "2"
    broken = environment | {"XLA_FLAGS": environment["XLA_FLAGS"] + " --xla_gpu_no_such_flag=true"}
    assert subprocess.run(run, env=broken, capture_output=True).returncode != 0


@pytest.mark.parametrize(
    ("tasks", "local", "visible", "expected"),
    [
        ("1(x4)", "0", "0,1,2,3,4,5,6,7", list(range(8))),  # one task a node: JAX alone would use one GPU of the eight
        ("8(x2)", "5", "0,1,2,3,4,5,6,7", [5]),
        ("2", "1", "0,1,2,3,4,5,6,7", [4, 5, 6, 7]),
        ("8(x2)", "5", "5", [0]),  # bound by SLURM
    ],
)
def test_gpus_of_a_slurm_task(tasks: str, local: str, visible: str, expected: list[int]) -> None:
    environment = {"SLURM_LOCALID": local, "SLURM_STEP_TASKS_PER_NODE": tasks, "CUDA_VISIBLE_DEVICES": visible}
    assert slurm_device_ids(environment) == expected
    assert slurm_device_ids(environment | {"JAX_LOCAL_DEVICE_IDS": "0"}) is None  # the user's word


def test_slurm_without_gpus_and_uneven_shares() -> None:
    assert slurm_device_ids({}) is None
    assert slurm_device_ids({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"}) is None
    with pytest.raises(
        ValueError, match=r"3 SLURM tasks on a node of 8 GPUs .*--ntasks-per-node=1 or --ntasks-per-node=8"
    ):
        slurm_device_ids(
            {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "3", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
        )
    with pytest.raises(ValueError, match="same with --ntasks-per-node"):
        slurm_device_ids({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "CUDA_VISIBLE_DEVICES": "0,1"})
