"""The trainer's image, built for real and started as its user: `make image`, or `pytest --slow=image`.

Ten minutes and 10 GB of disk; buildah, debootstrap and root. What it proves is the Dockerfile: the packages, the user,
what is and is not inside. The base image is a stand-in (`builder.py`), and nothing here is a TPU.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from omnihuman_jax.telemetry.metrics import read_metrics
from tests.image import builder
from tests.launch.specs import ROOT
from tests.training import runs

pytestmark = pytest.mark.image
USER = 1000
STEPS = 3


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[builder.Image]:
    if reason := builder.missing():
        pytest.fail(f"no image can be built here: {reason}")
    folder = tmp_path_factory.mktemp("image")
    yield builder.build(folder)
    shutil.rmtree(folder)


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def test_what_a_runtime_reads(image: builder.Image) -> None:
    config = image.config()
    assert config["User"] == f"{USER}:{USER}" and config["WorkingDir"] == "/app"
    assert not config.get("Entrypoint") and config["Cmd"] == ["python", "-m", "omnihuman_jax.cli", "--help"]
    assert image.run(*config["Cmd"]).startswith("usage: omnihuman")


def test_its_user_can_change_nothing_of_it(image: builder.Image) -> None:
    look = (
        "import os; print(os.getuid(), os.getgid(), os.environ['HOME']);"
        "print([p for p in ('/', '/app', '/app/configs', '/opt/venv', '/opt/venv/bin/python', '/usr/local/bin')"
        " if os.access(p, os.W_OK)]); open('/tmp/x', 'w')"
    )
    assert image.run("python", "-c", look).splitlines() == [f"{USER} {USER} /tmp", "[]"]


def test_every_package_has_the_pinned_version(image: builder.Image) -> None:
    """And neither PyTorch nor curation's networks, nor what only plans and tests need."""
    listing = "import json, importlib.metadata as m; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    found = json.loads(image.run("python", "-c", listing))
    pinned = pins("constraints/py312.txt") | pins("launch/docker/constraints-tpu.txt")
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    other = {
        name: (version, pinned.get(name.lower().replace("_", "-").replace(".", "-"), pinned.get(name.lower())))
        for name, version in found.items()
        if name not in ("omnihuman-jax", "pip")
    }
    assert {name: pair for name, pair in other.items() if pair[0] != pair[1]} == {}
    assert {"jax", "libtpu", "gcsfs", "s3fs", "omnihuman-jax"} <= set(found)
    assert not {"torch", "mediapipe", "opencv-python-headless", "onnxruntime", "pytest", "ray"} & set(found)


def test_what_launchers_start_is_there(image: builder.Image) -> None:
    image.run("python", "-c", "import launch.supervise, launch.raise_memlock, launch.nccl_environment, gcsfs, s3fs")
    examples = [yaml.safe_load(path.read_text()) for path in (ROOT / "launch" / "examples").glob("*.yaml")]
    configs = {str(example["config"]).partition(":")[0] for example in examples}
    assert configs
    image.run("python", "-c", f"import pathlib; assert all(pathlib.Path(p).is_file() for p in {sorted(configs)})")


def test_it_trains_as_its_user(image: builder.Image, tmp_path: Path) -> None:
    """On the CPU: data set read-only, run folder a volume that the user owns, a checkpoint at the end."""
    dataset, volume = runs.write_dataset(tmp_path / "dataset"), tmp_path / "runs"
    volume.mkdir()
    os.chown(volume, USER, USER)
    for path in dataset.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # of another user
    words = [
        "-m",
        "omnihuman_jax.cli",
        "--simulate-devices",
        str(runs.DEVICES),
        "train",
        "--run=/runs/tiny",
        f"--stop-after={STEPS}",
    ]
    words += [f"--config=/proof/{runs.CONFIG.relative_to(ROOT)}", "--config.data.dataset=/data"]
    mounts = {"/data": (dataset, "ro"), "/runs": (volume, "rw"), "/proof/tests": (ROOT / "tests", "ro")}
    supervised = ("python", "-m", "launch.supervise", "--restarts", "0", "--", *words)
    image.run(*supervised, mounts=mounts, JAX_PLATFORMS="cpu", PYTHONPATH="/proof")
    assert len(read_metrics(volume / "tiny")) >= 1
    checkpoints = volume / "tiny" / "checkpoints"
    assert (checkpoints / str(STEPS)).is_dir() and checkpoints.stat().st_uid == USER
