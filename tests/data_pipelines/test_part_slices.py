"""A stage of a part in slices: the table is, to the bit, that of whole parts, whoever dies, and whoever goes on with
other thresholds.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.curate import curate as curate_module
from data_pipelines.curate import (
    file_stages,
    onnx_networks,
    part_slices,
    part_work,
    source_list,
    stage_parts,
    stage_rows,
)
from data_pipelines.curate.adapters import AdapterOptions, Adapters
from data_pipelines.curate.clip_records import RECORDS_SUFFIX, RecordWriter
from data_pipelines.curate.curate import CurateConfig, curate
from data_pipelines.curate.data_facts import read_facts
from data_pipelines.curate.file_stages import ScanOptions
from data_pipelines.curate.found_videos import CaptionOptions
from data_pipelines.curate.part_slices import Slice
from data_pipelines.curate.part_task import Made, PartTask, SlicesOut
from data_pipelines.curate.shots import ShotConfig
from data_pipelines.curate.stage_keys import stage_keys
from data_pipelines.curate.stage_parts import Table
from data_pipelines.curate.tagging import Thresholds
from data_pipelines.needs import Needs
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.serving import media_omnihuman
from tests.data_pipelines.test_kill import digests
from tests.encoders import tiny_networks

# Clips of less than a second, three of one video and two of the other, and a clip a slice.
SHOTS = ShotConfig(min_s=0.3, max_s=0.6)
A_CLIP_MINUTES = 0.6 / 60
STRICT = Thresholds(min_short_side_px=1000)


@pytest.fixture(scope="module")
def media(sample_media: SampleMedia, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices") / "media"
    folder.mkdir()
    for name, seconds in (("jwpIntro", 1.6), ("bikes", 1.0)):
        frames = media_omnihuman.read_video(sample_media.videos / f"{name}.mp4", size=(144, 192), duration_s=seconds)
        media_omnihuman.write_video(folder / f"{name}.mp4", frames, audio=tiny_networks.wave(seconds))
    return folder


def task_of(root: Path, *, task_s: float) -> PartTask:
    """Of the one part of the table in `root`."""
    options, loosest = ScanOptions(shots=SHOTS), Thresholds()
    table = Table(folder=root / "table", keys=stage_keys(options), loosest=loosest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_list, "_LEAST_PARTS", 1)
        videos = source_list.look_up(table, root / "media", CaptionOptions(default="A video."))
    table.save(options=options.stated())
    (task,) = curate_module._tasks(table, videos, options, loosest, task_s=task_s)
    return task


def finished(task: PartTask, most: int = 1000) -> list[PartTask]:
    """Works in this process on what there is to do, `most` tasks of it; what was worked on, in order."""
    out, waiting, worked = SlicesOut(), [task], []
    while waiting and len(worked) < most:
        one = waiting.pop(0)
        worked.append(one)
        waiting = [*out.follow(one, part_work.work(one)), *waiting]
    return worked


@pytest.fixture(scope="module")
def whole(media: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Bytes of the table that is made in one go."""
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(media, root / "media")
    assert len(finished(task_of(root, task_s=600.0))) == 1
    return digests(root / "table")


@pytest.mark.parametrize("most", [0.0, 1.0, 2.5, 100.0])
def test_slices_are_all_rows_once_and_none_has_too_much(most: float) -> None:
    costs = [1.0, 0.0, 1.0, 0.5, 3.0, 0.0, 0.25, 0.25, 0.0]
    slices = part_slices.cut(Slice(stage="look", begin=0, end=len(costs), chosen_by="x"), costs, most)
    assert [row for one in slices for row in range(len(costs))[one.rows]] == list(range(len(costs)))
    for one in slices:
        of_work = [cost for cost in costs[one.rows] if cost]
        assert sum(of_work) <= most or len(of_work) == 1
    assert {one.chosen_by for one in slices} == {"x"}
    for whole in (Slice(stage="look", begin=0, end=0), Slice(stage="look", begin=0, end=5)):
        assert part_slices.cut(whole, [0.0] * whole.end, most) == [whole]


