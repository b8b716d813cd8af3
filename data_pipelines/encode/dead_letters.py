"""Clips that cannot be encoded: left out whole, each with its reason, while the others go on."""

from pathlib import Path

from data_pipelines.curate.clips import Clip
from data_pipelines.encode.clip_encoder import ClipEncoder, ClipStatistics, EncodedWindow
from omnihuman_jax.data.records import DatasetSpec
from omnihuman_jax.runtime import file_names, files


class DeadLetters:
    """The clips that cannot be encoded, and why."""

    def __init__(self, table: Path) -> None:
        self._table = table
        self._hashes: dict[Path, str] = {}
        self._rows: list[dict[str, str]] = []

    def taken(self) -> list[dict[str, str]]:
        """The rows since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def encoded(
        self, encoder: ClipEncoder, clip: Clip, spec: DatasetSpec
    ) -> tuple[ClipStatistics, list[EncodedWindow]]:
        """All windows of a clip, or none."""
        try:
            self._check_video(clip)
            statistics, stream = encoder.encode(clip)
            windows = list(stream)
            for window in windows:
                window.record.validate(spec)
                window.record.check_finite()
            return statistics, windows
        except ImportError:  # of an extra that is not installed: no fault of any clip
            raise
        except Exception as problem:
            text = " ".join((str(problem) or type(problem).__name__).split())
            known = isinstance(problem, ValueError | FileNotFoundError)
            reason = file_names.printable(text if known else f"{type(problem).__name__}: {text}")
            self._rows.append({"clip_id": clip.clip_id, "video": clip.video, "stage": "encode", "reason": reason})
            return ClipStatistics(), []

    def _check_video(self, clip: Clip) -> None:
        """The video is the one that curate looked at: its cuts, tags and landmarks are worth nothing for another."""
        path = clip.video_path(self._table)
        if path not in self._hashes:
            self._hashes[path] = files.file_sha256(path)
        if (found := self._hashes[path]) != clip.sha256:
            raise ValueError(
                f"{path}: changed since curate (sha256 {found[:12]}..., was {clip.sha256[:12]}...); run curate again"
            )
