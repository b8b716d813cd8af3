"""The same film is known again after it was encoded once more, and another take of the same scene is another."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.curate import near_copies, selection, stage_parts
from data_pipelines.curate.clip_hashes import OF_PICTURES, OF_SOUND, PictureHasher, signs, sound_hash
from data_pipelines.curate.near_copies import MAX_BITS, WORDS, KeptWords, find_copies
from data_pipelines.curate.part_tags import COPY
from data_pipelines.curate.selection import select
from data_pipelines.curate.stage_parts import Table
from data_pipelines.curate.tagging import Thresholds
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.conditions import Condition
from omnihuman_jax.serving import media_omnihuman
from tests.data_pipelines import made_table
from tests.data_pipelines.test_text_recall import CLIPS, fetched


def hashed(path: Path, start_s: float = 0.0, duration_s: float | None = None) -> np.ndarray:
    """uint64 [3] of a video; zeros where nothing moves."""
    hasher = PictureHasher()
    for _ in hasher.watch(media_omnihuman.iter_video(path, start_s=start_s, duration_s=duration_s)):
        pass
    found = hasher.hashes() | {"sound_hash": sound_hash(media_omnihuman.read_audio(path, 16000, start_s, duration_s))}
    return np.array([found.get(name, 0) for name in WORDS], np.uint64)


def differ(one: np.ndarray, other: np.ndarray) -> list[int]:
    return np.bitwise_count(one ^ other).tolist()


@pytest.fixture(scope="module")
def film(sample_media: SampleMedia, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5.7 s of a man who talks before a camera that stands still."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    original = sample_media.videos / "jwpIntro.mp4"
    frames = media_omnihuman.read_video(original, size=(120, 160))
    media_omnihuman.write_video(path, frames, audio=media_omnihuman.read_audio(original), sample_rate=16000)
    return path


@pytest.mark.parametrize("how", ["harder", "smaller", "h265", "30 fps"])
def test_a_film_that_was_encoded_once_more_is_the_same(how: str, film: Path, tmp_path: Path) -> None:
    frames = media_omnihuman.read_video(film, size=(64, 86) if how == "smaller" else None)
    if how == "30 fps":
        frames = frames[np.arange(len(frames) * 6 // 5) * 5 // 6]
    media_omnihuman.write_video(
        tmp_path / "again.mp4",
        frames,
        fps=30 if how == "30 fps" else 25,
        audio=media_omnihuman.read_audio(film),
        sample_rate=16000,
        crf=36 if how == "harder" else 22,
        codec="libx265" if how == "h265" else "libx264",
    )
    assert all(bits <= most for bits, most in zip(differ(hashed(film), hashed(tmp_path / "again.mp4")), MAX_BITS))


def test_the_next_words_before_the_same_camera_are_another_film(film: Path) -> None:
    first, second = hashed(film, 0, 2.8), hashed(film, 2.8, 2.8)
    _, motion, sound = differ(first, second)
    assert motion > 2 * MAX_BITS[1] and sound > 2 * MAX_BITS[2]


def test_what_does_not_move_has_no_hash_and_silence_is_all_the_same(film: Path) -> None:
    still = np.repeat(media_omnihuman.read_video(film, duration_s=0.04), 30, 0)
    noisy = np.clip(still + np.random.default_rng(0).normal(0, 2, still.shape), 0, 255).astype(np.uint8)
    for frames in (still, noisy, still[:5]):
        hasher = PictureHasher()
        assert len(list(hasher.watch(iter(frames)))) == len(frames) and hasher.hashes() == {}
    assert sound_hash(None) == sound_hash(np.zeros(16000, np.float32)) == sound_hash(np.ones(9, np.float32)) == 0


def test_a_hash_is_the_same_on_every_machine() -> None:
    assert signs(np.arange(64.0) * 37 % 101 - 50, "picture") == 0x3DAA1FAEBB0CC79C


def copies(words: np.ndarray, flips: int, rng: np.random.Generator) -> np.ndarray:
    """The words with so many other bits in each."""
    masks = [[sum(1 << int(bit) for bit in rng.choice(64, flips, replace=False)) for _ in row] for row in words]
    return words ^ np.array(masks, np.uint64)


def found_among(
    folder: Path, words: np.ndarray, seconds: np.ndarray, asked: np.ndarray, distance: float = 1.0
) -> np.ndarray:
    with (folder / "words").open("w+b") as file:
        kept = KeptWords(file)
        for part in np.array_split(words, 7):
            kept.add(part)
        return find_copies(kept, lambda rows: seconds[rows], asked, distance)


def test_copies_are_found_among_many_and_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_copies, "_BLOCK", 1100)
    rng = np.random.default_rng(0)
    words = rng.integers(0, 1 << 64, (3000, 3), np.uint64)
    words[1000:1100] = copies(words[:100], 1, rng)
    words[1100:1200] = copies(words[100:200], 11, rng)  # too far
    words[1200:1300, :2] = words[200:300, :2]  # the same pictures under another sound
    words[1300:1400] = words[300:400]  # longer
    seconds = rng.integers(25, 500, 3000) / 25
    seconds[1000:1300], seconds[1300:1400] = seconds[:300], seconds[300:400] + 0.4
    everybody = np.ones(3000, bool)
    found = found_among(tmp_path, words, seconds, everybody)
    assert found.tolist() == [[row, row + 1000] for row in range(100)]
    assert found_among(tmp_path, words, seconds, np.arange(3000) >= 50)[0].tolist() == [50, 1050]
    assert found_among(tmp_path, words[:1], seconds[:1], everybody[:1]).shape == (0, 2)
    shares = [len(found_among(tmp_path, words, seconds, everybody, share)) for share in (0.5, 0.1)]
    assert shares == [100, 0], "one bit differs in each word: fewer than half of the limits, more than a tenth"
    with pytest.raises(ValueError, match="hashes of 3000 clips for 2999"):
        found_among(tmp_path, words, seconds, everybody[1:])


def test_of_copies_in_a_table_the_most_useful_is_kept(tmp_path: Path) -> None:
    made_table.write(tmp_path / "table", parts=2, videos=10, clips=4)
    table, rng = Table.open(tmp_path / "table"), np.random.default_rng(0)
    words = rng.integers(0, 1 << 64, (2, 40, 3), np.uint64)
    words[1, :6] = copies(words[0, :6], 1, rng)
    for number in (0, 1):
        for stage, names in (("preview", OF_PICTURES), ("listen", OF_SOUND)):
            rows = table.read(stage, number)
            for name in names:
                # In the sixth clip of the second part nothing moves.
                still = np.arange(40) == 5 if number and name == "motion_hash" else None
                column = pa.array(words[number, :, WORDS.index(name)], pa.uint64(), mask=still)
                rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), column)
            stage_parts.write_columns(table.part(stage, number), rows)
    first, second = (table.read("scan", number) for number in (0, 1))
    for name in ("start_frame", "end_frame"):  # the copies are as long
        column = pa.chunked_array([*first[name].slice(0, 6).chunks, *second[name].slice(6).chunks])
        second = second.set_column(second.column_names.index(name), second.schema.field(name), column)
    stage_parts.write_columns(table.part("scan", 1), second)
    funnel = select(table.folder, Thresholds(), tmp_path / "sets")
    rows = pq.read_table(tmp_path / "sets" / "sets.parquet").to_pylist()
    assert funnel["duplicates"] == {COPY: 5} and funnel["clips"] == 75
    for one, other in zip(rows[:5], rows[40:45], strict=True):
        assert one["dedup_group"] == other["dedup_group"] >= 0
        kept, left = (one, other) if one["left_out"] is None else (other, one)
        assert kept["left_out"] is None and left["left_out"] == COPY and left["eligible"] == 0
        missing = [sum(row[f"{c.label}_reason"] is not None for c in Condition) for row in (kept, left)]
        assert missing[0] <= missing[1] and (missing[0] < missing[1] or kept is one)
    assert all(row["dedup_group"] == -1 for row in (*rows[5:40], *rows[45:]))
    # At 0 all stay, and the hashes are not even read.
    assert select(table.folder, Thresholds(min_copy_distance=0), tmp_path / "sets")["clips"] == 80
    read = selection._columns(Thresholds(min_copy_distance=0), [])
    assert not {*WORDS} & {name for names in read.values() for name in names}
    with pytest.raises(ValueError, match=r"min_copy_distance must be in \[0, 1\], not 2"):
        Thresholds(min_copy_distance=2).validate()


@pytest.mark.slow
def test_takes_of_clips_that_the_limits_were_set_by(tmp_path: Path) -> None:
    """Copies are within the limits, and what comes next in the same take is far beyond."""
    copies_bits, takes_bits = [], []
    for clip in CLIPS:
        original = fetched(clip)
        frames = media_omnihuman.read_video(original, size=(120, 214), duration_s=3.9)
        wave = media_omnihuman.read_audio(original, duration_s=len(frames) / 25)
        media_omnihuman.write_video(tmp_path / "clip.mp4", frames, audio=wave, sample_rate=16000)
        for crf, codec in ((36, "libx264"), (30, "libx265")):
            again = tmp_path / "again.mp4"
            media_omnihuman.write_video(again, frames[:, ::2, ::2], audio=wave, sample_rate=16000, crf=crf, codec=codec)
            copies_bits.append(differ(hashed(tmp_path / "clip.mp4"), hashed(again)))
        half = len(frames) / 50
        takes_bits.append(differ(hashed(tmp_path / "clip.mp4", 0, half), hashed(tmp_path / "clip.mp4", half, half)))
    print(f"copies {copies_bits}, takes {takes_bits}")
    assert (np.array(copies_bits) <= MAX_BITS).all()
    assert all(motion >= 2 * MAX_BITS[1] or picture >= 2 * MAX_BITS[0] for picture, motion, _ in takes_bits)
