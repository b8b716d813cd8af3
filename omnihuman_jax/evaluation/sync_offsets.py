"""How far a face and a voice are apart, over offsets between them, whatever gives the features: SyncNet's own measure.

25 frames a second and 16 kHz: five frames of a face (224 x 224, blue first, 0 .. 255) against 0.2 s of cepstra
(`mfcc`), every frame. Sync-D is the lowest mean distance over offsets of +-15 frames, Sync-C the median of those means
minus the lowest.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from omnihuman_jax.evaluation.mfcc import COUNT, mfcc
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

SIZE = 224
FRAMES = 5
CEPSTRA = 20
OFFSETS = 15
_PER_FRAME = 4  # cepstra of a frame
# Of five frames each of a face, float32 [B, 5, 224, 224, 3], and of cepstra, float32 [B, 13, 20]: features of both,
# float32 [B, D].
Features: TypeAlias = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, slots=True)
class Sync:
    """confidence: Sync-C. distance: Sync-D. offset: frames that the sound is early, at the lowest distance."""

    confidence: float
    distance: float
    offset: int


def mean_distances(face_ND: np.ndarray, sound_ND: np.ndarray, offsets: int = OFFSETS) -> np.ndarray:
    """Mean Euclidean distance over all frames at each offset, [2 offsets + 1] float64; beyond the ends stand zeros.

    A millionth is added to each difference, as the reference implementation's distance does.
    """
    face, sound = np.asarray(face_ND, np.float64), np.asarray(sound_ND, np.float64)
    if face.shape != sound.shape or face.ndim != 2 or not len(face):
        raise ValueError(f"features {face.shape} of faces and {sound.shape} of sound: one row for each frame, of both")
    padded = np.pad(sound, ((offsets, offsets), (0, 0)))
    windows = [padded[k : k + len(face)] for k in range(2 * offsets + 1)]
    return np.array([np.linalg.norm(face - window + 1e-6, axis=1).mean() for window in windows])


def sync_of(face_ND: np.ndarray, sound_ND: np.ndarray, offsets: int = OFFSETS) -> Sync:
    """The three numbers of a video out of its features."""
    means = mean_distances(face_ND, sound_ND, offsets)
    best = int(means.argmin())
    # The lower one of two middle values, as the reference takes it; the number of offsets is odd, so there is one.
    return Sync(float(np.median(means) - means[best]), float(means[best]), offsets - best)


def measure(features: Features, faces_THW3: np.ndarray, wave_N: np.ndarray, batch: int = 8) -> Sync:
    """Of a face cut out of every frame ([T, 224, 224, 3] RGB uint8, 25 a second) and its sound at 16 kHz.

    features: is given `batch` frames at a time, always so many.

    ValueError where the shorter of the two has fewer than 6 frames.
    """
    count = min(len(faces_THW3), len(wave_N) * FPS // SAMPLE_RATE_HZ) - FRAMES
    if count < 1:
        raise ValueError(f"SyncNet needs {FRAMES + 1} frames with sound or more, not {count + FRAMES}")
    cepstra_CT = mfcc(wave_N).T
    cepstra_CT = np.pad(cepstra_CT, ((0, 0), (0, max(0, _PER_FRAME * count + CEPSTRA - cepstra_CT.shape[1]))), "edge")
    blue_first = np.asarray(faces_THW3)[..., ::-1]
    found = []
    for start in range(0, count, batch):
        places = [min(place, count - 1) for place in range(start, start + batch)]
        faces = np.stack([blue_first[p : p + FRAMES] for p in places]).astype(np.float32)
        found.append(features(faces, np.stack([_piece(cepstra_CT, p) for p in places]).astype(np.float32)))
    face_ND, sound_ND = (np.concatenate(parts)[:count] for parts in zip(*found, strict=True))
    return sync_of(face_ND, sound_ND)


def _piece(cepstra_CT: np.ndarray, frame: int) -> np.ndarray:
    piece = cepstra_CT[:, _PER_FRAME * frame :][:, :CEPSTRA]
    assert piece.shape == (COUNT, CEPSTRA)
    return piece
