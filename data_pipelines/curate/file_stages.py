"""The stages that look into a file, as functions that know no engine and no table: a file in, rows out.

    scan     a video  -> its header, damage and shots: the clips              decodes thumbnails
    preview  a clip   -> scores of its pictures, of the person on every       decodes pictures, 720 lines at most
                         fifth of them, and a thumbnail
    look     a clip   -> landmarks of every frame, and their scores           decodes pictures, 720 lines at most
    listen   a clip   -> loudness, speech, and whether the lips follow it     decodes sound
    sync     a clip   -> whether its lips follow its sound, by a network      decodes both (`sync_network.py`)
    embed    a thumbnail -> a vector                                          (`embeddings.py`)
    caption  a clip   -> what a user's program says of it                     (`caption_command.py`)

`look` costs the most by far, so only clips whose preview could reach a condition that asks for landmarks get there
(`reach.py`).

Whatever goes wrong with a file is a row for that file, a dead letter.
"""

import dataclasses
import itertools
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.curate import (
    clip_hashes,
    clip_networks,
    decode,
    landmarks,
    lipsync,
    picture_scores,
    scores,
    shots,
    stills,
    sync_network,
    voice,
)
from data_pipelines.curate.clip_networks import ClipNetwork
from data_pipelines.curate.clips import Landmarks
from data_pipelines.curate.decode import Video
from data_pipelines.curate.shots import ShotConfig
from data_pipelines.curate.sync_network import SyncNetwork
from data_pipelines.curate.whole_body_network import PersonFinder
from omnihuman_jax.evaluation import sync_offsets
from omnihuman_jax.runtime import file_names
from omnihuman_jax.runtime.files import file_sha256
from omnihuman_jax.serving.media_omnihuman import MediaError
from omnihuman_jax.typing import FPS

# Changes of what a stage finds, beside the reader's own; part of its key.
VERSION = 4
# A file of which so much less can be decoded than its packets say is damaged.
_MIN_DECODED_SHARE = 0.9
_THUMBNAIL_LINES = 96
# The person is previewed on every fifth frame of 25 a second.
PREVIEW_EVERY = 5

PICTURE_SCORES = (
    "sharpness", "brightness", "motion", "camera_motion", "subject_motion", "frozen_share", "letterbox_share",
    "pillarbox_share", "dark_share", "bright_share", "text_area_share",
)  # fmt: skip
BRISQUE_SCORES = ("brisque",)
# What is known of the pictures of a clip before its landmarks.
KNOWN_SCORES = (*PICTURE_SCORES, *BRISQUE_SCORES, *clip_networks.NAMES)
LANDMARK_SCORES = (
    "pose_share", "body_confidence", "face_share", "face_px", "faces_share", "hand_share", "left_hand_share",
    "right_hand_share", "hand_confidence", "face_tracks",
)  # fmt: skip
# Of the scores of landmarks those that a preview has too; it looks for no hands.
PREVIEWED = ("pose_share", "body_confidence", "face_share", "face_px", "faces_share")
PREVIEW_SCORES = tuple(f"preview_{name}" for name in PREVIEWED)
SOUND_SCORES = ("loudness_dbfs", "peak_dbfs", "voice_share")
LIP_SYNC_SCORES = (
    "speech_share", "lip_sync_confidence", "lip_sync_offset_s", "lip_sync_match", "active_track",
    "active_lip_sync_confidence", "active_lip_sync_offset_s", "active_lead",
)  # fmt: skip
SYNC_SCORES = sync_network.SCORES
NO_TRACK = "not computed: no audio track"
SILENT = "not computed: silent"
NO_FACE = "not computed: no face was followed"
TOO_SHORT = "not computed: too short"
ONE_COLOUR = "not computed: a picture of one colour, or too small"
NO_NETWORK = "not computed: no network was given"
OWN_CAPTION = "not computed: the video has a caption of its own"
# Of landmarks, and of what is made of them: the preview is out of reach of every condition that asks for them.
BY_PREVIEW = "not computed: preview"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScanOptions:
    """What a scan is asked for. strict: refuse a video of which something would have to be undone."""

    shots: ShotConfig = dataclasses.field(default_factory=ShotConfig)
    max_seconds: float | None = None
    strict: bool = False

    def stated(self) -> dict[str, Any]:
        """All of it as plain values; a network by its sha256, wherever it lies."""
        network = file_sha256(Path(self.shots.network)) if self.shots.network else ""
        return dataclasses.asdict(dataclasses.replace(self, shots=dataclasses.replace(self.shots, network=network)))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """A video and the frame ranges of its clips, and of the shots that are too short for one."""

    video: Video
    ranges: tuple[tuple[int, int], ...]
    too_short: tuple[tuple[int, int], ...]


