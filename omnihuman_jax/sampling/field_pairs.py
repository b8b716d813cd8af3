"""Pairs of a made and a true video: a folder that anybody may fill, or that a run's held-out windows fill.

DIR/made/NAME.mp4   DIR/true/NAME.mp4   of one size and length; with sound where lips are measured against it
DIR/pairs.jsonl     {"name": NAME, "person": WHO} a line; without it, every pair is of a person of its own
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data import packing
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import WindowRecord
from omnihuman_jax.data.window_index import TRAIN_SPLIT
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation import sheet
from omnihuman_jax.runtime import files
from omnihuman_jax.sampling import kept_samples, trained_run, window_inputs
from omnihuman_jax.sampling.clip_sounds import ClipSounds
from omnihuman_jax.sampling.sampler import finite, sampler_for
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

PAIRS_FILE = "pairs.jsonl"
DRIVES = {
    "audio": ConditionSet.of(Condition.REFERENCE, Condition.AUDIO),
    "pose": ConditionSet.of(Condition.REFERENCE, Condition.POSE),
    "all": ConditionSet.of(Condition.REFERENCE, Condition.AUDIO, Condition.POSE),
}
"""What a window is driven by, its text beside it: the paper's sets."""
_CRF = 10  # what the codec of the file does to the pictures is not what is measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairOfVideos:
    """Two files, and whose video it is."""

    name: str
    person: str
    made: Path
    true: Path


