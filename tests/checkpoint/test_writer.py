"""Checkpoints of a handful of arrays on eight devices: whole, exact, sharded as asked, and loud when something is
wrong.
"""

import errno
import itertools
import json
import os
import resource
import shutil
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from omnihuman_jax import sharding
from omnihuman_jax.checkpoint import manifest
from omnihuman_jax.checkpoint.checkpoints import open_checkpoints
from omnihuman_jax.checkpoint.folder import checkpoint_directory
from omnihuman_jax.checkpoint.reader import CheckpointReader, load_weights
from omnihuman_jax.checkpoint.record import CheckpointError, DamagedError, RunRecord
from omnihuman_jax.checkpoint.writer import CheckpointConfig
from omnihuman_jax.runtime import exit_codes, processes, storage
from omnihuman_jax.runtime.processes import RunEnded
from omnihuman_jax.training.train_state import Counters, TrainState

CONFIG = {"seed": 3, "model": {"width": 16}, "stages": {"rows": [{"name": "a", "steps": 2}]}}


STEP = 1  # after which no save is due


def record(step: int) -> RunRecord:
    return RunRecord(config=CONFIG, fingerprint="0123", step=step)


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return sharding.create_mesh(sharding.MeshConfig(data=2, fsdp=4))


def make_state(mesh: jax.sharding.Mesh, step: int = 1, width: int = 16) -> TrainState:
    optimizer = optax.partition(
        dict.fromkeys(("base", "audio"), optax.scale_by_adam()), {"a": {"kernel": "base"}, "b": "audio"}
    )

    def place(leaf: np.ndarray | jax.Array) -> jax.Array:
        split = PartitionSpec("fsdp") if leaf.ndim else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, split))

    rng = np.random.default_rng(step)
    params = {"a": {"kernel": rng.standard_normal((width, 3), np.float32)}, "b": rng.standard_normal(8, np.float32)}
    moments = jax.tree.map(lambda leaf: leaf + 1, optimizer.init(params))
    counters = jax.tree.map(lambda leaf: leaf + 5, Counters.zeros())
    ema = jax.tree.map(lambda leaf: leaf * 2, params)
    return jax.tree.map(
        place, TrainState(params=params, opt_state=moments, ema=ema, step=jnp.int32(step), counters=counters)
    )


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def saved(folder: Path, mesh: jax.sharding.Mesh, *steps: int, width: int = 16) -> Path:
    with open_checkpoints(folder, CheckpointConfig(keep=9)) as checkpoints:
        for step in steps:
            checkpoints.save(make_state(mesh, step, width), record(step))
    return folder


def test_everything_comes_back_bit_for_bit_where_it_was(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    folder = saved(tmp_path / "c", mesh, 4, 7)
    state = make_state(mesh, 7)
    with CheckpointReader(folder) as checkpoints:
        assert checkpoints.steps == [4, 7] and checkpoints.latest_step == 7
        assert checkpoints.record(7) == record(7)
        restored = checkpoints.restore(7, abstract(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert ours.dtype == theirs.dtype and ours.sharding == theirs.sharding
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_save_in_progress_is_not_touched_by_the_steps_that_go_on(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 3 + 1, state), donate_argnums=0)
    state = make_state(mesh, 2, width=1 << 16)
    before = jax.device_get(jax.tree.map(jnp.copy, state))
    with open_checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(state, record(2))
        shapes = abstract(state)
        for _ in range(20):  # donates the very buffers that are being written
            state = step(state)
        jax.block_until_ready(state)
        checkpoints.wait()
        restored = checkpoints.restore(2, shapes)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(before), strict=True):
        assert np.array_equal(np.asarray(ours), theirs)


def test_a_run_says_where_its_checkpoints_lie(tmp_path: Path) -> None:
    assert checkpoint_directory(tmp_path) == tmp_path / "checkpoints"
    for directory, expected in (("", tmp_path / "checkpoints"), ("gs://bucket/run", "gs://bucket/run")):
        (tmp_path / "config.json").write_text(json.dumps({"checkpoint": {"interval": 3, "directory": directory}}))
        assert checkpoint_directory(tmp_path) == expected


def test_weights_alone_on_another_placement(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    folder = saved(tmp_path / "c", mesh, 1)
    state = make_state(mesh, 1)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), state.params)
    for weights, expected in (("ema", state.ema), ("raw", state.params)):
        found, run = load_weights(folder, shapes, weights=weights)
        assert run == record(1)
        assert np.array_equal(found["a"]["kernel"], expected["a"]["kernel"]) and found["b"].sharding == one
    found, _ = load_weights(folder, lambda run: shapes if run.config["seed"] == 3 else None)
    assert np.array_equal(found["b"], state.ema["b"])


