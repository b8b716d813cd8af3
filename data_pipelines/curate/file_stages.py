"""The two stages that look into a file, as functions from a row to a row that know no engine.

Each keeps its result in a file with a key of everything that it depends on (the reader's version and code, the
networks' files and every option among it), and has a `recall_` that finds it again: a second run does nothing, and one
with something changed only what the change asks for. `curate.py` drives them from a pool of processes.

Whatever goes wrong with a file is the result for that file. It is kept only if it is the file's own fault: what a full
memory, a disk or a bug did is tried again by the next run.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from data_pipelines.curate import decode, landmarks, lipsync, network_files, scores, shots
from data_pipelines.curate.clips import Landmarks, write_text
from data_pipelines.curate.code_digest import code_digest
from data_pipelines.curate.decode import Video
from omnihuman_jax.runtime import file_names
from omnihuman_jax.runtime.files import file_sha256
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.media_omnihuman import READER_VERSION, MediaError
from omnihuman_jax.typing import FPS

# Changes of what a scan finds, beside the reader's own; part of the key under which scans are kept.
VERSION = 2
# A file of which so much less can be decoded than its packets say is damaged.
_MIN_DECODED_SHARE = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScanTask:
    """A video to be read once from end to end."""

    path: str
    name: str
    video_id: str
    record: str
    shots: shots.ShotConfig
    max_seconds: float | None
    strict: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """What came of it: the video and its clips, or the reason why it cannot be used."""

    name: str
    video: Video | None
    ranges: tuple[tuple[int, int], ...]
    too_short: tuple[tuple[int, int], ...]
    error: str
    computed: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AnalysisTask:
    """A clip to be scored; `folder` is its own."""

    clip_id: str
    video: Video
    start_frame: int
    end_frame: int
    folder: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """The raw scores of a clip, or the reason why it could not be decoded."""

    clip_id: str
    scores: dict[str, float]
    error: str
    computed: bool


def recall_scan(task: ScanTask) -> Scan | None:
    """What an earlier run found out, if neither the file nor the question has changed; quick."""
    record = Path(task.record)
    kept = _load(record)
    if kept.get("question") != _question(task):
        return None
    try:
        stat = os.stat(task.path)
        if same := kept["stat"] == [stat.st_size, stat.st_mtime_ns] or kept["sha256"] == file_sha256(task.path):
            found = _of_record(task, kept)
    except (OSError, KeyError, TypeError, ValueError):  # gone, or a damaged record: `scan` says which
        return None
    if not same:
        return None
    if kept["stat"] != [stat.st_size, stat.st_mtime_ns]:
        write_text(record, json.dumps({**kept, "stat": [stat.st_size, stat.st_mtime_ns]}))  # touched, not changed
    return found


def _of_record(task: ScanTask, kept: dict[str, Any]) -> Scan:
    return Scan(
        name=task.name,
        video=Video(**{**kept["video"], "path": task.path}) if kept["video"] is not None else None,
        ranges=tuple((start, end) for start, end in kept["ranges"]),
        too_short=tuple((start, end) for start, end in kept["too_short"]),
        error=kept["error"],
        computed=False,
    )


def scan(task: ScanTask) -> Scan:
    """Measures and watches a video, finds its shots, and cuts them into clips. Never raises for a bad file."""
    video: Video | None = None
    ranges: list[tuple[int, int]] = []
    short: list[tuple[int, int]] = []
    error = ""
    is_lasting = True
    try:
        stat = os.stat(task.path)
        sha256 = file_sha256(task.path)
        video = decode.inspect(task.path, task.name, task.video_id, sha256)
        watched = shots.watch(task.path, task.max_seconds)
        video = decode.with_properties(video, watched.looks)
        if task.strict and (reason := decode.refusal(video)):
            raise MediaError(f"{task.path}: {reason}")
        frames = len(watched.changes) + 1
        expected = min(video.duration_s, task.max_seconds or video.duration_s) * FPS
        if frames < _MIN_DECODED_SHARE * expected - 1:
            raise MediaError(
                f"{task.path}: truncated; only {frames / FPS:.2f} s of {expected / FPS:.2f} s can be "
                "decoded; re-encode it"
            )
        cuts = sorted({*shots.find_cuts(watched.changes, task.shots), *watched.reshaped})
        ranges, short = shots.clip_ranges(frames, cuts, task.shots)
    except Exception as problem:
        video, error, is_lasting = None, reason_of(problem, task.path), isinstance(problem, MediaError)
    if not is_lasting:
        Path(task.record).unlink(missing_ok=True)
        return failed_scan(task, error)
    stored = {
        "question": _question(task),
        "stat": [stat.st_size, stat.st_mtime_ns],
        "sha256": sha256,
        "video": {**dataclasses.asdict(video), "path": ""} if video else None,
        "ranges": ranges,
        "too_short": short,
        "error": error,
    }
    write_text(Path(task.record), json.dumps(stored))
    return Scan(name=task.name, video=video, ranges=tuple(ranges), too_short=tuple(short), error=error, computed=True)


def _is_ours(module: str) -> bool:
    """Whether a module's code makes what a stage finds: the reader's parts, which lie beside `media_omnihuman`."""
    return module.endswith("_omnihuman")


def failed_scan(task: ScanTask, reason: str) -> Scan:
    """A scan that gave nothing but a reason, which no later run goes by."""
    return Scan(name=task.name, video=None, ranges=(), too_short=(), error=reason, computed=True)


def _question(task: ScanTask) -> str:
    """Everything but the file itself that a scan depends on."""
    return _key(
        reader=[READER_VERSION, code_digest((decode, media_omnihuman, shots), _is_ours)],
        version=VERSION,
        name=task.name,
        video_id=task.video_id,
        shots=dataclasses.asdict(task.shots),
        max_seconds=task.max_seconds,
        strict=task.strict,
    )


def recall_analysis(task: AnalysisTask) -> Analysis | None:
    """What an earlier run found out about the same frames with the same code; quick."""
    folder = Path(task.folder)
    kept = _load(folder / "scores.json")
    if kept.get("key") != _analysis_key(task) or not {"scores", "error"} <= kept.keys():
        return None
    if not (kept["error"] or (folder / "landmarks.npz").is_file()):
        return None
    return Analysis(clip_id=task.clip_id, scores=kept["scores"], error=kept["error"], computed=False)


def analyse(task: AnalysisTask) -> Analysis:
    """Decodes a clip once: scores its pictures, finds its landmarks (saved beside), listens to its sound."""
    folder = Path(task.folder)
    folder.mkdir(parents=True, exist_ok=True)
    points = folder / "landmarks.npz"
    numbers: dict[str, float] = {}
    error = ""
    try:
        numbers = _scores(task, points)
    except ImportError:  # of an extra that is not installed: no fault of any file
        raise
    except Exception as problem:
        points.unlink(missing_ok=True)
        error = reason_of(problem, task.video.path)
        if not isinstance(problem, MediaError):
            (folder / "scores.json").unlink(missing_ok=True)
            return failed_analysis(task, error)
    write_text(
        folder / "scores.json", json.dumps({"key": _analysis_key(task), "scores": numbers, "error": error}, indent=1)
    )
    return Analysis(clip_id=task.clip_id, scores=numbers, error=error, computed=True)


def failed_analysis(task: AnalysisTask, reason: str) -> Analysis:
    """An analysis that gave nothing but a reason, which no later run goes by."""
    return Analysis(clip_id=task.clip_id, scores={}, error=reason, computed=True)


def _analysis_key(task: AnalysisTask) -> str:
    """Of all that the scores depend on: the code, the networks, and what the scan says of the video."""
    return _key(
        reader=[READER_VERSION, code_digest((decode, media_omnihuman, landmarks, scores, lipsync), _is_ours)],
        versions=[landmarks.VERSION, scores.VERSION, lipsync.VERSION],
        networks=network_files.network_sha256(),
        video={**dataclasses.asdict(task.video), "path": "", "name": "", "video_id": ""},
        frames=[task.start_frame, task.end_frame],
    )


def _scores(task: AnalysisTask, points: Path) -> dict[str, float]:
    video = task.video
    # Sound first: a broken audio track then costs no landmarks.
    wave = decode.clip_audio(video.path, task.start_frame, task.end_frame) if video.has_audio else None
    meter = scores.PictureMeter()
    found = landmarks.extract_landmarks(meter.watch(decode.clip_frames(video.path, task.start_frame, task.end_frame)))
    if len(found.face_T) != task.end_frame - task.start_frame:
        raise MediaError(
            f"{video.path}: {len(found.face_T)} of {task.end_frame - task.start_frame} frames decoded; re-encode it"
        )
    found.save(points)
    numbers = {
        "seconds": (task.end_frame - task.start_frame) / FPS,
        "short_side_px": float(min(video.height, video.width)),
        "source_fps": video.source_fps,
        "bits_per_pixel": video.bits_per_pixel,
        "audio_tracks": float(video.has_audio),
        **meter.scores(),
        **scores.landmark_scores(found),
        **scores.sound_scores(wave),
        **_lip_sync(found, wave),
    }
    if wrong := [f"{name} {value}" for name, value in numbers.items() if not math.isfinite(value)]:
        raise MediaError(f"{video.path}: not a number: {', '.join(wrong)}; take the clip out, or re-encode it")
    return numbers


def _lip_sync(found: Landmarks, wave: Any) -> dict[str, float]:
    if wave is None or scores.sound_scores(wave)["peak_dbfs"] <= scores.SILENCE_DBFS:
        return {}
    return lipsync.lip_sync_scores(found.aperture_T, wave)


def forget(folder: Path) -> None:
    """Removes what a clip left that no longer exists."""
    shutil.rmtree(folder, ignore_errors=True)


def _load(record: Path) -> dict[str, Any]:
    """What an earlier run kept; nothing if it never finished or the file is damaged."""
    try:
        kept = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _key(**parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def reason_of(problem: Exception, path: str) -> str:
    """Why a file cannot be used, in one line without its path, which the report has in a column of its own."""
    text = f"{problem.strerror or problem}" if isinstance(problem, OSError) else str(problem)
    text = " ".join(text.removeprefix(f"{path}: ").replace(path, "it").split())
    known = isinstance(problem, MediaError)
    return file_names.printable(text if known and text else f"{type(problem).__name__}: {text}".removesuffix(": "))