def read_pairs(folder: Path) -> list[PairOfVideos]:
    """The pairs of a folder, by name.

    Raises:
        FileNotFoundError, ValueError: no pairs, a video without its partner, or a line of pairs.jsonl that is none.
    """
    names = [{path.stem for path in (folder / side).glob("*.mp4")} for side in ("made", "true")]
    if not names[0] & names[1]:
        raise FileNotFoundError(f"{folder}: no pairs of made/NAME.mp4 and true/NAME.mp4")
    if alone := sorted(names[0] ^ names[1]):
        raise ValueError(f"{folder}: {', '.join(alone[:5])} {'has' if len(alone) == 1 else 'have'} no partner")
    people: dict[str, str] = {}
    if (folder / PAIRS_FILE).is_file():
        for number, line in enumerate((folder / PAIRS_FILE).read_text().splitlines(), 1):
            try:
                row = json.loads(line)
                people[str(row["name"])] = str(row["person"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{folder / PAIRS_FILE}: line {number} is no {{name, person}} ({error!r}): mend or remove it"
                ) from error
    return [_pair(folder, name, people.get(name, name)) for name in sorted(names[0])]


def _pair(folder: Path, name: str, person: str) -> PairOfVideos:
    made, true = (folder / side / f"{name}.mp4" for side in ("made", "true"))
    return PairOfVideos(name=name, person=person, made=made, true=true)


def choose_rows(catalog: Catalog, split: str, drive: str, count: int) -> list[int]:
    """Rows of a split ("held_out": all but "train") that can be driven so, of one length, spread over clips and time.

    ValueError that says which splits there are, where none fits.
    """
    among = catalog.split != TRAIN_SPLIT if split == "held_out" else catalog.split == split
    rows = window_inputs.longest_rows(catalog, among, DRIVES[drive])
    if not len(rows):
        known = ", ".join(sorted(set(catalog.split.tolist())))
        raise ValueError(
            f"no window of split {split} can be driven by {drive}; the dataset's splits are {known} (--split train "
            "measures what was trained on, and says nothing about other people)"
        )
    return window_inputs.spread(catalog, rows, count)


def make_pairs(
    run: trained_run.TrainedRun,
    folder: Path,
    *,
    split: str = "held_out",
    drive: str = "audio",
    windows: int = 32,
    batch: int = 8,
    config: SamplingConfig | None = None,
    seed: int = 0,
    clips: Path | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> list[PairOfVideos]:
    """Samples windows of the run's dataset and writes them beside their codec's round trip; those that a run before
    has written are kept, if it was the same checkpoint sampled in the same way.

    Args:
        clips: folder of `omnihuman curate`: whose sound the videos get. None: no sound.
        windows, batch: how many, and how many at once.

    Raises:
        FileNotFoundError, ValueError: one line that names the cure.
    """
    config = config or run.config.sampling
    catalog, source = Catalog.load(run.dataset), open_records(run.dataset)
    sounds = ClipSounds(clips) if clips is not None else None
    jobs = []
    for slot, row in enumerate(choose_rows(catalog, split, drive, windows)):
        record = source[int(catalog.record[row])]
        if record is not None:
            name = files.safe_name(record.window_id)
            start = int(catalog.start_frame[row])
            wave = sounds.of(record.clip_id, start, record.frames, SAMPLE_RATE_HZ) if sounds else None
            active = window_inputs.with_text(DRIVES[drive], record)
            jobs.append((name, record, window_inputs.driven_window(run.spec, record, active, slot), wave))
    if not jobs:
        raise ValueError(f"{run.dataset}: none of the chosen windows can be read; run `omnihuman encode` again")
    made_by = {
        "run": str(run.directory.resolve()),
        "step": run.step,
        "weights": run.weights,
        "sampling": dataclasses.asdict(config),
        "drive": drive,
        "seed": seed,
        "weights_sha256": kept_samples.weights_digest(run.params).hex(),
    }
    _sample_missing(run, folder, jobs, made_by, config, batch, seed, on_progress)
    lines = [json.dumps({"name": name, "person": record.video}) for name, record, _, _ in jobs]
    files.write_text(folder / PAIRS_FILE, "\n".join(lines) + "\n")
    return [_pair(folder, name, record.video) for name, record, _, _ in jobs]


def _sample_missing(
    run: trained_run.TrainedRun,
    folder: Path,
    jobs: Sequence[tuple[str, WindowRecord, packing.PackInput, np.ndarray | None]],
    made_by: dict[str, Any],
    config: SamplingConfig,
    batch: int,
    seed: int,
    on_progress: Callable[[float], None],
) -> None:
    """Calls of one sampler, whose shape is that of all jobs, done or not: what is left samples the same."""
    left = [job for job in jobs if not _is_done(folder, job, made_by)]
    if not left:
        return
    windows = [window for _, _, window, _ in jobs]
    sampler = sampler_for(run, config, windows, batch)
    calls = math.ceil(len(left) / sampler.batch)
    for start in range(0, len(left), sampler.batch):
        part = left[start : start + sampler.batch]
        latents = finite(sampler([window for _, _, window, _ in part], seed, lambda share: on_progress(share / calls)))
        for (name, record, window, wave), sampled in zip(part, latents):
            for side, found in (("true", record.latents_FHWC), ("made", sampled)):
                pictures = sheet.to_uint8(trained_run.decode_pictures(run, found))
                media_omnihuman.write_video(
                    folder / side / f"{name}.mp4", pictures, FPS, wave, SAMPLE_RATE_HZ, crf=_CRF
                )
            # Last: a pair that has it is whole.
            files.write_text(_receipt(folder, name), json.dumps(made_by | _made_of(record, window, wave)) + "\n")


def _made_of(record: WindowRecord, window: packing.PackInput, wave: np.ndarray | None) -> dict[str, str]:
    """What a pair's videos are of: the model's input, the true pictures, the sound."""
    digest = hashlib.sha256(kept_samples.input_digest(window))
    for array in (record.latents_FHWC, wave):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return {"input_sha256": digest.hexdigest()}


def _receipt(folder: Path, name: str) -> Path:
    return folder / "made" / f"{name}.json"


def _is_done(folder: Path, job: tuple[str, WindowRecord, packing.PackInput, Any], made_by: dict[str, Any]) -> bool:
    name, record, window, wave = job
    try:
        found = json.loads(_receipt(folder, name).read_text())
    except (OSError, ValueError):
        return False
    return bool(found == made_by | _made_of(record, window, wave)) and all(
        (folder / side / f"{name}.mp4").is_file() for side in ("made", "true")
    )
