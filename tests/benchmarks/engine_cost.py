"""What `curate` costs beside its stages: listing, tasks, slices, rows, records, sets. CPU seconds a minute of video, of
all processes, with stages that answer at once.

    python -m tests.benchmarks.engine_cost        # a part of a thousand videos of a minute, a slice ten minutes

The command itself runs, on files that hold nothing; what the stages answer has the size of real answers. The share is
of what the stages cost at 480 lines where 30 % of clips get landmarks (`curate_cost.py`).
"""

import argparse
import hashlib
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.curate import clip_records, decode, file_stages, network_files, part_work
from data_pipelines.curate import curate as curate_module
from data_pipelines.curate.clips import Landmarks
from data_pipelines.curate.curate import CurateConfig, curate
from data_pipelines.curate.part_task import Made, PartTask
from omnihuman_jax.data.keypoints import NUM_KEYPOINTS
from omnihuman_jax.typing import FPS

STAGES_S_A_MINUTE = 52.5
CLIP, CLIPS = 10 * FPS, 6
LOOKED_AT = 0.3


def scan(path: str, options: file_stages.ScanOptions) -> file_stages.Scan:
    video = decode.Video(
        sha256=hashlib.sha256(path.encode()).hexdigest(), height=480, width=848, source_fps=25.0,
        duration_s=CLIP * CLIPS / FPS, bits_per_pixel=0.1, has_audio=True, tracks=[{"kind": "video"}] * 2,
        properties=[{"name": "bit depth", "found": "8 bits", "done": "kept", "undone": False}] * 8,
    )  # fmt: skip
    return file_stages.Scan(
        video=video, ranges=tuple((CLIP * n, CLIP * (n + 1)) for n in range(CLIPS)), too_short=()
    )  # fmt: skip


def preview(path: str, start_frame: int, **place: Any) -> tuple[dict[str, Any], bytes]:
    rng = np.random.default_rng(start_frame)
    names = (*file_stages.PICTURE_SCORES, *file_stages.BRISQUE_SCORES, *file_stages.PREVIEW_SCORES)
    shows = float(int(hashlib.sha256(path.encode()).hexdigest()[:4], 16) / 65536 < LOOKED_AT)
    found = dict.fromkeys(names, shows) | {"sharpness": 100.0, "brightness": 100.0, "motion": 0.1, "frozen_share": 0.0}
    found |= {"faces_share": 0.0, "preview_faces_share": 0.0, "preview_face_px": 200.0 * shows}
    return {**found, **dict.fromkeys(("brisque_why",))}, rng.bytes(5_000)


def look(path: str, start_frame: int, **place: Any) -> tuple[dict[str, float], Landmarks]:
    rng = np.random.default_rng(start_frame)
    keypoints = rng.uniform(1, 400, (CLIP, NUM_KEYPOINTS, 3)).astype(np.float32)
    keypoints[..., 2] = 0.9
    found = Landmarks(
        keypoints_TJ3=keypoints,
        lips_TK2=rng.uniform(1, 400, (CLIP, 40, 2)).astype(np.float32),
        mouth_box_T4=np.ones((CLIP, 4), np.float32),
        face_box_T4=np.ones((CLIP, 4), np.float32),
        aperture_T=rng.random(CLIP).astype(np.float32),
        face_T=np.ones(CLIP, bool),
        faces_T=np.ones(CLIP, np.int32),
        track_box_TN4=np.ones((CLIP, 1, 4), np.float32),
        track_aperture_TN=rng.random((CLIP, 1)).astype(np.float32),
    )
    return dict.fromkeys(file_stages.LANDMARK_SCORES, 0.9), found


def listen(path: str, **question: Any) -> dict[str, Any]:
    return dict.fromkeys((*file_stages.SOUND_SCORES, *file_stages.LIP_SYNC_SCORES), 0.5) | {"loudness_dbfs": -20.0}


def work(task: PartTask) -> Made:
    """`part_work.work`, with stages that answer at once."""
    network_files.fetch_all = lambda: None
    for stage in (scan, preview, look, listen):
        setattr(file_stages, stage.__name__, stage)
    return part_work.work(task)


def cpu_s() -> float:
    """Of this process, and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1000, help="of a minute each (default %(default)s)")
    parser.add_argument("--task-minutes", type=float, default=10.0)
    options = parser.parse_args(argv)
    curate_module.work = work
    with tempfile.TemporaryDirectory() as temporary:
        source, table = Path(temporary) / "videos", Path(temporary) / "table"
        source.mkdir()
        for number in range(options.videos):
            (source / f"{number:06d}.mp4").touch()
            os.truncate(source / f"{number:06d}.mp4", 10_000_000)  # holds nothing, takes no room
        began = cpu_s()
        config = CurateConfig(task_minutes=options.task_minutes)
        made = curate(source, table, config)
        cost = (cpu_s() - began) / options.videos
        records = sum(path.stat().st_size for path in table.rglob(f"*{clip_records.RECORDS_SUFFIX}"))
    print(f"{made['clips']:,} clips, {records / 1e6:,.0f} MB of records", file=sys.stderr)
    print("| videos of a minute | minutes a task | CPU s a minute of video | of the stages' |")
    print("|---|---|---|---|")
    share = cost / STAGES_S_A_MINUTE
    print(f"| {options.videos:,} | {options.task_minutes:g} | {cost:.3f} | {share:.2%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
