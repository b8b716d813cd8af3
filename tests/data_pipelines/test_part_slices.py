"""A stage of a part in slices: the table is, to the bit, that of whole parts, whoever dies, and whoever goes on with
other thresholds.
"""

import dataclasses
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.curate import curate as curate_module
from data_pipelines.curate import file_stages, onnx_networks, part_slices, part_work, source_list, stage_rows
from data_pipelines.curate.adapters import Adapters
from data_pipelines.curate.curate import CurateConfig, curate
from data_pipelines.curate.data_facts import read_facts
from data_pipelines.curate.file_stages import ScanOptions
from data_pipelines.curate.found_videos import CaptionOptions
from data_pipelines.curate.part_task import Made, PartTask, SlicesOut
from data_pipelines.curate.shots import ShotConfig
from data_pipelines.curate.stage_parts import Table
from data_pipelines.curate.tagging import Thresholds
from data_pipelines.needs import Needs
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.serving import media_omnihuman
from tests.data_pipelines.test_kill import digests
from tests.encoders import tiny_networks

# Clips of less than a second, three a video, and about one clip a slice.
SHOTS = ShotConfig(min_s=0.3, max_s=0.7)
A_CLIP_MINUTES = 0.7 / 60
STRICT = Thresholds(min_short_side_px=1000)


@pytest.fixture(scope="module")
def media(sample_media: SampleMedia, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices") / "media"
    folder.mkdir()
    for name in ("jwpIntro", "bikes"):
        frames = media_omnihuman.read_video(sample_media.videos / f"{name}.mp4", size=(144, 192), duration_s=2.0)
        media_omnihuman.write_video(folder / f"{name}.mp4", frames, audio=tiny_networks.wave(2.0))
    return folder


def task_of(root: Path, *, task_s: float) -> PartTask:
    """Of the one part of the table in `root`."""
    options, loosest = ScanOptions(shots=SHOTS), Thresholds()
    table = Table(folder=root / "table", keys=file_stages.stage_keys(options), loosest=loosest)
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
    slices = part_slices.cut("look", costs, most)
    assert [row for one in slices for row in range(len(costs))[one.rows]] == list(range(len(costs)))
    for one in slices:
        of_work = [cost for cost in costs[one.rows] if cost]
        assert sum(of_work) <= most or len(of_work) == 1
    assert part_slices.cut("look", [], most) == [part_slices.Slice(stage="look", begin=0, end=0)]
    assert len(part_slices.cut("look", [0.0] * 5, most)) == 1


def test_slices_make_the_part_to_the_bit(media: Path, whole: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(media, tmp_path / "media")
    worked = finished(task_of(tmp_path, task_s=60 * A_CLIP_MINUTES))
    of_slices = [task.slice.stage for task in worked if task.slice]
    clips = task_of(tmp_path, task_s=1.0).opened.read("look", 0).num_rows
    assert of_slices.count("preview") == of_slices.count("listen") == clips > 4
    assert 2 <= of_slices.count("look") < clips, "who is not looked at costs nothing"
    assert digests(tmp_path / "table") == whole


def test_a_scan_is_cut_by_bytes(media: Path, whole: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(media, tmp_path / "media")
    sizes = [path.stat().st_size for path in (media).iterdir()]
    worked = finished(task_of(tmp_path, task_s=max(sizes) / part_work.BYTES_A_SECOND), most=4)
    assert [task.slice.stage if task.slice else "" for task in worked] == ["", "scan", "scan", ""]
    assert [task.slice.end - task.slice.begin for task in worked if task.slice] == [1, 1]


@pytest.mark.parametrize("most", [3, 13])
def test_killed_anywhere_it_goes_on(media: Path, whole: dict[str, str], tmp_path: Path, most: int) -> None:
    shutil.copytree(media, tmp_path / "media")
    task = task_of(tmp_path, task_s=60 * A_CLIP_MINUTES)
    before = [one.slice for one in finished(task, most) if one.slice]
    after = [one.slice for one in finished(task) if one.slice]
    assert not set(before) & set(after), "a slice that is done is made again"
    assert digests(tmp_path / "table") == whole


def test_slices_that_other_thresholds_were_meant_for_are_made_again(
    media: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    """By the strict ones nobody is looked at: a slice of `look` that says so is not joined under the loose ones."""
    shutil.copytree(media, tmp_path / "media")
    task = task_of(tmp_path, task_s=60 * A_CLIP_MINUTES)
    worked = finished(task, most=10)
    assert worked[-1].slice and worked[-1].slice.stage == "look"
    strict = dataclasses.replace(task, loosest=STRICT)
    slices = part_work.slices_of(task, task.opened, "look")
    for one in slices:
        part_work.work(dataclasses.replace(strict, slice=one))
    finished(task)
    assert digests(tmp_path / "table") == whole


def test_slices_of_what_is_done_go(media: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """As a process leaves them that is killed between the part and them."""
    shutil.copytree(media, tmp_path / "media")
    task = task_of(tmp_path, task_s=600.0)
    finished(task)
    for stage in ("scan", "listen"):
        folder = part_slices.folder(task.opened, stage, 0)
        folder.mkdir()
        (folder / "000000-000001.parquet").touch()
    part_work.forget_notes([task])
    assert digests(tmp_path / "table") == whole and not list((tmp_path / "table").rglob("*.slices"))


def work_and_die(task: PartTask) -> Made:
    """The second clip of a film kills whoever looks at it."""
    look = file_stages.look

    def dies(path: str, **place: int) -> object:
        if 10 < place["start_frame"] < 20:
            os.kill(os.getpid(), signal.SIGKILL)
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
    assert not list((tmp_path / "table").rglob("*.slices")) and not list((tmp_path / "table").rglob(".*"))
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
    with pytest.raises(ImportError, match=r"--network-device cuda: this onnxruntime offers .*CPUExecutionProvider"):
        part_work.work(on_gpu)
    onnx_networks.use("cpu")
    keys = [file_stages.stage_keys(ScanOptions(), given) for given in (task.given, on_gpu.given)]
    assert [stage for stage in keys[0] if keys[0][stage] != keys[1][stage]] == ["preview"]
    assert np.isfinite(list(part_work.MEMORY_MIB.values())).all()
