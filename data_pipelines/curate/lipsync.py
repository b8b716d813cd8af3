"""Does the mouth move with the sound? A proxy by phones and lip aperture, not SyncNet.

A small phone recogniser (hama) says which phone sounds when; each phone has a typical opening of the mouth; that curve
is correlated with the measured aperture of the lips over shifts of +-1 s. As with SyncNet, the offset is where the
match is best and the confidence is the best match less the median one. On the two talking clips of the sample media,
whole, their own sound gives 0.48 and 0.64, and the other's sound, or either on a silent clip's face, 0.23 to 0.30; cut
to 6 s the same speaker's other recording, which begins with the same words, reaches 0.42, so a few seconds are weak
evidence. Good enough to tell dubbed or off-screen speech in clips of 8 s; its numbers are not comparable with Sync-C.
"""

import functools
from typing import Any

import numpy as np

from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

# Changes of what is computed; part of the key under which results are kept.
VERSION = 2

MAX_LAG_FRAMES = FPS
MIN_FRAMES = 3 * FPS
# The nominal level of speech in telephony tests; the recogniser must not depend on how loud a clip is.
_SPEECH_DBFS = -26.0
_GRID_HZ = 100
# A phone "lasts" until the next one is recognised; longer than this it is a pause.
_MAX_PHONE_S = 0.16
_SMOOTHING_S = 0.19
_CLOSED, _OTHER = 0.05, 0.25
# Set by hand from phonetics: open vowels 1, bilabials 0, labiodentals nearly closed.
_OPENNESS = {
    "ɑ": 1.0, "æ": 1.0, "a": 1.0, "aɪ": 0.9, "aʊ": 0.9, "ɔ": 0.8, "ʌ": 0.7, "ɛ": 0.7, "ə": 0.6, "e": 0.6, "o": 0.6,
    "eɪ": 0.6,
    "oʊ": 0.6, "ɝ": 0.4, "ɪ": 0.4, "i": 0.35, "ʊ": 0.35, "u": 0.3, "f": 0.1, "v": 0.1, "m": 0.0, "b": 0.0, "p": 0.0,
}  # fmt: skip


@functools.cache
def _recogniser() -> Any:
    try:
        from hama import ASRModel
    except ImportError as error:
        raise ImportError(
            f"the lip-sync score needs hama, which cannot be imported ({error}); pip install 'omnihuman-jax[curation]'"
        ) from error
    return ASRModel()


def phones(wave: np.ndarray) -> list[tuple[str, float, float]]:
    """(phone, start, end) in seconds, of mono float32 at 16 kHz; an end is at most 0.16 s after its start."""
    model = _recogniser()
    level = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
    if level == 0.0:
        return []
    wave = np.clip(wave * (10 ** (_SPEECH_DBFS / 20) / level), -1.0, 1.0).astype(np.float32)
    spans = model.phoneme_spans(model(wave, SAMPLE_RATE_HZ))
    return [(s.phoneme, s.start_ms / 1000, min(s.end_ms / 1000, s.start_ms / 1000 + _MAX_PHONE_S)) for s in spans]


def expected_openness(spoken: list[tuple[str, float, float]], seconds: float) -> np.ndarray:
    """Float64 at 100 Hz: how far the mouth is open while these phones sound, 0..1."""
    openness = np.full(max(1, round(seconds * _GRID_HZ)), _CLOSED)
    for phone, start, end in spoken:
        openness[int(start * _GRID_HZ) : int(end * _GRID_HZ)] = _OPENNESS.get(phone, _OTHER)
    kernel = np.hanning(round(_SMOOTHING_S * _GRID_HZ))
    half = len(kernel) // 2
    return np.convolve(np.pad(openness, half, "edge"), kernel / kernel.sum(), "valid")[: openness.size]


def match_by_lag(aperture_T: np.ndarray, openness: np.ndarray) -> np.ndarray:
    """Correlations [2 * MAX_LAG_FRAMES + 1] of the lips' aperture (25 fps, NaN without a face) with the sound later by
    the lag.
    """
    time_T = np.arange(aperture_T.size) / FPS
    grid = np.arange(openness.size) / _GRID_HZ
    matches = []
    for lag in range(-MAX_LAG_FRAMES, MAX_LAG_FRAMES + 1):
        at = time_T + lag / FPS
        used = np.isfinite(aperture_T) & (at >= 0) & (at <= grid[-1])
        seen, heard = aperture_T[used], np.interp(at[used], grid, openness)
        flat = used.sum() < MIN_FRAMES // 2 or seen.std() < 1e-6 or heard.std() < 1e-6
        matches.append(0.0 if flat else float(np.corrcoef(seen, heard)[0, 1]))
    return np.asarray(matches)


def lip_sync_scores(
    aperture_T: np.ndarray, wave: np.ndarray, track_aperture_TN: np.ndarray | None = None
) -> dict[str, float]:
    """speech_share, lip_sync_confidence, lip_sync_offset_s (the sound is late if positive) and lip_sync_match (its
    correlation); and with the lips of N tracks of faces those of `active_track`.

    A clip shorter than 3 s or without speech gets confidence 0: too little to tell.
    """
    spoken = phones(wave)
    speech_share = sum(end - start for _, start, end in spoken) / (aperture_T.size / FPS)
    scores = {"speech_share": float(min(1.0, speech_share))}
    scores |= dict(
        zip(("lip_sync_confidence", "lip_sync_offset_s", "lip_sync_match"), _match(aperture_T, spoken), strict=True)
    )
    if track_aperture_TN is not None:
        scores |= active_track(track_aperture_TN, spoken)
    return scores


def active_track(aperture_TN: np.ndarray, spoken: list[tuple[str, float, float]]) -> dict[str, float]:
    """Which of N tracks of faces speaks: active_track (its number, -1 for none), active_lip_sync_confidence,
    active_lip_sync_offset_s, and active_lead, its confidence less that of the best other (0 where there is no other).
    """
    found = [_match(aperture_T, spoken) for aperture_T in aperture_TN.T]
    order = sorted(range(len(found)), key=lambda track: (-found[track][0], track))
    best = found[order[0]] if order else (0.0, 0.0, 0.0)
    return {
        "active_track": float(order[0]) if best[0] > 0 else -1.0,
        "active_lip_sync_confidence": best[0],
        "active_lip_sync_offset_s": best[1],
        "active_lead": best[0] - found[order[1]][0] if len(order) > 1 else 0.0,
    }


def _match(aperture_T: np.ndarray, spoken: list[tuple[str, float, float]]) -> tuple[float, float, float]:
    """(confidence, offset in seconds, correlation at the offset)."""
    if aperture_T.size < MIN_FRAMES or not spoken:
        return 0.0, 0.0, 0.0
    matches = match_by_lag(aperture_T, expected_openness(spoken, aperture_T.size / FPS))
    best = int(matches.argmax())
    return float(matches[best] - np.median(matches)), (best - MAX_LAG_FRAMES) / FPS, float(matches[best])
