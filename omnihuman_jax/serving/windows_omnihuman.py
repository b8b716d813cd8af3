"""Windows in time: the clock, frames and latents, the features that a latent sees, the segments of a long video.

numpy alone, and no file beside this one: the trainer imports it from its package, an exported folder carries it as it
is. What is said here is said nowhere else; `pictures_omnihuman.py` has the other two dims, height and width.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

FPS = 25
SAMPLE_RATE_HZ = 16_000
TEMPORAL_STRIDE = 4
MOTION_FRAMES = 5
MOTION_LATENTS = 2
SOUND_CONTEXT_S = 1.0
"""Speech encoders look around: features near the end of what is sampled should not see the sound stop."""
NO_FRAME = np.iinfo(np.int32).min
"""In a `frame_index`: a place of the first latent, which has one frame only."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class WindowInput:
    """One window of 1 + 4n frames as the model is to see it. What is not used may be None.

    latents_FHWC, reference_HWC   normalised latents; the reference has the size of a latent frame
    text_SE, pooled_E             embedding of the text to use: the empty prompt's where there is no text
    audio_TE, audio_valid_T       speech features with `margin` frames on each side, and which rows are real
    keypoints_TJ3, .._valid_T     keypoints in token units, likewise
    motion                        the first 2 latents are given clean
    slot                          number among the step's windows, or of the segment: what its noise is keyed on
    """

    latents_FHWC: np.ndarray
    text_SE: np.ndarray
    pooled_E: np.ndarray
    reference_HWC: np.ndarray | None = None
    audio_TE: np.ndarray | None = None
    audio_valid_T: np.ndarray | None = None
    keypoints_TJ3: np.ndarray | None = None
    keypoints_valid_T: np.ndarray | None = None
    margin: int = 0
    motion: bool = False
    slot: int = 0

    @property
    def frames(self) -> int:
        return 1 + TEMPORAL_STRIDE * (len(self.latents_FHWC) - 1)


def latent_frames_of(frames: int) -> int:
    """Latent frames of a window of `frames` = 1 + 4n pixel frames; ValueError otherwise."""
    if frames < 1 or (frames - 1) % TEMPORAL_STRIDE:
        raise ValueError(
            f"a window has 1 + 4n frames, not {frames}; nearest below is {max(1, frames - (frames - 1) % 4)}"
        )
    return 1 + (frames - 1) // TEMPORAL_STRIDE


def frames_of_latent(index: int) -> range:
    """Pixel frames that latent `index` of a window covers: frame 0, or frames 4i-3 .. 4i (contract)."""
    if index == 0:
        return range(1)
    return range(TEMPORAL_STRIDE * index - 3, TEMPORAL_STRIDE * index + 1)


def neighbours_of(slots: int) -> int:
    """m of an index row with `slots` = 4 + 2m entries (the latent's frames and m neighbours on each side); 0 slots:
    0.
    """
    if slots and (slots < TEMPORAL_STRIDE or slots % 2):
        raise ValueError(f"a latent frame sees 4 + 2m frames, not {slots}")
    return max(0, slots - TEMPORAL_STRIDE) // 2


def frame_index(frames: int, slots: int) -> np.ndarray:
    """Frames of a window that each latent sees: int32 [F, slots], relative to the window's first; NO_FRAME where there
    is none.

    Entries [0, m) are the m frames before the latent's own, [m, m + 4) its own, [m + 4, slots) the m after. The first
    latent has one frame only: it takes the last of the four places, so that a place always means the same distance.
    """
    m = neighbours_of(slots)
    latents = latent_frames_of(frames)
    first = frames_of_latent(1).start - m  # of the second latent; each one after begins a stride later
    starts = first + TEMPORAL_STRIDE * np.arange(-1, latents - 1, dtype=np.int32)
    index = starts[:, None] + np.arange(slots, dtype=np.int32)
    index[0, :m] = np.arange(-m, 0)
    index[0, m : m + TEMPORAL_STRIDE - 1] = NO_FRAME
    return index


def row_index(frames: int, slots: int, margin: int, valid_T: np.ndarray) -> np.ndarray:
    """Rows of a window's [frames + 2 margin] features that each latent sees, int32 [F, slots]; -1 for none.

    Row r is frame r - margin. None are: the first latent's missing frames, frames beyond the margin, rows that are not
    valid (beyond the borders of the clip, or of its sound).
    """
    if len(valid_T) != frames + 2 * margin:
        raise ValueError(
            f"{len(valid_T)} rows for {frames} frames and a margin of {margin}: expected {frames + 2 * margin}"
        )
    row = frame_index(frames, slots) + np.int32(margin)  # NO_FRAME stays far below 0
    row[(row < 0) | (row >= len(valid_T))] = len(valid_T)
    row[~np.append(np.asarray(valid_T, bool), False)[row]] = -1
    return row


