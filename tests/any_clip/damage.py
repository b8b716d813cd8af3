"""An incomplete set out of a complete one: clips without sound, without a pose, and clips that cannot be read.

The theatre's clips are whole. Here some are robbed, in a copy: the file's sound track really is gone, the keypoints
really are, and what is corrupt really is. Held-out clips stay whole, for they are what both arms are measured on.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from data_pipelines.curate.tagging import Thresholds
from data_pipelines.puppet_theatre.clips_of_truth import write_clips_of_truth
from data_pipelines.puppet_theatre.truth import Truth
from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.window_index import TRAIN_SPLIT
from omnihuman_jax.runtime import files

HELD_OUT = "held_out"
PLANTED_FILE = "planted.json"
# What is done to a corrupt clip, in turn. The first damage is there before the clips are tagged, from what the file's
# header says; the next two come between the tags and `encode`; the last after `encode`, on the disk of the data set.
CUT, OVERWRITTEN, GONE, FLIPPED = KINDS = (
    "the file ends after 60 % of its bytes",
    "bytes of the file are overwritten after it was tagged",
    "the file is deleted after it was tagged",
    "a byte of each of its records is flipped",
)
# Keypoints that a frame must show to count, as curate's `pose_share` has it.
_KEYPOINTS = 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """Of the clips that are trained on."""

    silent: float = 0.5
    poseless: float = 0.3
    corrupt: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fate:
    """What was done to a clip; corrupt: one of `KINDS`, or ""."""

    silent: bool = False
    poseless: bool = False
    corrupt: str = ""

    @property
    def is_complete(self) -> bool:
        return self == Fate()


def draw_fates(names: Sequence[str], shares: Shares, seed: int) -> dict[str, Fate]:
    """The fate of every clip to train on: exactly so many of each as the shares say, drawn independently."""
    random = np.random.default_rng([seed, len(names)])

    def chosen(share: float) -> list[int]:
        return [int(i) for i in random.permutation(len(names))[: round(share * len(names))]]

    silent, poseless = set(chosen(shares.silent)), set(chosen(shares.poseless))
    corrupt = {clip: KINDS[-1 - turn % len(KINDS)] for turn, clip in enumerate(chosen(shares.corrupt))}
    return {
        name: Fate(silent=i in silent, poseless=i in poseless, corrupt=corrupt.get(i, ""))
        for i, name in enumerate(names)
    }


def make_incomplete(theatre: Path, out: Path, shares: Shares, seed: int) -> dict[str, Fate]:
    """A copy of a theatre in `out`, robbed: `videos`, `truth`, and `clips`, which `omnihuman encode` reads. The fates
    are in `planted.json` too, which is written last: where it is, all is there.
    """
    if (out / PLANTED_FILE).is_file():
        return read_fates(out)
    shutil.rmtree(out, ignore_errors=True)
    (out / "videos").mkdir(parents=True)
    names = sorted(path.stem for path in (theatre / "truth").glob("*.npz"))
    truths = {name: Truth.load(theatre / "truth" / f"{name}.npz") for name in names}
    to_train = [name for name in names if truths[name].facts["plan"]["split"] == TRAIN_SPLIT]
    fates = draw_fates(to_train, shares, seed)
    for name in names:
        fate = fates.get(name, Fate())
        _rob(theatre / "videos" / f"{name}.mp4", out / "videos" / f"{name}.mp4", fate)
        _told(truths[name], fate).save(_made(out / "truth") / f"{name}.npz")
    write_clips_of_truth(out, names)
    for name, fate in fates.items():
        _rob_later(out / "videos" / f"{name}.mp4", fate)
    told = {name: dataclasses.asdict(fate) for name, fate in fates.items()}
    files.write_text(out / PLANTED_FILE, json.dumps(told, indent=1) + "\n")
    return fates


def read_fates(out: Path) -> dict[str, Fate]:
    return {name: Fate(**fate) for name, fate in json.loads((out / PLANTED_FILE).read_text()).items()}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _rob(source: Path, target: Path, fate: Fate) -> None:
    """The video and its caption, without what was taken before anybody looked at it."""
    shutil.copyfile(source.with_suffix(".txt"), target.with_suffix(".txt"))
    if fate.silent:
        without_sound(source, target)
    else:
        shutil.copyfile(source, target)
    if fate.corrupt == CUT:
        data = target.read_bytes()
        target.write_bytes(data[: int(0.6 * len(data))])


def without_sound(source: Path, target: Path) -> None:
    """The same packets of pictures, and no sound track."""
    with av.open(str(source)) as given, av.open(str(target), "w", options={"movflags": "+faststart"}) as made:
        pictures = given.streams.video[0]
        stream = made.add_stream_from_template(pictures)
        for packet in given.demux(pictures):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)


def _told(truth: Truth, fate: Fate) -> Truth:
    """What tagging finds of the clip as it now is. A close-up has no shoulders, and its pose is the head's: it counts
    as curate counts it, by keypoints.
    """
    seen = (truth.keypoints_TJ3[:, :, 2] > 0).sum(axis=1) >= _KEYPOINTS
    has = {Condition.AUDIO: not fate.silent, Condition.POSE: not fate.poseless and bool(seen.any())}
    has[Condition.POSE] &= float(seen.mean()) >= Thresholds().min_pose_share
    plan = dict(truth.facts["plan"])
    plan["split"] = TRAIN_SPLIT if plan["split"] == TRAIN_SPLIT else HELD_OUT
    plan["fault"] = "no_track" if fate.silent else plan["fault"]
    facts = {**truth.facts, "plan": plan, "eligible": [c.label for c in Condition if has.get(c, True)]}
    points = np.zeros_like(truth.keypoints_TJ3) if fate.poseless else truth.keypoints_TJ3
    return dataclasses.replace(truth, keypoints_TJ3=points, facts=facts)


def _rob_later(video: Path, fate: Fate) -> None:
    """What happens to a file behind the back of its tags."""
    if fate.corrupt == GONE:
        video.unlink()
    elif fate.corrupt == OVERWRITTEN:
        data = bytearray(video.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 64] = bytes(64)
        video.write_bytes(bytes(data))


def flip_records(dataset: Path, fates: Mapping[str, Fate]) -> int:
    """Flips a byte in every record of the clips that are to have corrupt ones; how many. Once: the note says it was."""
    note = dataset / "flipped.json"
    if note.is_file():
        return int(json.loads(note.read_text()))
    flipped = windows_of(Catalog.load(dataset), [name for name, fate in fates.items() if fate.corrupt == FLIPPED])
    records, pieces = open_records(dataset), []
    for row in flipped:
        record = records[int(row)]
        assert record is not None
        latents = np.ascontiguousarray(record.latents_FHWC).tobytes()
        # Short ones: in the file a record is broken up by the headers of blocks.
        pieces.append([latents[at : at + 256] for at in range(0, len(latents) - 256, 1024)])
    found = 0
    for shard in sorted(dataset.glob("*.array_record-*")):
        data = bytearray(shard.read_bytes())
        for own in pieces:
            at = next((at for piece in own if (at := data.find(piece)) >= 0), None)
            if at is not None:
                data[at] ^= 0xFF
                found += 1
        shard.write_bytes(bytes(data))
    assert found == len(flipped), f"{found} of {len(flipped)} records were found in the shards of {dataset}"
    note.write_text(json.dumps(found))
    return found


def windows_of(catalog: Catalog, clips: Iterable[str]) -> np.ndarray:
    """int [n], rows of the windows of these theatre clips, one shot each."""
    wanted = {f"{name}-000" for name in clips}
    return np.flatnonzero([str(clip) in wanted for clip in catalog.clip_id])


def incomplete_rows(catalog: Catalog, fates: Mapping[str, Fate]) -> np.ndarray:
    """bool [n]: windows that are trained on and would not be, were incomplete clips dropped: those that lack sound or
    pose, and those that cannot be read.
    """
    every = sum(1 << condition for condition in Condition)
    rows = (catalog.split == TRAIN_SPLIT) & (catalog.eligible != every)
    rows[windows_of(catalog, [name for name, fate in fates.items() if fate.corrupt])] = True
    return np.asarray(rows)


def what_became(
    fates: Mapping[str, Fate], encoded: Mapping[str, Any], quarantine: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Of each corrupt clip: what was done, the stage that noticed, and the reason that it wrote down.

    Args:
        encoded: `encode.json`.
        quarantine: lines of a run's `quarantine.jsonl`.
    """
    letters = {row["clip_id"].removesuffix("-000"): row for row in encoded["quarantine"]}
    rows = []
    for name, fate in sorted(fates.items()):
        if not fate.corrupt:
            continue
        lines = [line for line in quarantine if str(line["window"]).startswith(f"{name}-000")]
        if name in letters:
            stage, reason = str(letters[name]["stage"]), str(letters[name]["reason"])
        elif lines:
            stage, reason = f"train, {len(lines)} records", str(lines[0]["reason"])
        else:
            stage, reason = "nobody", ""
        rows.append({"clip": name, "done": fate.corrupt, "stage": stage, "reason": _without_folders(reason)})
    return rows


def _without_folders(reason: str) -> str:
    return " ".join(word.rsplit("/", 1)[-1] if ".mp4" in word else word for word in reason.split(" "))
