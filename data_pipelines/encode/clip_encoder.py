"""One curated clip to its windows, encoded: latents, references, text, speech features, keypoints (contract,
"Windows").
"""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.curate.clip_sets import load_landmarks, table_folder
from data_pipelines.curate.clips import Clip
from data_pipelines.encode.windows import Window, cut_windows, reference_frames, to_token_units
from omnihuman_jax.codecs.codec import VideoCodec
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.keypoints import NUM_KEYPOINTS
from omnihuman_jax.data.records import WindowRecord
from omnihuman_jax.encoders.speech import SpeechEncoder
from omnihuman_jax.encoders.text import EncodedText, TextEncoder
from omnihuman_jax.runtime import file_names
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.pictures_omnihuman import fit_size
from omnihuman_jax.serving.windows_omnihuman import with_margins
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

# Changes of what a window is made of; part of the key under which a dataset is kept.
VERSION = 2
# A window is trained with pose only if a person was found in this share of its frames: the clip's own score says
# nothing about a stretch in which he turned away.
MIN_POSE_SHARE = 0.5
_SAMPLES = SAMPLE_RATE_HZ // FPS
# Windows are encoded in batches of at most this many pixels (of all their frames), and of at most so many windows.
_BATCH_PIXELS = 1 << 24
_MAX_BATCH = 8


