"""What drives a video: pictures, sound, pose and text read from files and encoded as the run's own data were.

Row i of audio features and keypoints is frame i of the video to make, at 25 fps.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet, active_at_inference
from omnihuman_jax.data.window_sizes import WindowSizes
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.encoders.speech import load_speech_encoder
from omnihuman_jax.encoders.text import load_text_encoder
from omnihuman_jax.sampling import trained_run
from omnihuman_jax.serving import media_omnihuman, poses_omnihuman, windows_omnihuman
from omnihuman_jax.serving.folders_omnihuman import changed_files
from omnihuman_jax.serving.pictures_omnihuman import SPATIAL_STRIDE, check_size, fit_size, lay_keypoints, lay_picture
from omnihuman_jax.serving.windows_omnihuman import (
    FPS,
    MOTION_FRAMES,
    SOUND_CONTEXT_S,
    TEMPORAL_STRIDE,
    frames_to_make,
    segment_schedule,
)

# Windows with a person in a smaller share of their frames are not trained with pose: nothing like it was seen.
MIN_POSE_SHARE = 0.5


@dataclasses.dataclass(kw_only=True, slots=True)
class Request:
    """What to make. Files by path; None for what does not drive the video.

    image: None for a person that the model makes up: 30 % of the training windows have no reference.
    seconds: None for as long as the audio or pose lasts (the shorter of the two), or one segment without either.
    size: (height, width) in pixels, multiples of 16; None for the image's (or else the pose's) shape at the dataset's
    area, and without either for the size that most of the dataset's windows have.
    text_encoder, speech_encoder: folders or hub ids; None for those that the dataset was made with.
    """

    image: Path | None = None
    audio: Path | None = None
    pose: Path | None = None
    text: str | None = None
    seconds: float | None = None
    size: tuple[int, int] | None = None
    seed: int = 0
    text_encoder: str | None = None
    speech_encoder: str | None = None

    @property
    def active(self) -> ConditionSet:
        """The paper's set for these driving signals, without text or reference where there is none."""
        return active_conditions(
            bool(self.text), self.audio is not None, self.pose is not None, reference=self.image is not None
        )

    def validate(self) -> None:
        """FileNotFoundError or ValueError, one line, before anything is loaded."""
        for option, path in (("--image", self.image), ("--audio", self.audio), ("--pose", self.pose)):
            if path is not None and not Path(path).is_file():
                raise FileNotFoundError(f"{option} {path}: no such file")
        if not self.active:
            raise ValueError("nothing drives the video: give one at least of --image, --text, --audio and --pose")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"--seconds must be > 0, not {self.seconds}")
        if self.size is not None:
            check_size(self.size)


class Encoders:
    """Networks that are opened once, however many videos they serve: `speech` and `text` load as their functions do."""

    def __init__(self) -> None:
        self.speech = functools.cache(load_speech_encoder)
        self.text = functools.cache(load_text_encoder)


class Signals(windows_omnihuman.Signals):
    """What drives the video: row i of audio and keypoints is frame i, at 25 fps."""

    @property
    def active(self) -> ConditionSet:
        """The paper's set for these signals, without text or reference where there is none."""
        return active_conditions(
            self.has_text,
            self.audio_TE is not None,
            self.keypoints_TJ3 is not None,
            reference=self.reference_HWC is not None,
        )


def active_conditions(text: bool, audio: bool, pose: bool, *, reference: bool = True) -> ConditionSet:
    """The paper's set for these driving signals, without text or reference where there is none."""
    active = active_at_inference(audio=audio, pose=pose)
    absent = {Condition.TEXT: not text, Condition.REFERENCE: not reference}
    return active.without(*(condition for condition, is_absent in absent.items() if is_absent))