def test_slices_make_the_part_to_the_bit(media: Path, whole: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(media, tmp_path / "media")
    worked = finished(task_of(tmp_path, task_s=60 * A_CLIP_MINUTES))
    of_slices = [task.slice.stage for task in worked if task.slice]
    clips = task_of(tmp_path, task_s=1.0).opened.read("look", 0).num_rows
    assert of_slices.count("preview") == of_slices.count("listen") == clips == 5
    assert 2 <= of_slices.count("look") < clips, "who is not looked at costs nothing"
    assert digests(tmp_path / "table") == whole


def test_a_scan_is_cut_by_bytes(media: Path, tmp_path: Path) -> None:
    shutil.copytree(media, tmp_path / "media")
    sizes = [path.stat().st_size for path in media.iterdir()]
    worked = finished(task_of(tmp_path, task_s=max(sizes) / part_work.BYTES_A_SECOND), most=4)
    assert [task.slice.stage if task.slice else "" for task in worked] == ["", "scan", "scan", ""]
    assert [task.slice.end - task.slice.begin for task in worked if task.slice] == [1, 1]


def test_stopped_it_goes_on(media: Path, whole: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(media, tmp_path / "media")
    task = task_of(tmp_path, task_s=60 * A_CLIP_MINUTES)
    before = [one.slice for one in finished(task, most=7) if one.slice]
    after = [one.slice for one in finished(task) if one.slice]
    assert not set(before) & set(after), "a slice that is done is made again"
    assert digests(tmp_path / "table") == whole


def work_and_be_killed(task: PartTask) -> Made:
    """Kills its process once at each of five moments: it writes down which in the table's folder."""
    folder = Path(task.table).parent
    join, remove, write_part = part_slices.join, part_slices.remove, stage_parts.write_part

    def die_once(moment: str) -> None:
        if not (folder / moment).exists():
            (folder / moment).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_write(path: Path, *arguments: Any) -> None:
        if "slices" in str(path) and path.with_suffix(RECORDS_SUFFIX).is_file():
            die_once("between a slice's records and its rows")
        write_part(path, *arguments)
        if "slices" in str(path):
            die_once("right behind a slice")

    def dying_join(table: Table, number: int, slices: Any) -> Any:
        if slices[0].stage == "look":
            with RecordWriter(table.landmarks(number)) as records:
                records.write({})
                die_once("while records are put together")
        return join(table, number, slices)

    def dying_remove(slices: Path) -> None:
        if list(slices.glob("*.parquet")):
            die_once("between a part and its slices")
            next(slices.glob("*.parquet")).unlink()
            die_once("while slices are removed")
        remove(slices)

    part_slices.join, part_slices.remove, stage_parts.write_part = dying_join, dying_remove, dying_write
    try:
        return part_work.work(task)
    finally:
        part_slices.join, part_slices.remove, stage_parts.write_part = join, remove, write_part


@pytest.mark.slow
def test_killed_at_the_worst_moments_it_goes_on(
    media: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(media, tmp_path / "media")
    monkeypatch.setattr(source_list, "_LEAST_PARTS", 1)
    monkeypatch.setattr(curate_module, "work", work_and_be_killed)
    config = CurateConfig(shots=SHOTS, task_minutes=A_CLIP_MINUTES, workers=1)
    for _ in range(4):
        with contextlib.suppress(ChildProcessError):
            curate(tmp_path / "media", tmp_path / "table", config)
            break
    assert len([path for path in tmp_path.iterdir() if " " in path.name]) == 5
    made = {name: digest for name, digest in digests(tmp_path / "table").items() if not name.startswith("sets")}
    assert made == {name: digest for name, digest in whole.items() if not name.startswith("sets")}


def test_commands_with_other_thresholds_have_slices_of_their_own(
    media: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    """By the strict ones nobody is looked at. What they did is not joined under the loose ones, and when their part is
    there, the slices of the loose ones still are.
    """
    shutil.copytree(media, tmp_path / "media")
    task = task_of(tmp_path, task_s=60 * A_CLIP_MINUTES)
    worked = finished(task, most=8)
    assert worked[-1].slice and worked[-1].slice.stage == "look"
    mine = part_slices.folders_of(task.opened, "look", 0)
    strict = dataclasses.replace(task, loosest=STRICT)
    finished(strict)
    part_work.forget_notes([strict])
    assert part_slices.folders_of(task.opened, "look", 0) == mine and not part_work.to_make(strict)
    after = [one.slice for one in finished(task) if one.slice and one.slice.stage == "look"]
    assert worked[-1].slice not in after and digests(tmp_path / "table") == whole


def test_slices_of_what_is_done_go(media: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """As a process leaves them that is killed between the part and them; others' go when nobody adds to them."""
    shutil.copytree(media, tmp_path / "media")
    task = task_of(tmp_path, task_s=600.0)
    finished(task)
    table = task.opened
    for stage in ("scan", "listen"):
        folder = Slice(stage=stage, begin=0, end=1, chosen_by=stage_rows.chosen_by(task, table, stage)).folder(table, 0)
        folder.mkdir()
        (folder / "000000-000001.parquet").touch()
    others = Slice(stage="look", begin=0, end=1, chosen_by="others'").folder(table, 0)
    others.mkdir()
    part_work.forget_notes([task])
    assert list((tmp_path / "table").rglob("*.slices-*")) == [others]
    os.utime(others, (time.time() - 7200,) * 2)
    part_work.forget_notes([task])
    assert digests(tmp_path / "table") == whole and not list((tmp_path / "table").rglob("*.slices-*"))


def test_what_failed_is_not_joined_again(
    media: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--retry-dead, where slices with what failed are still there."""
    shutil.copytree(media, tmp_path / "media")
    task = task_of(tmp_path, task_s=60 * A_CLIP_MINUTES)
    with monkeypatch.context() as bad_day:
        bad_day.setattr(file_stages, "listen", functools.partial(int, "a bad day"))
        bad_day.setattr(part_slices, "remove", lambda folder: None)
        finished(task)
    assert part_work.forget_dead(task) and part_work.to_make(task) == ["listen"]
    finished(task)
    for stage in ("scan", "preview", "look"):
        for folder in part_slices.folders_of(task.opened, stage, 0):
            part_slices.remove(folder)
    assert digests(tmp_path / "table") == whole


def work_and_die(task: PartTask) -> Made:
    """The second clip of a film kills whoever looks at it; who looks at the others writes it down."""
    look = file_stages.look

    def dies(path: str, **place: int) -> object:
        if 10 < place["start_frame"] < 20:
            os.kill(os.getpid(), signal.SIGKILL)
        (Path(task.table).parent / f"pid-{os.getpid()}").touch()
        time.sleep(2)  # the other process is there by then
        return look(path, **place)

    file_stages.look = dies  # type: ignore[assignment]
    try:
        return part_work.work(task)
    finally:
        file_stages.look = look


def test_processes_share_a_film_and_a_clip_that_kills_them_costs_that_clip_alone(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command itself: two processes, one film."""
    (tmp_path / "media").mkdir()
    shutil.copy(media / "jwpIntro.mp4", tmp_path / "media")
    monkeypatch.setattr(curate_module, "work", work_and_die)
    everybody = Thresholds(min_pose_share=0, min_pose_face_share=0, min_body_confidence=0)
    config = CurateConfig(shots=SHOTS, task_minutes=A_CLIP_MINUTES, workers=2, loosest=everybody)
    funnel = curate(tmp_path / "media", tmp_path / "table", config)
    computed, letters = funnel["computed"], funnel["quarantine"]
    assert computed["videos"] == 1 and computed["clips"] == computed["scan"] == computed["listen"] == 3
    assert {row["reason"] for row in letters} == {stage_rows.DIED} and len(letters) == 1
    assert not list((tmp_path / "table").rglob("*.slices*")) and not list((tmp_path / "table").rglob(".*"))
    assert len(list(tmp_path.glob("pid-*"))) > 1
    assert read_facts(tmp_path / "table" / "sets")


def test_a_film_of_no_minutes_is_refused() -> None:
    with pytest.raises(ValueError, match="task_minutes must be greater than 0, not 0"):
        CurateConfig(task_minutes=0).validate()


def test_stages_say_what_they_need(media: Path, tmp_path: Path) -> None:
    """A network on a GPU is a task of its own; before and after it the part is handed back."""
    shutil.copytree(media, tmp_path / "media")
    task = task_of(tmp_path, task_s=600.0)
    assert part_work.needs_of(task) == Needs(1.0, 0.0, max(part_work.MEMORY_MIB[s] for s in task.opened.stages))
    on_gpu = dataclasses.replace(task, given=Adapters(device="cuda", gpus=0.25))
    assert part_work.needs_of(on_gpu) == Needs(1.0, 0.0, part_work.MEMORY_MIB["scan"])
    made = part_work.work(on_gpu)
    assert list(made.rows) == ["scan"] and made.then == (on_gpu,)
    assert part_work.needs_of(on_gpu) == Needs(1.0, 0.25, part_work.MEMORY_MIB["preview"])
    try:
        with pytest.raises(ImportError, match=r"--network-device cuda: this onnxruntime offers .*CPUExecutionProvider"):
            part_work.work(on_gpu)
    finally:
        onnx_networks.use("cpu")
    keys = [stage_keys(ScanOptions(), given) for given in (task.given, on_gpu.given)]
    assert [stage for stage in keys[0] if keys[0][stage] != keys[1][stage]] == ["preview"]
    assert part_work.MEMORY_MIB.keys() == part_work._MAKERS.keys()
    for wrong, device in ((0, "cuda"), (1.5, "cuda"), (0.25, "cpu")):
        with pytest.raises(ValueError, match="network_gpus"):
            AdapterOptions(network_gpus=wrong, network_device=device).load()
