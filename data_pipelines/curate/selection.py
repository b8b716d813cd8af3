"""`omnihuman select`: from the scores of a TABLE to SETS: which clips serve which conditions, under these thresholds.

Opens no video. Goes through the table part by part with columns of numbers, so that what it holds is a few bytes a
clip, and that other thresholds cost a minute on millions of clips. `--sweep` counts what other values of a threshold
would give, in the same pass.
"""

import argparse
import dataclasses
import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from rich.console import Console
from rich.progress import Progress

from data_pipelines.curate import captions, duplicates, near_copies, sets_writer, source_list, stage_parts
from data_pipelines.curate.clip_sets import OWN_SETS, SETS_FILE
from data_pipelines.curate.clips import write_text
from data_pipelines.curate.file_stages import BY_PREVIEW, SYNC_SCORES
from data_pipelines.curate.funnel import FUNNEL_FILE, Funnel, funnel_table, left_out_lines
from data_pipelines.curate.part_tags import (
    COPY,
    DUPLICATE,
    GONE,
    IN,
    MUCH_ALIKE,
    NO_CAPTION,
    NOT_CAPTIONED,
    UNREADABLE,
    WHYS,
    PartTags,
)
from data_pipelines.curate.reach import looser_fields, looser_of, within_reach
from data_pipelines.curate.score_columns import all_scores, is_word
from data_pipelines.curate.stage_parts import DEAD, SCHEMAS, SHORT, STAGES, Table, clips_of
from data_pipelines.curate.tagging import CHECKS, PASSED, Tags, Thresholds, tag_all
from data_pipelines.curate.threshold_sweep import ThresholdSweep
from omnihuman_jax.plain_values import check_finite, structure
from omnihuman_jax.runtime import file_names, files, scratch
from omnihuman_jax.runtime.locations import Location, StrPath, is_remote, local, location
from omnihuman_jax.runtime.progress import progress_bar

# Parts that an error names.
_LISTED = 8
# Beside a clip for which something was left out by its preview.
_LACKING = ("landmarks_why", "lip_sync_why", "sync_why")
_SCAN_COLUMNS = ["source", "kind", "sha256", "start_frame", "end_frame", "height", "width", "source_fps",
                 "bits_per_pixel", "has_audio"]  # fmt: skip