def read_reference(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The picture laid over the video's frame: float32 [1, H, W, 3] in [-1, 1]."""
    return lay_picture(functools.partial(media_omnihuman.read_image, path), size)


def read_pose(path: Path, size: tuple[int, int], names: Sequence[str]) -> np.ndarray:
    """Keypoints [T, J, 3] at 25 fps in token units of pictures of `size`, from a video or a `.npz` of
    `omnihuman data pose`.

    The pose's picture is laid over the video's like a reference image. ValueError where no person is seen.
    """
    keypoints, height, width = _file_pose(path) if path.suffix == ".npz" else _video_pose(path)
    seen = np.asarray((keypoints[..., 2] > 0).any(axis=1))
    if not seen.any():
        raise ValueError(f"--pose {path}: no person found in any frame; give a video that shows the face and body")
    if keypoints.shape[1] != len(names):
        raise ValueError(f"--pose {path}: {keypoints.shape[1]} keypoints a frame, the run was trained on {len(names)}")
    if seen.mean() < MIN_POSE_SHARE:
        print(f"warning: --pose {path}: a person was found in {seen.sum()} of {len(seen)} frames only", file=sys.stderr)
    return lay_keypoints(keypoints, height, width, size)


def _video_pose(path: Path) -> tuple[np.ndarray, int, int]:
    """Keypoints in pixels of the person in a video, and the video's height and width."""
    # Curation's networks are an extra; sampling needs them for a pose video only.
    from data_pipelines.curate.landmarks import extract_landmarks

    header = media_omnihuman.probe(path)
    try:
        found = extract_landmarks(media_omnihuman.iter_video(path), faces=False)
        return found.keypoints_TJ3, header.height, header.width
    except ImportError as error:
        raise ValueError(f"--pose {path}: {error}; or give keypoints (.npz) of `omnihuman curate`") from error


def _file_pose(path: Path) -> tuple[np.ndarray, int, int]:
    """The same of a `.npz`."""
    try:
        return poses_omnihuman.read_keypoints(path)
    except ValueError as error:
        raise ValueError(f"--pose {error}") from error


def segment_frames_of(run: trained_run.TrainedRun, config: SamplingConfig) -> int:
    """Frames of a segment: the configured number, or the longest window that the model was trained on."""
    if config.segment_frames:
        return config.segment_frames
    return max(_sizes(run, "--segment-frames").frames, MOTION_FRAMES + TEMPORAL_STRIDE)


def _sizes(run: trained_run.TrainedRun, option: str) -> WindowSizes:
    """Of the windows of all data sets of the run; the error names the option that makes them unnecessary."""
    if (found := WindowSizes.of(run.drawn_from)) is None:
        raise FileNotFoundError(f"{run.dataset} has no catalog: give {option}, or the dataset's folder with --dataset")
    return found


def read_signals(
    run: trained_run.TrainedRun, request: Request, segment_frames: int, encoders: Encoders | None = None
) -> Signals:
    """Reads and encodes everything that drives the video."""
    encoders = encoders or Encoders()
    spec, size = run.spec, size_of(run, request)
    reference = None
    if request.image is not None:
        reference = trained_run.encode_pictures(run, read_reference(request.image, size))[0]
    wave = keypoints = audio = None
    available: dict[str, int] = {}
    if request.audio is not None:
        wave = media_omnihuman.read_audio(request.audio, spec.sample_rate_hz, required=True)
        assert wave is not None  # `required`
        available[f"--audio {request.audio}"] = len(wave) * FPS // spec.sample_rate_hz
    if request.pose is not None:
        keypoints = read_pose(request.pose, size, spec.keypoint_names)
        available[f"--pose {request.pose}"] = len(keypoints)
    frames = frames_to_make(request.seconds, available, segment_frames)
    if wave is not None:
        audio = encode_speech(run, request, wave, segment_schedule(frames, segment_frames)[-1].stop, encoders)
    text_SE, pooled_E = encode_text(run, request, encoders)
    return Signals(
        frames=frames,
        latent_shape=(size[0] // SPATIAL_STRIDE, size[1] // SPATIAL_STRIDE, run.config.model.latent_channels),
        reference_HWC=reference,
        text_SE=text_SE,
        pooled_E=pooled_E,
        has_text=bool(request.text),
        audio_TE=audio,
        keypoints_TJ3=keypoints,
        wave=wave,
    )


def size_of(run: trained_run.TrainedRun, request: Request) -> tuple[int, int]:
    """(height, width) of the video: as asked for, or as `Request.size` says."""
    if request.size is not None:
        return request.size
    sizes = _sizes(run, "--size")
    if request.image is not None:
        height, width = media_omnihuman.read_image(request.image).shape[:2]
    elif request.pose is not None and request.pose.suffix == ".npz":
        _, height, width = _file_pose(request.pose)
    elif request.pose is not None:
        header = media_omnihuman.probe(request.pose)
        height, width = header.height, header.width
    else:
        return sizes.usual
    return fit_size(height, width, sizes.area)


def encode_speech(
    run: trained_run.TrainedRun, request: Request, wave: np.ndarray, frames: int, encoders: Encoders
) -> np.ndarray:
    """Speech features [T, E], T up to `frames` and the margin, of the run's own encoder."""
    encoder = encoders.speech(request.speech_encoder or run.spec.speech_encoder, layers=run.spec.speech_layers)
    check_encoder(run, "speech_encoder", encoder.ref, encoder.sha256)
    rate = run.spec.sample_rate_hz
    wave = wave[: round(((frames + run.spec.margin) / FPS + SOUND_CONTEXT_S) * rate)]
    features = np.asarray(encoder.features(wave, max(1, len(wave) * FPS // rate)), np.float32)
    if features.shape[1] != run.spec.audio_width:
        raise ValueError(
            f"the speech encoder gives {features.shape[1]} features, the run was trained on {run.spec.audio_width}"
        )
    return features


def check_encoder(run: trained_run.TrainedRun, role: str, ref: str, sha256: Mapping[str, str]) -> None:
    """ValueError if the encoder's files are not those that the run's data were made with."""
    trained = {
        name.removeprefix(f"{role}/"): digest
        for name, digest in run.spec.encoder_sha256.items()
        if name.startswith(f"{role}/")
    }
    if trained and (changed := changed_files(trained, sha256)):
        raise ValueError(
            f"{ref} is not the {role.replace('_', ' ')} that the run was trained with: {', '.join(changed)} changed "
            f"(--{role.replace('_', '-')} names another folder)"
        )


def encode_text(
    run: trained_run.TrainedRun, request: Request, encoders: Encoders | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(text_SE, pooled_E): of the prompt, or of the empty prompt where there is none."""
    if not request.text:
        return run.spec.empty_text_SE, run.spec.empty_pooled_E
    encoder = (encoders or Encoders()).text(request.text_encoder or run.spec.text_encoder)
    check_encoder(run, "text_encoder", encoder.ref, encoder.sha256)
    tokens, pooled = encoder.encode([request.text], run.spec.max_text_tokens)
    text_SE, pooled_E = np.asarray(tokens[0], np.float32), np.asarray(pooled[0], np.float32)
    if text_SE.shape[1] != run.spec.text_width:
        raise ValueError(f"the text encoder is {text_SE.shape[1]} wide, the run was trained on {run.spec.text_width}")
    return text_SE, pooled_E