@dataclasses.dataclass(kw_only=True, slots=True)
class WindowConfig:
    """How clips are cut.

    area          pixels of a frame, about; native aspect ratio, sides in multiples of 16
    frames        lengths of windows, 1 + 4n each; 1 gives images
    stride        frames between the starts of two windows of a length; 0: as many as the window has, so that each frame
                  is in one window of a length
    image_stride  the same for single frames
    references    reference frames stored a window, at most
    margin        frames of speech features and keypoints on each side of a window; the model's `neighbours` at least
    """

    area: int = 832 * 480
    frames: tuple[int, ...] = (1, 17, 25)
    stride: int = 0
    image_stride: int = 12
    references: int = 4
    margin: int = 5

    def validate(self) -> None:
        """ValueError with the number that is wrong."""
        if not self.frames or any(n < 1 or n % 4 != 1 for n in self.frames):
            raise ValueError(f"--window-frames {self.frames}: each length must be 1 + 4n (1, 5, 9, 13, 17, ...)")
        if self.area < 32 * 32:
            raise ValueError(f"--area {self.area} must be at least {32 * 32} pixels")
        for name, least in (("stride", 0), ("image_stride", 1), ("references", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.margin < 0:
            raise ValueError(f"--margin must be at least 0, not {self.margin}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncodedWindow:
    """A record, and what the catalog says about it besides; height and width in pixels."""

    record: WindowRecord
    window: Window
    height: int
    width: int
    split: str = "train"


@dataclasses.dataclass(slots=True)
class ClipStatistics:
    """What the codec did to a clip: squared error of its round trip (8-bit pixels over 255) in the windows that were
    decoded again, sums over latents of all.
    """

    values: int = 0
    squared_error: float = 0.0
    latents: int = 0
    latent_sum_C: np.ndarray | float = 0.0
    latent_square_C: np.ndarray | float = 0.0

    @property
    def psnr(self) -> float:
        """dB; infinite if nothing was lost, NaN if nothing was decoded again."""
        if not self.values:
            return float("nan")
        return float(-10 * np.log10(self.squared_error / self.values)) if self.squared_error else float("inf")

    @property
    def latent_std_C(self) -> np.ndarray:
        mean = self.latent_sum_C / max(1, self.latents)
        return np.sqrt(np.maximum(np.asarray(self.latent_square_C) / max(1, self.latents) - mean**2, 0))

    def add(self, other: "ClipStatistics") -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def to_json(self) -> dict[str, Any]:
        return {name: np.asarray(value).tolist() for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "ClipStatistics":
        arrays = {name: np.asarray(stored[name]) for name in ("latent_sum_C", "latent_square_C")}
        return cls(**{**stored, **arrays})


def windows_of(clip: Clip, config: WindowConfig) -> list[Window]:
    """The windows that `ClipEncoder.windows` will give for `clip`, known without opening it."""
    return cut_windows(clip.frames, config.frames, config.stride, config.image_stride)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenClip:
    """A clip's frames uint8 [T, H, W, 3] at the size of its windows, what else is read of it, and which of it is to be
    encoded: single frames for references, and its windows.
    """

    clip: Clip
    frames: np.ndarray
    text: EncodedText
    speech: np.ndarray | None
    first_speech: int
    keypoints: np.ndarray | None
    windows: tuple[Window, ...]
    references: Mapping[Window, tuple[int, ...]]

    @property
    def size(self) -> tuple[int, int]:
        return self.frames.shape[1], self.frames.shape[2]

    @property
    def pictures(self) -> list[Window]:
        return [Window(frame, 1) for frame in sorted({f for picked in self.references.values() for f in picked})]

    def batches(self, windows: Sequence[Window]) -> Iterator["_Batch"]:
        """Consecutive windows of one length, as many as a device takes at once."""
        for frames, same in itertools.groupby(windows, lambda window: window.frames):
            count = _batch_size(frames, *self.size)
            while chosen := list(itertools.islice(same, count)):
                yield _Batch(self, chosen, count)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Windows of a clip, `size` of them at most."""

    opened: OpenClip
    windows: list[Window]
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.windows[0].frames, *self.opened.size)

    def frames(self) -> np.ndarray:
        """uint8 [B, T, H, W, 3]; made when its turn comes, as windows may overlap."""
        return np.stack([self.opened.frames[window.start : window.end] for window in self.windows])


@dataclasses.dataclass(slots=True, eq=False)
class ClipLatents:
    """float16 latents of a clip's pictures [H, W, C], by frame, and of its windows [F, H, W, C]."""

    pictures: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    windows: dict[Window, np.ndarray] = dataclasses.field(default_factory=dict)
    statistics: ClipStatistics = dataclasses.field(default_factory=ClipStatistics)


class ClipEncoder:
    """Encodes clips: `open` reads one, `latents` puts batches of several side by side on the devices, `windows` makes
    the records of one. A batch has windows of one clip, so that a record is a function of its clip alone.
    """

    def __init__(
        self,
        sets: str | os.PathLike[str],
        codec: VideoCodec,
        text: TextEncoder,
        speech: SpeechEncoder | None,
        config: WindowConfig,
        max_text_tokens: int,
        round_trip_share: float = 1.0,
        *,
        devices: int = 1,
    ):
        """round_trip_share: of the windows, which of them by a hash of their ids, that are decoded again. devices: so
        many share what the codec is given (`VideoCodec.over`).
        """
        self._round_trip_share = round_trip_share
        self._sets, self._config, self._max_text_tokens = sets, config, max_text_tokens
        self._table = table_folder(sets)
        self._codec, self._text, self._speech, self._devices = codec, text, speech, devices

    def open(self, clip: Clip) -> OpenClip:
        """Reads a clip; what is wrong with its file is raised here."""
        size = fit_size(clip.height, clip.width, self._config.area)
        frames = self._frames(clip, size)
        text = self._text.encode([clip.caption], self._max_text_tokens)
        speech, first = self._speech_rows(clip)
        keypoints = None
        if Condition.POSE in clip.conditions:
            keypoints = to_token_units(load_landmarks(self._sets, clip).keypoints_TJ3, (clip.height, clip.width), size)
        windows = tuple(windows_of(clip, self._config))
        return OpenClip(
            clip=clip,
            frames=frames,
            text=text,
            speech=speech,
            first_speech=first,
            keypoints=keypoints,
            windows=windows,
            references={window: self._reference_frames(clip, window) for window in windows},
        )

    def latents(self, clips: Sequence[OpenClip]) -> list[ClipLatents]:
        """What the codec makes of the clips, batches of one shape side by side."""
        found = {id(clip): ClipLatents() for clip in clips}
        of_pictures = [batch for clip in clips for batch in clip.batches(clip.pictures)]
        of_windows = [batch for clip in clips for batch in clip.batches(clip.windows)]
        for batch, latents in self._on_devices(self._encode, of_pictures, _Batch.frames):
            pictures = found[id(batch.opened)].pictures
            pictures |= {one.start: latent[0] for one, latent in zip(batch.windows, latents, strict=True)}
        made = dict(self._on_devices(self._encode, of_windows, _Batch.frames))
        checked = {batch: some for batch in of_windows if (some := self._checked(batch)).any()}
        # Decoded frames are four times the clip's bytes: of each batch its error stays.
        errors = {
            batch: _squared_error(frames[checked[batch]], batch.frames()[checked[batch]])
            for batch, frames in self._on_devices(self._decode, list(checked), made.__getitem__)
        }
        for batch in of_windows:
            own = found[id(batch.opened)]
            own.windows |= dict(zip(batch.windows, made[batch], strict=True))
            own.statistics.add(_statistics(made[batch], *errors.get(batch, (0, 0.0))))
        return [found[id(clip)] for clip in clips]

    def _checked(self, batch: _Batch) -> np.ndarray:
        """Which of its windows are decoded again, bool [n]."""
        clip_id, share = batch.opened.clip.clip_id, self._round_trip_share
        return np.array([_chosen(window.window_id(clip_id), share) for window in batch.windows])

    def windows(self, opened: OpenClip, latents: ClipLatents) -> Iterator[EncodedWindow]:
        """A clip's windows, in the order of `windows_of`."""
        clip, (height, width), text = opened.clip, opened.size, opened.text
        for window in opened.windows:
            latent = latents.windows[window]
            picked = [latents.pictures[frame] for frame in opened.references[window]]
            audio, audio_valid = self._slice(opened.speech, opened.first_speech, window, self._audio_width)
            points, points_valid = self._slice(opened.keypoints, 0, window, (NUM_KEYPOINTS, 3))
            record = WindowRecord(
                window_id=window.window_id(clip.clip_id),
                clip_id=clip.clip_id,
                video=file_names.printable(clip.video),
                frames=window.frames,
                eligible=self._eligible(clip, window, bool(picked), audio_valid, points).bits,
                latents_FHWC=latent,
                references_RHWC=np.stack(picked) if picked else np.zeros((0, *latent.shape[1:]), np.float16),
                text=clip.caption,
                text_SE=text.tokens[0].astype(np.float16),
                pooled_E=text.pooled[0].astype(np.float16),
                audio_TE=audio.astype(np.float16),
                audio_valid_T=audio_valid,
                keypoints_TJ3=points.astype(np.float16),
                keypoints_valid_T=points_valid,
            )
            yield EncodedWindow(record=record, window=window, height=height, width=width, split=clip.split)

    def _on_devices(
        self,
        function: Callable[[np.ndarray], np.ndarray],
        batches: Sequence[_Batch],
        load: Callable[[_Batch], np.ndarray],
    ) -> Iterator[tuple[_Batch, np.ndarray]]:
        """Each batch and what the function makes of its rows, `load(batch)`, by shape: as many of one shape as there
        are devices go into one call.
        """
        for shape in dict.fromkeys(batch.shape for batch in batches):
            same = [batch for batch in batches if batch.shape == shape]
            for begin in range(0, len(same), self._devices):
                chosen = same[begin : begin + self._devices]
                filled = [_padded(load(batch), shape[0]) for batch in chosen]
                rows = function(_padded(np.concatenate(filled), self._devices * shape[0]))
                for k, batch in enumerate(chosen):
                    yield batch, rows[k * shape[0] :][: len(batch.windows)]

    def _encode(self, frames_BTHW3: np.ndarray) -> np.ndarray:
        """float16 latents."""
        return np.asarray(self._codec.encode(frames_BTHW3.astype(np.float32) / 127.5 - 1)).astype(np.float16)

    def _decode(self, latents_BFHWC: np.ndarray) -> np.ndarray:
        return np.asarray(self._codec.decode(latents_BFHWC.astype(np.float32)))

    def _frames(self, clip: Clip, size: tuple[int, int]) -> np.ndarray:
        """uint8 [T, H, W, 3] of the clip."""
        path = clip.video_path(self._table)
        frames = media_omnihuman.read_video(path, size=size, start_s=clip.start_s, duration_s=clip.seconds)
        if len(frames) != clip.frames:
            raise ValueError(
                f"{path}: clip {clip.clip_id} has {clip.frames} frames, {len(frames)} were read; run curate again"
            )
        return frames

    def _reference_frames(self, clip: Clip, window: Window) -> tuple[int, ...]:
        if Condition.REFERENCE not in clip.conditions:
            return ()
        # Four times as many as a window takes: what a window covers still leaves a choice.
        spacing = max(1, clip.frames // (4 * self._config.references))
        return reference_frames(clip.frames, window, self._config.references, spacing)

    @property
    def _audio_width(self) -> tuple[int]:
        return (len(self._speech.layers) * self._speech.width if self._speech else 0,)

    def _speech_rows(self, clip: Clip) -> tuple[np.ndarray | None, int]:
        """Features of the clip and of up to `margin` frames of its video around it, and the clip's frame of the first
        row.
        """
        if self._speech is None or Condition.AUDIO not in clip.conditions:
            return None, 0
        path = clip.video_path(self._table)
        begin = max(0, clip.start_frame - self._config.margin)
        # The last frame's sound may end a few samples early, the video's own length being no multiple of a frame.
        whole = round(media_omnihuman.probe(path).duration_s * SAMPLE_RATE_HZ) // _SAMPLES
        end = max(clip.end_frame, min(clip.end_frame + self._config.margin, whole))
        sound = media_omnihuman.read_audio(path, SAMPLE_RATE_HZ, begin / FPS, (end - begin) / FPS)
        if sound is None:
            raise ValueError(f"{path}: has no sound, but clip {clip.clip_id} is eligible for audio; run curate again")
        return self._speech.features(sound, end - begin), begin - clip.start_frame

    def _slice(
        self, rows: np.ndarray | None, first: int, window: Window, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        if rows is None or window.frames == 1:
            return np.zeros((0, *shape), np.float32), np.zeros(0, bool)
        return with_margins(rows, window.start, window.frames, self._config.margin, first=first)

    def _eligible(
        self, clip: Clip, window: Window, has_reference: bool, audio_valid_T: np.ndarray, keypoints_TJ3: np.ndarray
    ) -> ConditionSet:
        """What the clip is eligible for, less what this window has no data for; motion is not in a single frame."""
        eligible = clip.conditions
        own = slice(self._config.margin, self._config.margin + window.frames)
        if not clip.caption:
            eligible = eligible.without(Condition.TEXT)
        if not has_reference:
            eligible = eligible.without(Condition.REFERENCE)
        if not len(audio_valid_T) or not audio_valid_T[own].all():
            eligible = eligible.without(Condition.AUDIO)
        found = np.asarray((keypoints_TJ3[own, :, 2] > 0).any(axis=1))
        if not len(found) or found.mean() < MIN_POSE_SHARE:
            eligible = eligible.without(Condition.POSE)
        return eligible


def _chosen(window_id: str, share: float) -> bool:
    return int(hashlib.sha256(window_id.encode()).hexdigest()[:8], 16) < share * 2**32


def _batch_size(frames: int, height: int, width: int) -> int:
    return max(1, min(_MAX_BATCH, _BATCH_PIXELS // (frames * height * width)))


def _statistics(latents_BFHWC: np.ndarray, values: int, squared_error: float) -> ClipStatistics:
    wide = latents_BFHWC.astype(np.float64)
    channels = tuple(range(wide.ndim - 1))
    return ClipStatistics(
        values=values,
        squared_error=squared_error,
        latents=wide[..., 0].size,
        latent_sum_C=wide.sum(axis=channels),
        latent_square_C=np.square(wide).sum(axis=channels),
    )


def _squared_error(decoded_BTHW3: np.ndarray, frames_BTHW3: np.ndarray) -> tuple[int, float]:
    """(values, squared error)."""
    pixels = np.clip(np.rint((decoded_BTHW3 + 1) * 127.5), 0, 255)
    return pixels.size, float(np.square((pixels - frames_BTHW3) / 255).sum())


def _padded(batch: np.ndarray, size: int) -> np.ndarray:
    """The batch filled up with copies of its last element."""
    return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


def empty_prompt(text: TextEncoder, max_tokens: int) -> EncodedText:
    """What an absent text is replaced by (contract, "Absent means absent")."""
    return text.encode([""], max_tokens)
