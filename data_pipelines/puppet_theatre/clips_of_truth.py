"""The rows that curate would write if it made no mistake: `omnihuman encode` reads them as it reads curate's.

For training sets: MediaPipe takes longer to look at a clip than it takes to draw and train on it. Tags, keypoints and
mouths are the truth's; `omnihuman curate` on the same videos gives what a filter makes of them.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipelines.curate.clips import Clip, Landmarks
from data_pipelines.curate.known_clips import write_clips
from data_pipelines.puppet_theatre.truth import Truth
from omnihuman_jax.conditions import Condition
from omnihuman_jax.runtime import files
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import FPS


def write_clips_of_truth(out: Path, names: Iterable[str]) -> list[Clip]:
    """Writes `out/clips` from `out/videos` and `out/truth`: a row for every shot of these clips."""
    rows = []

    def told() -> Iterator[tuple[Clip, Landmarks]]:
        for name in names:
            for clip, landmarks in _rows(out, name):
                rows.append(clip)
                yield clip, landmarks

    write_clips(out / "clips", told())
    return rows


def _rows(out: Path, name: str) -> list[tuple[Clip, Landmarks]]:
    video, truth = out / "videos" / f"{name}.mp4", Truth.load(out / "truth" / f"{name}.npz")
    probe, digest, rows = media_omnihuman.probe(video), files.file_sha256(video), []
    for number, (start, end) in enumerate(truth.facts["shots"]):
        eligible = tuple(truth.facts["eligible"])
        clip = Clip(
            clip_id=f"{name}-{number:03d}",
            video=video.name,
            path=f"../videos/{video.name}",
            sha256=digest,
            start_frame=start,
            end_frame=end,
            fps=FPS,
            height=probe.height,
            width=probe.width,
            has_audio=bool(probe.audio_rate),
            caption=video.with_suffix(".txt").read_text().strip(),
            caption_source="file",
            scores={},
            eligible=eligible,
            reasons=_reasons(truth, eligible),
            split=truth.facts["plan"]["split"],
        )
        rows.append((clip, truth.landmarks(start, end)))
    return rows


def _reasons(truth: Truth, eligible: tuple[str, ...]) -> dict[str, dict[str, object]]:
    fault = truth.facts["plan"]["fault"]
    why = f"planted: {fault}" if fault != "none" else "framing"
    missing = [c.label for c in Condition if c.label not in eligible]
    return {label: {"reason": why, "score": 1.0, "threshold": 0.0} for label in missing}
