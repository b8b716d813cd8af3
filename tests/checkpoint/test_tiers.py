"""Two tiers on the devices of one process: what is kept, what is not believed, and what a full local disk costs."""

import json
import resource
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from omnihuman_jax import sharding
from omnihuman_jax.checkpoint.checkpoints import LOCAL, Checkpoints, open_checkpoints
from omnihuman_jax.checkpoint.record import DamagedError
from omnihuman_jax.checkpoint.writer import CheckpointConfig
from tests.checkpoint.test_writer import abstract, make_state, mesh, record

__all__ = ["mesh"]  # a fixture


def config(folder: Path, **changes: object) -> CheckpointConfig:
    return CheckpointConfig(interval=6, local_directory=str(folder / "disk"), local_interval=2, retries=0, **changes)  # type: ignore[arg-type]


def tiers(folder: Path, noted: list | None = None, **changes: object) -> Checkpoints:
    note = lambda kind, details: noted.append(kind) if noted is not None else None  # noqa: E731
    return open_checkpoints(folder / "checkpoints", config(folder, **changes), note)


def test_one_tier_unless_a_local_directory_is_set(tmp_path: Path) -> None:
    with open_checkpoints(tmp_path, CheckpointConfig(), lambda kind, details: None) as checkpoints:
        assert checkpoints.local is None and checkpoints.due(1000) == "interval" and not checkpoints.due(1001)
    with tiers(tmp_path) as checkpoints:
        assert checkpoints.local is not None
        assert [checkpoints.due(step) for step in range(1, 7)] == ["", LOCAL, "", LOCAL, "", "interval"]
        assert checkpoints.due(5, last=True) == "interval"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"local_directory": "/disk"}, r"local_directory '/disk' and local_interval 0: set both"),
        ({"local_interval": 5}, r"local_directory '' and local_interval 5: set both"),
        ({"local_directory": "/disk", "local_interval": 7, "interval": 30},
         r"7 must be below interval 30 and .* 5 or 6"),
        ({"local_directory": "/disk", "local_interval": 30, "interval": 30},
         r"local_interval 30 must be below interval 30 .*15"),
        ({"local_directory": "gs://bucket/x", "local_interval": 10},
         r"'gs://bucket/x' must be a folder on each host's own disk"),
        ({"local_directory": "/disk", "local_interval": 10, "local_keep": 0}, r"local_keep 0 >= 1"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CheckpointConfig(**fields).validate()
    CheckpointConfig(local_directory="/disk", local_interval=100).validate()


def test_the_newest_of_both_and_only_of_this_run(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    with tiers(tmp_path) as checkpoints:
        checkpoints.save(make_state(mesh, 6), record(6))
        for step in (8, 10):
            checkpoints.save(make_state(mesh, step), record(step), LOCAL)
        assert checkpoints.take_stall() > 0
    (held,) = (tmp_path / "disk").glob("*/0/*")  # one is kept
    assert held.name == "10"
    state = make_state(mesh, 10)
    with tiers(tmp_path) as checkpoints:
        assert checkpoints.choose(abstract(state)) == 10 and checkpoints.record(10) == record(10)
        restored = checkpoints.restore(10, abstract(state))
        for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
            assert ours.sharding == theirs.sharding and np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
        # Steps that went wrong: back to a checkpoint, and the copies after it are of no use any more.
        assert checkpoints.choose(abstract(state), 9) == 6
        checkpoints.roll_back(9)
    assert not list((tmp_path / "disk").glob("*/0/*"))
    with tiers(tmp_path) as checkpoints:
        checkpoints.save(make_state(mesh, 8), record(8), LOCAL)
    other = tmp_path / "other"
    other.mkdir()
    (other / "disk").symlink_to(tmp_path / "disk")
    with tiers(other) as checkpoints:
        assert checkpoints.choose(abstract(state)) is None
    assert list((tmp_path / "disk").glob("*/0/8"))


def test_another_mesh_takes_the_checkpoint(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    with tiers(tmp_path) as checkpoints:
        checkpoints.save(make_state(mesh, 6), record(6))
        checkpoints.save(make_state(mesh, 8), record(8), LOCAL)
    noted: list[str] = []
    wide = make_state(sharding.create_mesh(sharding.MeshConfig(data=4, fsdp=2)), 6)
    with tiers(tmp_path, noted) as checkpoints:
        assert checkpoints.choose(abstract(wide)) == 6
        assert np.array_equal(checkpoints.restore(6, abstract(wide)).params["b"], wide.params["b"])
    assert noted == ["local_copy_lost"]


def test_a_copy_whose_checksums_were_made_to_fit_is_found_by_its_fingerprint(
    tmp_path: Path, mesh: jax.sharding.Mesh
) -> None:
    with tiers(tmp_path) as checkpoints:
        checkpoints.save(make_state(mesh, 8), record(8), LOCAL)
    (index,) = (tmp_path / "disk").glob("*/0/8/index.json")
    stored = json.loads(index.read_text())
    name = next(iter(stored["sums"]))
    stored["sums"][name] ^= 1
    index.write_text(json.dumps(stored))
    noted: list[str] = []
    with tiers(tmp_path, noted) as checkpoints:
        shapes = abstract(make_state(mesh, 8))
        if checkpoints.choose(shapes) == 8:  # the manifest knows sizes, and the number may have got no longer
            with pytest.raises(DamagedError, match=rf"local copy of step 8 has changed .*{name} is the first"):
                checkpoints.restore(8, shapes)
            checkpoints.reject(8, "a bit")
        assert checkpoints.choose(shapes) is None
    assert noted


def test_a_full_local_disk_costs_a_copy_and_no_more(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    noted: list[str] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tiers(tmp_path, noted) as checkpoints:
        checkpoints.save(make_state(mesh, 2, width=1 << 14), record(2), LOCAL)
        checkpoints.close()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
            checkpoints.save(make_state(mesh, 4, width=1 << 14), record(4), LOCAL)
            checkpoints.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert noted == ["local_save_failed"] and checkpoints.failed_saves == 0
        (held,) = (path for path in (tmp_path / "disk").glob("*/0/*") if path.name.isdigit())
        assert held.name == "2" and not list((tmp_path / "disk").glob("*/0/*tmp*"))
        checkpoints.save(make_state(mesh, 6, width=1 << 14), record(6), LOCAL)
    (held,) = (path for path in (tmp_path / "disk").glob("*/0/*") if path.name.isdigit())
    assert held.name == "6"


def test_a_copy_is_not_touched_by_the_steps_that_go_on(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 3 + 1, state), donate_argnums=0)
    state = make_state(mesh, 2, width=1 << 14)
    before = jax.tree.map(lambda leaf: np.array(leaf), state)
    with tiers(tmp_path) as checkpoints:
        checkpoints.save(state, record(2), LOCAL)
        shapes = abstract(state)
        for _ in range(10):  # donates the very buffers that are being written
            state = step(state)
        jax.block_until_ready(state)
    with tiers(tmp_path) as checkpoints:
        assert checkpoints.choose(shapes) == 2
        restored = checkpoints.restore(2, shapes)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(before), strict=True):
        assert np.asarray(ours).tobytes() == theirs.tobytes()


def test_a_disk_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("")
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"local_directory .*disk cannot be written to: process 0: "):
        tiers(tmp_path)
    assert time.monotonic() - begin < 5
