"""A list of videos to make, a line of JSON each: what is there already is kept, what cannot be made is reported.

    {"name": "ann", "image": "ann.png", "audio": "hello.wav", "text": "A woman speaks.", "seed": 3}

Paths are relative to the list's folder. Beside each video lies a receipt with all that it depends on.
"""

import collections
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.runtime.worker_share import WorkerShare
from omnihuman_jax.sampling.driving import Request
from omnihuman_jax.sampling.kept_samples import weights_digest
from omnihuman_jax.sampling.trained_run import TrainedRun

_FILES = ("image", "audio", "pose")
_KEYS = ("name", *_FILES, "text", "seconds", "size", "seed")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoJob:
    """A line: its video's name and what drives it, or why it cannot be made (`request` is None then)."""

    line: int
    name: str
    request: Request | None = None
    error: str = ""


def read_manifest(
    path: Path, *, seed: int = 0, text_encoder: str | None = None, speech_encoder: str | None = None
) -> list[VideoJob]:
    """Every line that is not blank, bad ones with their error.

    Args:
        seed: of lines that name none.
        text_encoder, speech_encoder: as in `Request`, of all.

    Raises:
        FileNotFoundError, ValueError: no such file, or one without lines.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--manifest {path}: no such file")
    lines = [(n, text) for n, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if text.strip()]
    if not lines:
        raise ValueError(f"--manifest {path}: no line in it")
    shared = Request(seed=seed, text_encoder=text_encoder, speech_encoder=speech_encoder)
    jobs = [_job(number, text, path.parent, shared) for number, text in lines]
    twice = {name for name, count in collections.Counter(job.name for job in jobs).items() if name and count > 1}
    return [
        dataclasses.replace(job, request=None, error=f"name {job.name!r} is given twice") if job.name in twice else job
        for job in jobs
    ]


def _job(line: int, text: str, folder: Path, shared: Request) -> VideoJob:
    try:
        row = json.loads(text)
    except ValueError as error:
        return VideoJob(line=line, name="", error=f"no JSON ({error})")
    if not isinstance(row, dict):
        return VideoJob(line=line, name="", error='no JSON object like {"name": ..., "audio": ...}')
    name = row.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return VideoJob(line=line, name="", error=f"name {name!r}: letters, digits, dots, - and _ make the file's name")
    try:
        request = _request(row, folder, shared)
        request.validate()
    except (ValueError, FileNotFoundError) as error:
        return VideoJob(line=line, name=name, error=str(error))
    return VideoJob(line=line, name=name, request=request)


def _request(row: dict[str, Any], folder: Path, shared: Request) -> Request:
    if unknown := sorted(set(row) - set(_KEYS)):
        raise ValueError(f"unknown {', '.join(unknown)}; a line may have {', '.join(_KEYS)}")
    for key, kinds in (("seconds", (int, float)), ("seed", (int,)), *((k, (str,)) for k in (*_FILES, "text", "size"))):
        if row.get(key) is not None and (not isinstance(row[key], kinds) or isinstance(row[key], bool)):
            raise ValueError(f"{key} is {row[key]!r}: give {'a text' if str in kinds else 'a number'}")
    size = None
    if row.get("size") is not None:
        sides = row["size"].lower().split("x")
        if len(sides) != 2 or not all(side.isdigit() for side in sides):
            raise ValueError(f"size {row['size']!r} is not HEIGHTxWIDTH, e.g. 96x80")
        size = (int(sides[0]), int(sides[1]))
    named: dict[str, Any] = {key: folder / local(row[key], key) for key in _FILES if row.get(key) is not None}
    named |= {key: row[key] for key in ("text", "seconds", "seed") if row.get(key) is not None}
    return dataclasses.replace(shared, **named, size=size)


class JobsReport:
    """The folder that the videos go to: NAME.mp4, NAME.json (its receipt), and report.jsonl, a line a job; of workers
    that share the jobs, each has a report of its own.
    """

    def __init__(self, folder: Path, run: TrainedRun, config: SamplingConfig, share: WorkerShare | None = None) -> None:
        name = f"report-{share.index:03d}-of-{share.count:03d}.jsonl" if share else "report.jsonl"
        self.folder, self.path = folder, folder / name
        self._made_by = {
            "run": str(run.directory.resolve()),
            "step": run.step,
            "weights": run.weights,
            "sampling": dataclasses.asdict(config),
            "weights_sha256": weights_digest(run.params).hex(),
        }
        self._rows: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(self.path, "")  # of a share without a line, too

    def video(self, job: VideoJob) -> Path:
        return self.folder / f"{job.name}.mp4"

    def keeps(self, job: VideoJob) -> bool:
        """Whether the job's video is there, of the same inputs, checkpoint and sampling."""
        try:
            receipt = json.loads((self.folder / f"{job.name}.json").read_text())
        except (OSError, ValueError):
            return False
        return bool(receipt == self._receipt(job)) and self.video(job).is_file()

    def add(self, job: VideoJob, status: str, error: str = "", **more: Any) -> None:
        """Notes what became of a job: made, kept or failed."""
        if status == "made":
            files.write_text(self.folder / f"{job.name}.json", json.dumps(self._receipt(job)) + "\n")
        row = {"line": job.line, "name": job.name, "status": status, **({"error": error} if error else {}), **more}
        self._rows.append(row)
        files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in self._rows))

    def failures(self) -> list[str]:
        """A line a job that could not be made."""
        return [f"line {r['line']} {r['name']}: {r['error']}" for r in self._rows if r["status"] == "failed"]

    def summary(self) -> str:
        counts = collections.Counter(row["status"] for row in self._rows)
        return ", ".join(f"{counts[status]} {status}" for status in ("made", "kept", "failed"))

    def _receipt(self, job: VideoJob) -> dict[str, Any]:
        assert job.request is not None
        values = dataclasses.asdict(job.request)
        for key in _FILES:
            if values[key] is not None:
                values[key] = hashlib.sha256(Path(values[key]).read_bytes()).hexdigest()
        plain: dict[str, Any] = json.loads(json.dumps({**self._made_by, "request": values}))
        return plain