def scan(path: str, options: ScanOptions) -> Scan:
    """Measures and watches a video, finds its shots, and cuts them into clips; `MediaError` for a bad file."""
    video = decode.inspect(path, file_sha256(path))
    watched = shots.watch(path, options.shots, options.max_seconds)
    video = decode.with_properties(path, video, watched.looks)
    if options.strict and (reason := decode.refusal(video)):
        raise MediaError(f"{path}: {reason}")
    frames = len(watched.changes) + 1
    expected = min(video.duration_s, options.max_seconds or video.duration_s) * FPS
    if frames < _MIN_DECODED_SHARE * expected - 1:
        raise MediaError(
            f"{path}: truncated; only {frames / FPS:.2f} s of {expected / FPS:.2f} s can be decoded; re-encode it"
        )
    found = shots.find_cuts(watched.changes, options.shots) if watched.cuts is None else watched.cuts
    cuts = sorted({*found, *watched.reshaped})
    ranges, short = shots.clip_ranges(frames, cuts, options.shots, watched.dissolves)
    return Scan(video=video, ranges=tuple(ranges), too_short=tuple(short))


def preview(
    path: str,
    start_frame: int,
    end_frame: int,
    height: int,
    width: int,
    networks: Mapping[str, ClipNetwork] = types.MappingProxyType({}),
    finder: PersonFinder | None = None,
) -> tuple[dict[str, Any], bytes]:
    """Decodes a clip's pictures: (scores of all of them, of a few stills and of the person on every fifth, whys
    where there is none, and hashes; a thumbnail as JPEG).

    height, width: displayed pixels, the unit of `preview_face_px`. networks: by the name of the score (`KNOWN_SCORES`).
    finder: as of `extract_landmarks`.
    """
    count = end_frame - start_frame
    meter, middle, few = picture_scores.PictureMeter(), _Middle(count // 2), stills.Stills(count)
    hasher = clip_hashes.PictureHasher()
    views = {name: stills.Stills(count, network.view.frames) for name, network in networks.items()}
    watched = decode.scored_frames(path, start_frame, end_frame, height, width)
    watchers: list[Any] = [middle, few, hasher, *views.values(), meter]
    for watcher in watchers:
        watched = watcher.watch(watched)
    some = itertools.islice(watched, 0, None, PREVIEW_EVERY)  # takes all, gives some
    found = landmarks.extract_landmarks(some, (height, width), hands=False, finder=finder, every=PREVIEW_EVERY)
    _check_whole(path, meter.frames, count)
    person = scores.landmark_scores(found)
    numbers = {**meter.scores(), **stills.still_scores(few.kept)}
    numbers |= {f"preview_{name}": person[name] for name in PREVIEWED}
    numbers |= {name: networks[name].score(view.kept) for name, view in views.items()}
    whys = {f"{name}_why": NO_NETWORK for name in clip_networks.NAMES if name not in networks}
    if "brisque" not in numbers:
        whys["brisque_why"] = ONE_COLOUR
    return {**_finite(path, numbers), **hasher.hashes(), **whys}, middle.jpeg()


def look(
    path: str, start_frame: int, end_frame: int, height: int, width: int, finder: PersonFinder | None = None
) -> tuple[dict[str, float], Landmarks]:
    """(scores, landmarks) of all frames of a clip, in displayed pixels of a picture of `height` and `width`."""
    frames = decode.scored_frames(path, start_frame, end_frame, height, width)
    found = landmarks.extract_landmarks(frames, (height, width), finder=finder)
    _check_whole(path, len(found.face_T), end_frame - start_frame)
    return _finite(path, scores.landmark_scores(found)), found


def _check_whole(path: str, frames: int, expected: int) -> None:
    if frames != expected:
        raise MediaError(f"{path}: {frames} of {expected} frames decoded; re-encode it")


def listen(
    path: str,
    start_frame: int,
    end_frame: int,
    aperture_T: np.ndarray | None,
    has_audio: bool,
    track_aperture_TN: np.ndarray | None = None,
) -> dict[str, Any]:
    """Scores of a clip's sound, and its hash; `lip_sync_why` where there is nothing to judge.

    aperture_T, track_aperture_TN: of `Landmarks`; None without them.
    """
    wave = decode.clip_audio(path, start_frame, end_frame) if has_audio else None
    found: dict[str, Any] = {
        **scores.sound_scores(wave),
        "voice_share": 0.0 if wave is None else voice.voice_share(wave),
    }
    if wave is None:
        found["lip_sync_why"] = NO_TRACK
    elif found["peak_dbfs"] <= scores.SILENCE_DBFS:
        found["lip_sync_why"] = SILENT
    elif aperture_T is None:
        found["lip_sync_why"] = BY_PREVIEW
    else:
        found |= lipsync.lip_sync_scores(aperture_T, wave, track_aperture_TN)
    _finite(path, {name: value for name, value in found.items() if name != "lip_sync_why"})
    return {**found, "sound_hash": clip_hashes.sound_hash(wave)}


def sync(
    path: str,
    start_frame: int,
    end_frame: int,
    height: int,
    width: int,
    track_box_TN4: np.ndarray,
    has_audio: bool,
    network: SyncNetwork,
) -> dict[str, Any]:
    """Scores of a clip by SyncNet; `sync_why` where there is nothing to judge.

    height, width: displayed pixels, in which the boxes are, those of `Landmarks`.
    """
    wave = decode.clip_audio(path, start_frame, end_frame) if has_audio else None
    if wave is None:
        return {"sync_why": NO_TRACK}
    if scores.sound_scores(wave)["peak_dbfs"] <= scores.SILENCE_DBFS:
        return {"sync_why": SILENT}
    if not track_box_TN4.shape[1]:
        return {"sync_why": NO_FACE}
    if end_frame - start_frame <= sync_offsets.FRAMES:
        return {"sync_why": TOO_SHORT}
    scale = decode.scored_size(height, width)[0] / height
    frames = decode.scored_frames(path, start_frame, end_frame, height, width)
    faces = sync_network.cut_out(frames, track_box_TN4 * scale)
    _check_whole(path, len(faces[0]), end_frame - start_frame)
    return _finite(path, sync_network.sync_scores(network, faces, wave))


def _finite(path: str, numbers: dict[str, float]) -> dict[str, float]:
    if wrong := [f"{name} {value}" for name, value in numbers.items() if not math.isfinite(value)]:
        raise MediaError(f"{path}: not a number: {', '.join(wrong)}; take the clip out, or re-encode it")
    return numbers


class _Middle:
    """Keeps the frame in the middle of those that pass through."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._frame: np.ndarray | None = None

    def watch(self, frames: Any) -> Any:
        for number, frame in enumerate(frames):
            if number <= self._index:
                self._frame = frame
            yield frame

    def jpeg(self) -> bytes:
        import cv2  # comes with MediaPipe in the curation extra

        assert self._frame is not None
        height, width = self._frame.shape[:2]
        size = (max(1, round(width * _THUMBNAIL_LINES / height)), _THUMBNAIL_LINES)
        small = cv2.cvtColor(cv2.resize(self._frame, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
        return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())


def picture_of(jpeg: np.ndarray) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a thumbnail's bytes, uint8 [n]."""
    import cv2  # comes with MediaPipe in the curation extra

    return np.asarray(cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """Why a row could not be made.

    reason     one line, without the file's path
    exception  the class of the error
    tries      how often it was tried
    is_lasting whether it is the file's own fault: what a full memory, a disk or a bug did is worth another try
    """

    reason: str
    exception: str
    tries: int
    is_lasting: bool


def dead_letter(problem: Exception, path: str, tries: int) -> DeadLetter:
    return DeadLetter(
        reason=reason_of(problem, path),
        exception=type(problem).__name__,
        tries=tries,
        is_lasting=isinstance(problem, MediaError),
    )


def reason_of(problem: Exception, path: str) -> str:
    """Why a file cannot be used, in one line without its path, which the report has in a column of its own."""
    text = f"{problem.strerror or problem}" if isinstance(problem, OSError) else str(problem)
    text = " ".join(text.removeprefix(f"{path}: ").replace(path, "it").split())
    known = isinstance(problem, MediaError)
    return file_names.printable(text if known and text else f"{type(problem).__name__}: {text}".removesuffix(": "))