def with_margins(
    rows_T: np.ndarray, start: int, frames: int, margin: int, *, first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of frames start .. start + frames and of `margin` frames on each side: ([frames + 2 margin, ...], bool
    [frames + 2 margin]).

    `rows_T[0]` belongs to frame `first` (negative: rows from before frame 0). Frames without a row are zero and False.
    """
    wanted = np.arange(start - margin, start + frames + margin) - first
    valid = (wanted >= 0) & (wanted < len(rows_T))
    out = np.zeros((len(wanted), *rows_T.shape[1:]), rows_T.dtype)
    out[valid] = rows_T[wanted[valid]]
    return out, valid


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Frames `start` .. `start + frames` of the video; the first `overlap` of them are the segment before's last."""

    index: int
    start: int
    frames: int
    overlap: int

    @property
    def stop(self) -> int:
        return self.start + self.frames


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Signals:
    """What drives a video, on its clock: row i of audio and keypoints is frame i.

    latent_shape       of a latent frame: (height / 8, width / 8, channels)
    reference_HWC      latent of the reference image, or None without one
    text_SE, pooled_E  embedding of the prompt, or of the empty prompt without one (has_text)
    audio_TE           speech features
    keypoints_TJ3      x, y in tokens of the video, and confidence
    wave               the driving sound itself
    """

    frames: int
    latent_shape: tuple[int, int, int]
    reference_HWC: np.ndarray | None
    text_SE: np.ndarray
    pooled_E: np.ndarray
    has_text: bool
    audio_TE: np.ndarray | None
    keypoints_TJ3: np.ndarray | None
    wave: np.ndarray | None

    def window(self, segment: Segment, motion_FHWC: np.ndarray | None, margin: int) -> WindowInput:
        """A segment as the model is to see it.

        `motion_FHWC`: latents of the 5 motion frames, which become its first 2; None for the first segment.
        """
        latents = np.zeros((latent_frames_of(segment.frames), *self.latent_shape), np.float32)
        if motion_FHWC is not None:
            latents[:MOTION_LATENTS] = motion_FHWC
        cut = (segment.start, segment.frames, margin)
        audio = (None, None) if self.audio_TE is None else with_margins(self.audio_TE, *cut)
        keypoints = (None, None) if self.keypoints_TJ3 is None else with_margins(self.keypoints_TJ3, *cut)
        return WindowInput(
            latents_FHWC=latents,
            text_SE=self.text_SE,
            pooled_E=self.pooled_E,
            reference_HWC=self.reference_HWC,
            audio_TE=audio[0],
            audio_valid_T=audio[1],
            keypoints_TJ3=keypoints[0],
            keypoints_valid_T=keypoints[1],
            margin=margin,
            motion=motion_FHWC is not None,
            slot=segment.index,
        )


def segment_schedule(total_frames: int, segment_frames: int) -> tuple[Segment, ...]:
    """Segments of one length that cover frames 0 .. total_frames, each overlapping the one before by 5.

    One segment is cut to the shortest valid length when that covers the video; ValueError when a segment could not
    bring new frames.
    """
    latent_frames_of(segment_frames)
    if total_frames < 1:
        raise ValueError(f"a video has at least 1 frame, not {total_frames}")
    if total_frames <= segment_frames:
        frames = 1 + TEMPORAL_STRIDE * math.ceil((total_frames - 1) / TEMPORAL_STRIDE)
        return (Segment(index=0, start=0, frames=frames, overlap=0),)
    stride = segment_frames - MOTION_FRAMES
    if stride < 1:
        raise ValueError(
            f"{segment_frames} frames a segment leave none beside its {MOTION_FRAMES} motion frames: use 9 or more"
        )
    count = 1 + math.ceil((total_frames - segment_frames) / stride)
    return tuple(
        Segment(index=i, start=i * stride, frames=segment_frames, overlap=MOTION_FRAMES if i else 0)
        for i in range(count)
    )


def frames_of_seconds(seconds: float) -> int:
    """Frames of `seconds` at 25 fps, rounded up so that the picture is never shorter than asked."""
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"seconds must be > 0, not {seconds}")
    # A microsecond of slack: 1.2 s read from a sound file must not become 31 frames by a rounding error.
    return max(1, math.ceil(seconds * FPS - 1e-6 * FPS))


def frames_to_make(seconds: float | None, available: Mapping[str, int], segment_frames: int) -> int:
    """Frames of the video: those of `seconds`, or of the shortest driving file, or one segment without either.

    `available`: driving file, as its error is to name it -> frames that it lasts. ValueError if one of them lasts less
    than a frame, or less than `seconds`.
    """
    for name, count in available.items():
        if not count:
            raise ValueError(f"{name} is shorter than one frame ({1 / FPS:.2f} s): give a longer file")
    if seconds is None:
        return min(available.values(), default=segment_frames)
    frames = frames_of_seconds(seconds)
    for name, count in available.items():
        # Half a frame short is a rounding of the file's clock, not a missing second.
        if count + 1 < frames:
            raise ValueError(
                f"{name} lasts {count / FPS:.2f} s, shorter than --seconds {seconds:g}: give a longer file, or"
                f" --seconds {count / FPS:.2f}"
            )
    return frames


def whole_frames(wave_16k: np.ndarray, num_frames: int) -> np.ndarray:
    """The sound cut, or padded with silence, to `num_frames` frames; ValueError if it is none."""
    wave = np.asarray(wave_16k, np.float32)
    if wave.ndim != 1 or num_frames < 1 or not np.isfinite(wave).all():
        raise ValueError(
            f"sound {wave.shape} for {num_frames} frames: give finite mono samples [N] and one frame at least"
        )
    samples = num_frames * SAMPLE_RATE_HZ // FPS
    return np.pad(wave[:samples], (0, max(0, samples - len(wave))))


def at_frame_rate(states_ISE: np.ndarray, num_frames: int) -> np.ndarray:
    """A speech encoder's hidden states, a whole number of them a frame -> [num_frames, layers * width]: the mean over a
    frame, each layer of zero mean and unit variance within it.

    No parameters [D]: layers differ threefold in scale, and the first linear layer of the audio adapter is initialised
    for unit variance.
    """
    layers, _, width = states_ISE.shape
    frames = states_ISE.reshape(layers, num_frames, -1, width).mean(axis=2)
    frames = frames - frames.mean(axis=-1, keepdims=True)
    frames = frames / np.sqrt(np.square(frames).mean(axis=-1, keepdims=True) + 1e-5)
    return np.ascontiguousarray(frames.transpose(1, 0, 2)).reshape(num_frames, -1)
