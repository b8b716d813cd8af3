"""A run goes on with other devices: the state bit for bit, the same windows, the same losses to rounding."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from omnihuman_jax import assembly
from omnihuman_jax.checkpoint.parts import flatten, parts_of
from omnihuman_jax.checkpoint.reader import CheckpointReader
from omnihuman_jax.config import read_config
from omnihuman_jax.sharding import MESH_AXES, MeshConfig
from omnihuman_jax.training import train_state
from tests.training import runs

FIRST, STEPS = 4, 24
OPTIONS = (
    f"--config.stages.rows[1].steps={STEPS - 5}",
    f"--config.checkpoint.interval={FIRST}",
    "--config.checkpoint.keep=9",
)
# name: devices of each process, processes, ways of data, fsdp, context and tensor, micro batches
MESHES = {
    "fsdp alone": (4, 1, (1, 4, 1, 1), 1),
    "context and tensor": (4, 1, (1, 1, 2, 2), 1),
    "half the devices, in two parts": (2, 1, (1, 2, 1, 1), 2),
    "one device, in four parts": (1, 1, (1, 1, 1, 1), 4),
    "two processes": (2, 2, (2, 2, 1, 1), 1),
}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the run on data 2 x fsdp 2, its dataset)."""
    folder = tmp_path_factory.mktemp("elastic")
    dataset = runs.write_dataset(folder / "dataset")
    runs.train(folder / "run", dataset, *OPTIONS)
    return folder / "run", dataset


@pytest.mark.slow
@pytest.mark.parametrize(
    "ways", [(8, 1, 1, 1), (1, 4, 2, 1), (2, 2, 1, 2), (1, 2, 2, 2)], ids=lambda ways: "x".join(map(str, ways))
)
def test_the_restored_state_is_the_saved_one(straight: tuple[Path, Path], ways: tuple[int, int, int, int]) -> None:
    assert_restored(straight[0], MeshConfig(**dict(zip(MESH_AXES, ways, strict=True))))


def assert_restored(run: Path, mesh: MeshConfig) -> None:
    """The state of step `FIRST`, restored on this process's eight devices, is what was saved, placed as the mesh
    says.
    """
    config = read_config(run)
    config.mesh, config.data.plan.sequences_per_step = mesh, 8
    parts = assembly.assemble(config)
    abstract = train_state.abstract_train_state(config.model, parts.optimizer, parts.state_shardings)
    with jax.set_mesh(parts.mesh), CheckpointReader(run / "checkpoints") as checkpoints:
        state = checkpoints.restore(FIRST, abstract)
    assert train_state.misplaced_leaves(state, parts.state_shardings) == []
    stored, flat = runs.checkpoint(run, FIRST), flatten(parts_of(state))
    assert flat.keys() == stored.keys() and {name.split("/")[0] for name in flat} == {
        "params",
        "ema",
        "optimizer",
        "progress",
    }
    for name, leaf in flat.items():
        assert leaf.dtype == stored[name].dtype and np.asarray(leaf).tobytes() == stored[name].tobytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_the_next_20_losses(
    straight: tuple[Path, Path], tmp_path: Path, name: str, measured: Callable[[str, float, float], None]
) -> None:
    run, dataset = straight
    devices, processes, ways, parts = MESHES[name]
    begin_as(run, tmp_path)
    options = [*OPTIONS, f"--config.step.micro_batches={parts}"]
    options += [f"--config.mesh.{axis}={number}" for axis, number in zip(MESH_AXES, ways, strict=True)]
    runs.train(tmp_path, dataset, *options, processes=processes, devices=devices)
    for difference in differences(tmp_path, run):
        measured("loss of the next 20 steps, continued on other devices", difference, TOLERANCE)
    mine, other = runs.checkpoint(tmp_path, STEPS), runs.checkpoint(run, STEPS)
    windows = "progress/counters/stage_windows"
    assert np.array_equal(mine[windows], other[windows])  # the very same windows


def begin_as(run: Path, other: Path) -> None:
    """`other` has trained and saved `FIRST` steps of `run`."""
    (other / "checkpoints").mkdir(parents=True)
    for file in ("config.json", "metrics.jsonl"):
        shutil.copy(run / file, other / file)
    shutil.copytree(run / "checkpoints" / str(FIRST), other / "checkpoints" / str(FIRST))


def differences(run: Path, straight: Path) -> list[float]:
    """Of the losses after step `FIRST`, relative; before it nothing may differ."""
    ours, theirs = runs.records(run), runs.records(straight)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    assert ours[:FIRST] == theirs[:FIRST]
    return [abs(mine["loss"] / other["loss"] - 1) for mine, other in zip(ours[FIRST:], theirs[FIRST:], strict=True)]


# Slices -> their mesh: four devices each, the state whole in every slice.
SLICES = {1: MeshConfig(slices=1, data=2, fsdp=2), 2: MeshConfig(slices=2, data=2, fsdp=2, dcn_data=2)}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)], ids=["2 to 1", "1 to 2"])
def test_another_number_of_slices(
    tmp_path: Path, before: int, after: int, measured: Callable[[str, float, float], None]
) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    straight, run = tmp_path / "straight", tmp_path / "run"
    options = {
        number: [
            *OPTIONS, "--config.data.plan.sequences_per_step=8",
            *(f"--config.mesh.{field}={getattr(mesh, field)}" for field in ("slices", "data", "fsdp", "dcn_data")),
        ]
        for number, mesh in SLICES.items()
    }  # fmt: skip
    runs.train(straight, dataset, *options[before], devices=4 * before)
    begin_as(straight, run)
    runs.train(run, dataset, *options[after], devices=4 * after)
    for difference in differences(run, straight):
        measured("loss of the next 20 steps, continued on another number of slices", difference, TOLERANCE)
    mine, other = runs.checkpoint(run, STEPS), runs.checkpoint(straight, STEPS)
    windows = "progress/counters/stage_windows"
    assert np.array_equal(mine[windows], other[windows])  # the very same windows
    # Eight devices here: of two slices, or of a larger one.
    assert_restored(straight, SLICES[2] if after == 2 else MeshConfig(slices=1, data=4, fsdp=2))