def select(
    table_dir: StrPath,
    thresholds: Thresholds,
    out_dir: StrPath,
    *,
    dataset: str = "",
    weight: float = 1.0,
    sweeps: Sequence[ThresholdSweep] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes the sets of a table; returns the funnel that it also writes there.

    Args:
        dataset, weight: written on every clip, for a mix of several.
        sweeps: filled with what each of their values would give.

    Raises:
        FileNotFoundError, ValueError: no table, no finished part, wrong thresholds, `out_dir` is something else, or
            clips that could be of use by these thresholds have no landmarks, as the table's were stricter.
    """
    thresholds.validate()
    check_finite(weight, "--weight")
    if weight <= 0:
        raise ValueError(f"--weight must be greater than 0, not {weight}")
    table, out = Table.open(table_dir), location(out_dir)
    _check_free(out)
    if thresholds.max_similarity < 1 and "embed" not in table.stages:
        raise ValueError(
            f"{table_dir}: has no embeddings for max_similarity {thresholds.max_similarity} to compare; run"
            " `omnihuman curate` with --embedding-network, or leave max_similarity out"
        )
    if "sync" in _columns(thresholds, sweeps) and "sync" not in table.stages:
        raise ValueError(
            f"{table_dir}: has no scores of SyncNet, which the thresholds ask for; run `omnihuman curate` with"
            " --sync-network, or leave min_syncnet_confidence, max_syncnet_distance and max_syncnet_offset_s out"
        )
    listing = _Listing(source_list.read_listings(table))
    numbers = listing.numbers()
    done = table.finished(numbers)
    if not done:
        raise ValueError(f"{table_dir}: none of its {len(numbers)} parts is finished; run curate again")
    funnel = Funnel(source_list.read_passed_over(table))
    bar = progress.add_task("select", total=len(done)) if progress else None
    asked = functools.reduce(looser_of, (sweep.loosest(thresholds) for sweep in sweeps), thresholds)
    parts = []
    near = _disk_near(out)
    with tempfile.TemporaryFile(dir=near) as file:
        words = near_copies.KeptWords(file) if thresholds.min_copy_distance else None
        for number in table.on_their_way(done):
            parts.append(_tag_part(table, number, listing, thresholds, asked, sweeps, funnel, words))
            if progress and bar is not None:
                progress.advance(bar)
        _check_looked_at(table, parts, asked)
        duplicates.mark(parts, table, thresholds, near, words)
    sets_writer.write_rows(out, parts, dataset, weight)
    for part in parts:
        funnel.add_tags(part.tags, part.seconds, part.left_out == IN)
        for why in (DUPLICATE, MUCH_ALIKE, COPY):
            if count := int((part.left_out == WHYS.index(why)).sum()):
                funnel.duplicates[why] += count
    for place in (table.folder, table.folder / "listings", table.folder / "sources", out):
        files.remove_dead(place)  # what is younger another `curate` may be writing
    checks = {check.reason: check.limit(thresholds) for check in CHECKS}
    counts = {part.number: len(part.seconds) for part in parts}
    mix = {"dataset": dataset, "weight": weight} if dataset or weight != 1 else {}
    sets_writer.write_head(out, table, counts, thresholds=dataclasses.asdict(thresholds), checks=checks, mix=mix)
    funnel.list_clips(out)
    record = funnel.record(unfinished=len(numbers) - len(done))
    write_text(out / FUNNEL_FILE, json.dumps(record, indent=1) + "\n")
    return record


def _disk_near(out: Location) -> Path:
    """A folder for what is needed meanwhile: `out` is not made before it is sure that there will be sets."""
    if is_remote(out):
        return scratch.own_folder()
    whole = Path(out).absolute()
    return next(folder for folder in (whole, *whole.parents) if folder.is_dir())


class _Listing:
    """Which sources lie somewhere now, and which have no readable caption, or none of their own, part by part."""

    def __init__(self, rows: pa.Table) -> None:
        self._parts = rows["part"].to_numpy()
        self._sources = rows["source"].combine_chunks()
        self._unread = pc.not_equal(rows["caption_error"].combine_chunks(), "")
        self._uncaptioned = pc.equal(rows["caption_source"].combine_chunks(), captions.BY_DEFAULT)
        self._rows = rows

    def numbers(self) -> list[int]:
        return [int(number) for number in np.unique(self._parts)]

    def of(self, number: int) -> tuple[pa.Array, pa.Array]:
        """(sources of a part, those of them whose caption cannot be read)."""
        begin, end = np.searchsorted(self._parts, [number, number + 1])
        sources = self._sources.slice(begin, end - begin)
        return sources, sources.filter(self._unread.slice(begin, end - begin))

    def uncaptioned(self, number: int) -> pa.Array:
        """Sources of a part without a caption of their own."""
        begin, end = np.searchsorted(self._parts, [number, number + 1])
        return self._sources.slice(begin, end - begin).filter(self._uncaptioned.slice(begin, end - begin))

    def names(self, number: int) -> dict[str, dict[str, str]]:
        begin, end = np.searchsorted(self._parts, [number, number + 1])
        rows = self._rows.slice(begin, end - begin).select(["source", "name", "caption_error"]).to_pylist()
        return {row["source"]: row for row in rows}


def _tag_part(
    table: Table,
    number: int,
    listing: _Listing,
    thresholds: Thresholds,
    asked: Thresholds,
    sweeps: Sequence[ThresholdSweep],
    funnel: Funnel,
    words: near_copies.KeptWords | None,
) -> PartTags:
    scanned = table.read("scan", number, _SCAN_COLUMNS)
    sources, unread = listing.of(number)
    clips = clips_of(scanned)
    columns = _columns(thresholds, sweeps)
    scored = {stage: table.read(stage, number, names) for stage, names in columns.items()}
    own = {"caption": ["caption"]}
    besides = {
        stage: table.read(stage, number, ["reason", *own.get(stage, ())])
        for stage in table.stages
        if stage not in ("scan", *scored)
    }
    signature, embedded, video = np.zeros((0, 4), np.uint64), np.zeros(0, bool), np.zeros(0, np.uint64)
    if thresholds.max_similarity < 1:
        signature, embedded = duplicates.signatures_of(table, number)
        video = _video(clips)
    for stage, rows in (scored | besides).items():
        if len(rows) != len(clips):
            raise ValueError(
                f"{table.part(stage, number)}: {len(rows)} rows for {len(clips)} clips; delete it and run curate again"
            )
    scores = all_scores(clips, scored)
    tags = tag_all(scores, thresholds)
    left_out = np.full(len(clips), IN, np.int8)
    for stage in ("preview", "look"):
        left_out[pc.is_valid(scored[stage]["reason"]).to_numpy()] = WHYS.index(UNREADABLE)
    if "caption" in besides:
        # Not those that failed alone: one that is to be asked again, or was passed over, has none either.
        without = pc.is_null(besides["caption"]["caption"]).to_numpy()
        left_out[without & _is_in(clips["source"], listing.uncaptioned(number))] = WHYS.index(NOT_CAPTIONED)
    left_out[_is_in(clips["source"], unread)] = WHYS.index(NO_CAPTION)
    left_out[~_is_in(clips["source"], sources)] = WHYS.index(GONE)
    for sweep in sweeps:
        sweep.add(scores, thresholds, left_out == IN)
    hashed = np.zeros(0, bool)
    if words is not None:
        own_words, hashed = near_copies.words_of(scored["preview"], scored["listen"])
        words.add(own_words)
    has_letters = any(rows["reason"].null_count < len(rows) for rows in (scored | besides).values())
    unlooked = is_word(scored["look"]["landmarks_why"], BY_PREVIEW)
    unlooked |= is_word(scored["listen"]["lip_sync_why"], BY_PREVIEW)
    if "sync" in scored:
        unlooked |= is_word(scored["sync"]["sync_why"], BY_PREVIEW)
    if unlooked.any():
        unlooked &= within_reach(scores, asked) & (left_out == IN)
    _tell(funnel, table, number, scanned, listing, has_letters=has_letters)
    return PartTags(
        number=number,
        tags=tags,
        failed_score=_failed_scores(tags, scores),
        left_out=left_out,
        content=_content(clips),
        seconds=scores["seconds"],
        dedup_group=np.full(len(clips), -1, np.int32),
        unlooked=int(unlooked.sum()),
        signature=signature,
        embedded=embedded,
        video=video,
        lines=scores["short_side_px"].astype(np.float32),
        hashed=hashed,
    )


def _columns(thresholds: Thresholds, sweeps: Sequence[ThresholdSweep]) -> dict[str, list[str]]:
    """Stage -> the columns that these thresholds ask for, and those of the previews beside them: reading is half of
    what a select costs.
    """
    swept = {sweep.name for sweep in sweeps}
    scores = {check.score for check in CHECKS if check.asks(thresholds) or check.threshold in swept}
    names = {*scores, *(f"preview_{name}" for name in scores), "reason", *_LACKING}
    names |= {*near_copies.WORDS} if thresholds.min_copy_distance else set()
    stages = [*STAGES[1:], *(["sync"] if scores & {*SYNC_SCORES} else [])]
    return {stage: [name for name in SCHEMAS[stage].names if name in names] for stage in stages}


def _check_looked_at(table: Table, parts: Sequence[PartTags], asked: Thresholds) -> None:
    """ValueError where clips have no landmarks that could reach what asks for them: in which parts, and the cure."""
    lacking = [part for part in parts if part.unlooked]
    if not lacking:
        return
    names = ", ".join(str(part.number) for part in lacking[:_LISTED])
    names += f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
    looser = looser_fields(asked, table.loosest) if table.loosest else []
    why = f" ({', '.join(looser)} are looser than what it was curated with)" if looser else ""
    raise ValueError(
        f"{table.folder}: {sum(part.unlooked for part in lacking)} clips that these thresholds could let through have"
        f" no landmarks{why}; the stages look and those after it of the parts {names} are to be run: write these"
        f" thresholds to a file, and run `omnihuman curate --source SOURCE --out {table.folder} --loosest FILE`"
    )


def _is_in(values: pa.ChunkedArray, wanted: pa.Array) -> np.ndarray:
    """Bool [n], by way of the few words of a dictionary."""
    words = values.combine_chunks()
    known = pc.is_in(words.dictionary, value_set=wanted.cast(pa.string())).to_numpy(zero_copy_only=False)
    return known[words.indices.to_numpy()] if len(words) else np.zeros(0, bool)


def _failed_scores(tags: Tags, scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 [n, 4]: the score of the check that failed; NaN where none did."""
    found = np.full(tags.failed.shape, np.nan, np.float32)
    for index in np.unique(tags.failed[tags.failed != PASSED]):
        rows, conditions = np.nonzero(tags.failed == index)
        found[rows, conditions] = CHECKS[index].seen(scores[CHECKS[index].score][rows])
    return found


def _video(clips: pa.Table) -> np.ndarray:
    """uint64 [n], equal for clips of the same bytes."""
    words = clips["sha256"].combine_chunks()
    if not len(words):
        return np.zeros(0, np.uint64)
    hashes = np.array([int(word[:16], 16) for word in words.dictionary.to_pylist()], np.uint64)
    return np.asarray(hashes[words.indices.to_numpy()])


def _content(clips: pa.Table) -> np.ndarray:
    """uint64 [n], equal for clips with the same bytes and frames."""
    with np.errstate(over="ignore"):
        start, end = (clips[name].to_numpy().astype(np.uint64) for name in ("start_frame", "end_frame"))
        mixed = _video(clips) + start * np.uint64(0x9E3779B97F4A7C15)
        return np.asarray(mixed ^ (end * np.uint64(0xC2B2AE3D27D4EB4F)))


def _tell(
    funnel: Funnel, table: Table, number: int, scanned: pa.Table, listing: _Listing, *, has_letters: bool
) -> None:
    """What the funnel says of a part besides its clips."""
    kinds = scanned["kind"].combine_chunks()
    has_letters |= DEAD in kinds.dictionary.to_pylist()
    has_short = SHORT in kinds.dictionary.to_pylist()
    sources, unread = listing.of(number)
    names = listing.names(number) if has_short or has_letters or len(unread) else {}
    errors = {row["name"]: row["caption_error"] for row in names.values() if row["caption_error"]}
    funnel.add_videos(len(sources), errors)
    if has_short:
        short = scanned.filter(pc.equal(scanned["kind"], SHORT)).to_pylist()
        funnel.add_short({**row, "video": names[row["source"]]["name"]} for row in short if row["source"] in names)
    if has_letters:
        letters = (row for row in stage_parts.letters_of(table, number) if row["source"] in names)
        funnel.add_letters({**row, "video": names[row["source"]]["name"]} for row in letters)


def _check_free(out: Location) -> None:
    # What a killed select left half written is nothing.
    holds = out.exists() and any(path.suffix != ".part" for path in out.iterdir())
    if holds and not files.is_there(out / SETS_FILE):
        raise ValueError(f"{out}: holds something that is no sets; choose another --out")


def read_thresholds(path: Path | None) -> Thresholds:
    """The thresholds of a YAML or JSON file; what it does not name keeps its default, as all do without a file."""
    if path is None:
        return Thresholds()
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8-sig")) or {}
        return structure(Thresholds, stored, whole="the thresholds")
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """`omnihuman select TABLE --out SETS`."""
    parser = argparse.ArgumentParser(
        prog="omnihuman select",
        description="Tag the clips of a table with the conditions that they serve. Opens no video.",
        epilog="example: omnihuman select runs/mine/clips --thresholds strict.yaml --out runs/mine/strict"
        " --sweep min_lip_sync_confidence=0.2:0.6:0.05",
    )
    parser.add_argument("table", type=location, metavar="TABLE", help="folder written by `omnihuman curate`")
    parser.add_argument("--thresholds", type=local, metavar="FILE", help="YAML or JSON; names of `tagging.Thresholds`")
    parser.add_argument(
        "--out",
        type=location,
        metavar="SETS",
        help=f"folder of the sets, of a disk or a bucket (default: TABLE/{OWN_SETS})",
    )
    parser.add_argument("--dataset", default="", metavar="NAME", help="written on every clip, for a mix of several")
    parser.add_argument("--weight", type=float, default=1.0, help="of this data set in such a mix (default 1)")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME=FROM:TO:STEP",
        help="count what other values of a threshold would give; may be repeated, each alone",
    )
    options = parser.parse_args(argv)
    sweeps = [ThresholdSweep.parse(text) for text in options.sweep]
    out = options.out or options.table / OWN_SETS
    with progress_bar(stays=True) as progress:
        funnel = select(
            options.table,
            read_thresholds(options.thresholds),
            out,
            dataset=options.dataset,
            weight=options.weight,
            sweeps=sweeps,
            progress=progress,
        )
    console = Console()
    console.print(funnel_table(funnel))
    for sweep in sweeps:
        console.print(sweep.table())
    for line in [*left_out_lines(funnel), file_names.printable(f"{out}: {funnel['clips']} clips")]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    return 0