def test_old_checkpoints_make_room(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    with open_checkpoints(tmp_path, CheckpointConfig(keep=2, keep_every=10)) as checkpoints:
        for step in (10, 11, 12, 13):
            checkpoints.save(make_state(mesh, step), record(step))
        checkpoints.wait()
    with CheckpointReader(tmp_path) as checkpoints:
        assert checkpoints.steps == [10, 12, 13]


def test_one_from_before_the_steps_that_may_go_wrong_in_a_row_stays(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    with open_checkpoints(tmp_path, CheckpointConfig(keep=1), reach=5) as checkpoints:
        for step in (1, 3, 7, 8, 9):
            checkpoints.save(make_state(mesh, step), record(step))
            checkpoints.wait()
    with CheckpointReader(tmp_path) as checkpoints:
        assert checkpoints.steps == [3, 7, 9]


def test_a_save_is_good_though_older_ones_cannot_be_removed(
    tmp_path: Path, mesh: jax.sharding.Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    noted = []
    with open_checkpoints(tmp_path, CheckpointConfig(keep=1), lambda kind, details: noted.append(kind)) as checkpoints:
        checkpoints.save(make_state(mesh, 1), record(1))
        assert checkpoints.wait()
        looks = itertools.count()

        def fails(folder: epath.Path) -> bool:
            if folder.name == "1" and next(looks) == 0:
                raise OSError(errno.EIO, "Input/output error")
            return complete(folder)

        complete = manifest.is_complete
        monkeypatch.setattr(manifest, "is_complete", fails)
        checkpoints.save(make_state(mesh, 2), record(2))
        assert checkpoints.wait() and checkpoints.failed_saves == 0 and checkpoints.reader.steps == [1, 2]
        assert noted == ["saved", "saved", "older_checkpoints_stay"] and "no room could be made" in caplog.text
        checkpoints.save(make_state(mesh, 3), record(3))
        assert checkpoints.wait() and checkpoints.reader.steps == [3]


def test_a_checkpoint_with_the_manifest_of_an_earlier_version_is_read(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    folder = saved(tmp_path, mesh, 1)
    (folder / "1" / "manifest.json").rename(folder / "1" / "seal.json")
    with open_checkpoints(folder, CheckpointConfig()) as checkpoints:
        assert checkpoints.choose() == 1


def test_a_half_written_step_is_not_a_checkpoint(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    folder = saved(tmp_path / "c", mesh, 1)
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp")
    with open_checkpoints(folder, CheckpointConfig()) as checkpoints:
        assert checkpoints.reader.steps == [1]
        checkpoints.save(make_state(mesh, 2), record(2))
        checkpoints.wait()
        assert checkpoints.reader.latest_step == 2
    assert not (folder / "2.orbax-checkpoint-tmp").exists()


@pytest.mark.parametrize("part", ["params", "optimizer", "ema", "progress"])
def test_a_damaged_part_is_an_error_that_names_the_folder_and_the_cure(
    tmp_path: Path, mesh: jax.sharding.Mesh, part: str
) -> None:
    folder = saved(tmp_path / "c", mesh, 1)
    for data in (folder / "1" / part).rglob("d/*"):
        data.write_bytes(data.read_bytes()[:3])
    with (
        CheckpointReader(folder) as checkpoints,
        pytest.raises(CheckpointError, match=r"c/1 .*remove that folder") as error,
    ):
        checkpoints.restore(1, abstract(make_state(mesh)))
    assert "\n" not in str(error.value)


def test_a_missing_part_and_a_missing_record(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    with open_checkpoints(tmp_path / "weights", CheckpointConfig()) as checkpoints:
        checkpoints.writer.save_weights(make_state(mesh).params, record(0))
    with (
        CheckpointReader(tmp_path / "weights") as checkpoints,
        pytest.raises(CheckpointError, match="weights/0 lacks optimizer"),
    ):
        checkpoints.restore_part(0, "optimizer", {"count": jax.ShapeDtypeStruct((), jnp.int32)})
    folder = saved(tmp_path / "c", mesh, 1)
    shutil.rmtree(folder / "1" / "ema")
    with (
        CheckpointReader(folder) as checkpoints,
        pytest.raises(CheckpointError, match=r"c/1 is damaged: ema/.* is missing"),
    ):
        checkpoints.record(1)
    metadata = folder / "1" / "_CHECKPOINT_METADATA"
    content = json.loads(metadata.read_text())
    content["custom_metadata"] = {}
    metadata.write_text(json.dumps(content))
    manifest.write(epath.Path(folder / "1"))
    with CheckpointReader(folder) as checkpoints, pytest.raises(CheckpointError, match="no readable record of its run"):
        checkpoints.record(1)


def test_another_model_is_told_leaf_by_leaf(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    folder = saved(tmp_path / "c", mesh, 1)
    with (
        CheckpointReader(folder) as checkpoints,
        pytest.raises(CheckpointError, match=r"params/a/kernel is float32\[16, 3\], wanted float32\[32, 3\]"),
    ):
        checkpoints.restore(1, abstract(make_state(mesh, width=32)))
    shapes = {
        "a": {"kernel": jax.ShapeDtypeStruct((16, 3), jnp.float32), "gate": jax.ShapeDtypeStruct((1,), jnp.float32)}
    }
    with pytest.raises(CheckpointError, match="ema/a/gate is missing; ema/b is unknown"):
        load_weights(folder, shapes)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give the run directory"):
        load_weights(tmp_path / "nowhere", {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        load_weights(tmp_path / "empty", {})
    with pytest.raises(ValueError, match="choose ema or raw"):
        load_weights(tmp_path / "empty", {}, weights="best")
    with pytest.raises(ValueError, match="interval 0"):
        CheckpointConfig(interval=0).validate()


def flip(folder: Path, part: str) -> None:
    """One bit, in the largest data file of a part."""
    file = max((folder / part).rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("part", ["params", "optimizer", "ema"])
def test_a_flipped_bit_is_found_and_the_step_before_is_taken(
    tmp_path: Path, mesh: jax.sharding.Mesh, part: str
) -> None:
    noted = []
    folder = saved(tmp_path / "c", mesh, 1, 2, width=1 << 12)
    flip(folder / "2", part)
    with open_checkpoints(folder, CheckpointConfig(), lambda *incident: noted.append(incident)) as checkpoints:
        assert checkpoints.choose() == 2  # its size is as it was
        with pytest.raises(DamagedError, match=rf"c/2 .*({part}/.* is the first|.*cannot be read)"):
            checkpoints.restore(2, abstract(make_state(mesh, 2, width=1 << 12)))
        checkpoints.reject(2, "a bit")
        assert checkpoints.choose() == 1 and (folder / "damaged" / "2-1" / "params").is_dir()
        checkpoints.restore(1, abstract(make_state(mesh, 1, width=1 << 12)))
    assert [kind for kind, _ in noted] == ["checkpoint_rejected"]


def test_files_that_are_gone_cut_short_or_were_never_finished(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    folder = saved(tmp_path / "c", mesh, 1, 2, 3, 4)
    next((folder / "4" / "params").rglob("d/*")).unlink()
    next((folder / "3" / "ema").rglob("d/*")).write_bytes(b"")
    (folder / "2" / "manifest.json").unlink()  # killed between commit and manifest
    noted = []
    with open_checkpoints(
        folder, CheckpointConfig(), lambda kind, details: noted.append(details["reason"])
    ) as checkpoints:
        assert checkpoints.reader.steps == [1, 3, 4]
        assert checkpoints.choose() == 1
    assert len(noted) == 3
    for reason, expected in zip(noted, ("is missing", "has 0 bytes", "no manifest"), strict=True):
        assert expected in reason
    with CheckpointReader(folder) as checkpoints:
        assert checkpoints.steps == [1]


def test_a_full_disk_costs_a_checkpoint_and_no_more(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    """A file-size limit stands in for a full disk: the same error at the same call, without root."""
    folder = saved(tmp_path / "c", mesh, 1, width=1 << 16)
    noted = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_checkpoints(
        folder, CheckpointConfig(keep=1), lambda kind, details: noted.append((kind, details.get("step")))
    ) as checkpoints:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
            checkpoints.save(make_state(mesh, 2, width=1 << 16), record(2))
            assert not checkpoints.wait() and checkpoints.failed_saves == 1
            checkpoints.save(make_state(mesh, 3, width=1 << 16), record(3))
            assert not checkpoints.wait() and checkpoints.failed_saves == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not checkpoints.due(STEP)  # there is no room: it is the next interval's
        assert checkpoints.reader.steps == [1]
        assert sorted(path.name for path in folder.iterdir()) == ["1", storage.IDENTITY]
        checkpoints.save(make_state(mesh, 4, width=1 << 16), record(4))
        assert checkpoints.wait() and checkpoints.failed_saves == 0
    assert noted == [("save_failed", 2), ("save_failed", 3), ("saved", 4)]
    with CheckpointReader(folder) as checkpoints:
        assert checkpoints.steps == [4]
        checkpoints.restore(4, abstract(make_state(mesh, 4, width=1 << 16)))


def test_readers_look_at_manifest_and_fingerprint(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    folder = saved(tmp_path / "c", mesh, 1, width=1 << 12)
    shapes = abstract(make_state(mesh, 1, width=1 << 12)).params
    load_weights(folder, shapes)
    flip(folder / "1", "ema")
    with pytest.raises(CheckpointError, match=r"c/1 (has changed since it was written: .*ema/a/kernel|cannot be read)"):
        load_weights(folder, shapes)
    load_weights(folder, shapes, weights="raw")
    (folder / "1" / "progress" / "_METADATA").unlink()
    with pytest.raises(CheckpointError, match="c/1 is damaged: progress/_METADATA is missing"):
        load_weights(folder, shapes, weights="raw")


QUICK = CheckpointConfig(keep=9, retries=2, retry_delay_s=0.2)


def take_away(folder: Path, how: str) -> None:
    """The folder, as a mount that vanishes leaves it: no folder, an empty one, or something that is none."""
    folder.rename(folder.with_name("away"))
    if how == "empty":
        folder.mkdir()
    if how == "a file":
        folder.write_text("")


def bring_back(folder: Path) -> None:
    if folder.is_dir():
        folder.rmdir()
    folder.unlink(missing_ok=True)
    folder.with_name("away").rename(folder)


WAYS = ("not there", "empty", "a file")


@pytest.mark.parametrize("how", WAYS[1:])
def test_a_save_that_storage_did_not_take_is_made_again_of_a_later_step(
    tmp_path: Path, mesh: jax.sharding.Mesh, how: str
) -> None:
    folder, noted = saved(tmp_path / "c", mesh, 1), []
    with open_checkpoints(folder, QUICK, lambda kind, details: noted.append((kind, details["step"]))) as checkpoints:
        take_away(folder, how)
        checkpoints.save(make_state(mesh, 2), record(2))
        assert checkpoints.failed_saves == 1 and not checkpoints.writer.disk_is_full
        assert not checkpoints.due(STEP)  # the pause is not over
        time.sleep(0.25)
        assert checkpoints.due(STEP) == "again"
        checkpoints.save(make_state(mesh, 3), record(3), "again")
        assert checkpoints.failed_saves == 1  # a try is no other save
        bring_back(folder)
        time.sleep(0.25)
        assert not checkpoints.due(STEP)  # the second pause is twice as long
        time.sleep(0.2)
        assert checkpoints.due(STEP) == "again"
        checkpoints.save(make_state(mesh, 5), record(5), "again")
        assert checkpoints.due(STEP) != "again"  # being written, or written
        assert checkpoints.wait() and not checkpoints.due(STEP) and checkpoints.reader.steps == [1, 5]
        checkpoints.restore(5, abstract(make_state(mesh)))
    assert noted == [("save_failed", 2), ("save_failed", 3), ("saved", 5)]


def test_a_save_that_fails_while_it_is_written_is_noticed_at_the_next_step(
    tmp_path: Path, mesh: jax.sharding.Mesh
) -> None:
    folder = saved(tmp_path / "c", mesh, 1)
    with open_checkpoints(folder, QUICK) as checkpoints:
        checkpoints.save(make_state(mesh, 2), record(2))
        take_away(folder, "not there")
        while checkpoints.failed_saves == 0:
            assert not checkpoints.due(STEP)
            time.sleep(0.01)
        assert not folder.exists() or list(folder.iterdir()) == []  # nor was anything left below the mount
        bring_back(folder)
        assert not checkpoints.wait() and checkpoints.finish(make_state(mesh, 3), record(3))
        assert checkpoints.reader.latest_step == 3


def test_the_last_save_is_tried_again_and_then_given_up(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    folder = saved(tmp_path / "c", mesh, 1)
    with open_checkpoints(folder, QUICK) as checkpoints:
        take_away(folder, "not there")
        threading.Timer(0.4, bring_back, [folder]).start()
        checkpoints.save(make_state(mesh, 2), record(2))
        assert checkpoints.finish(make_state(mesh, 2), record(2)) and checkpoints.reader.steps == [1, 2]
        take_away(folder, "empty")
        begin = time.monotonic()
        checkpoints.save(make_state(mesh, 3), record(3))
        assert not checkpoints.finish(make_state(mesh, 3), record(3))
        assert 0.6 <= time.monotonic() - begin < 5 and not checkpoints.is_hopeless
        for step in range(4, 8):  # scheduled ones, each with its tries ahead
            checkpoints.save(make_state(mesh, step), record(step))
        assert checkpoints.failed_saves == 5 and checkpoints.is_hopeless
        assert list(folder.iterdir()) == []  # nothing was written below the mount


def test_what_was_said_of_a_save_is_no_word_about_its_next_try(
    tmp_path: Path, mesh: jax.sharding.Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notes as several processes leave them: nobody deletes one, and the last step of a run is saved again under its
    number.
    """
    notes: dict[str, dict[str, str]] = {}
    monkeypatch.setattr(processes, "post", lambda key, value: notes.update({key: {"1": value}}))
    monkeypatch.setattr(processes, "posted", lambda key: notes.get(key, {}))
    write, calls = manifest.write, itertools.count()

    def slow(folder: epath.Path) -> int:
        if next(calls) == 0:
            raise OSError(errno.EIO, "Input/output error")
        time.sleep(0.5)  # longer than `wait` goes without a look at the notes
        return write(folder)

    monkeypatch.setattr(manifest, "write", slow)
    with open_checkpoints(tmp_path, QUICK) as checkpoints:
        checkpoints.save(make_state(mesh, 2), record(2))
        assert checkpoints.finish(make_state(mesh, 2), record(2)) and next(calls) == 2
        assert checkpoints.reader.steps == [2] and len(notes) == 1


def test_reading_waits_for_storage_and_then_leaves_for_a_restart(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    folder = saved(tmp_path / "c", mesh, 1, 2)
    with open_checkpoints(folder, QUICK) as checkpoints:
        reads = (
            checkpoints.choose,
            lambda: checkpoints.record(2),
            lambda: checkpoints.restore(2, abstract(make_state(mesh, 2))),
        )
        for read, how in zip(reads, WAYS, strict=True):
            take_away(folder, how)
            back = threading.Timer(0.1, bring_back, [folder])
            back.start()
            assert read() is not None
            back.join()
        take_away(folder, "empty")
        for read in reads[::2]:
            with pytest.raises(RunEnded, match="storage did not answer in 3 tries") as ended:
                read()
            assert ended.value.exit_code == exit_codes.RETRY and not ended.value.alone
        bring_back(folder)
        assert checkpoints.choose() == 2 and not (folder / "damaged").exists()  # nothing is to blame


@pytest.mark.parametrize("how", WAYS[1:])
def test_a_run_that_has_saved_does_not_begin_anew_because_its_folder_is_gone(
    tmp_path: Path, mesh: jax.sharding.Mesh, how: str
) -> None:
    folder = saved(tmp_path / "c", mesh, 1)
    take_away(folder, how)
    with pytest.raises(RunEnded, match=r"c.*did not answer in 3 tries: .*has saved step 1|Not a directory") as ended:
        open_checkpoints(folder, QUICK, expected="has saved step 1")
    assert ended.value.exit_code == exit_codes.RETRY
    back = threading.Timer(0.3, bring_back, [folder])
    back.start()
    with open_checkpoints(folder, QUICK, expected="has saved step 1") as checkpoints:
        back.join()
        assert checkpoints.choose() == 1


def test_a_first_start_makes_its_folder_or_says_why_not(tmp_path: Path) -> None:
    with open_checkpoints(tmp_path / "a" / "b", QUICK) as checkpoints:
        assert checkpoints.choose() is None
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(CheckpointError, match=rf"cannot be written to {directory}: "):
            open_checkpoints(directory, QUICK)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_errors_of_the_way_to_the_storage_are_told_from_those_of_the_bytes(number: int) -> None:
    outer = ValueError("Failed to load checkpointable: state due to incompatible handler")
    outer.__cause__ = OSError(number, os.strerror(number))
    assert storage.does_not_answer(outer)
    refused = ValueError("try again")
    refused.code = 503  # type: ignore[attr-defined]
    assert storage.does_not_answer(refused)
    assert storage.does_not_answer(ValueError("UNAVAILABLE: Error reading gs://bucket/run/5/d/0"))
    for error in (
        ValueError("DATA_LOSS: checksum"),
        OSError(errno.ENOSPC, "No space left on device"),
        FileNotFoundError("x"),
    ):
        assert not storage.does_not_answer(error)


def test_a_reader_does_not_wait(tmp_path: Path, mesh: jax.sharding.Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "c", mesh, 1)

    def unavailable(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")  # what a network file system gives; none can be taken away here

    monkeypatch.setattr(ocp, "load_checkpointables", unavailable)
    with pytest.raises(CheckpointError, match=r"storage does not answer: .*Input/output error"):
        load_weights(folder, abstract(make_state(mesh)).params)
