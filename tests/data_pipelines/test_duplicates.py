"""Clips that are much alike by an embedding: all pairs compared, in a table, by a network of real shapes."""

import collections
import dataclasses
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from onnx import helper

from data_pipelines.curate import duplicates, embeddings, stage_parts, stage_rows
from data_pipelines.curate.adapters import Adapters
from data_pipelines.curate.clip_records import RecordWriter
from data_pipelines.curate.clip_sets import read_clips
from data_pipelines.curate.curate import CurateConfig, curate
from data_pipelines.curate.embeddings import EmbeddingNetwork
from data_pipelines.curate.file_stages import ScanOptions
from data_pipelines.curate.part_slices import Slice
from data_pipelines.curate.part_task import PartTask
from data_pipelines.curate.selection import select
from data_pipelines.curate.stage_keys import stage_keys
from data_pipelines.curate.stage_parts import SCHEMAS, Table
from data_pipelines.curate.tagging import Thresholds
from data_pipelines.curate.threshold_sweep import ThresholdSweep
from tests.data_pipelines import made_table
from tests.data_pipelines.onnx_models import patch_network, write


def units(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def near(vectors: np.ndarray, cosine: float, rng: np.random.Generator) -> np.ndarray:
    """Of each vector one at that cosine."""
    aside = rng.normal(size=vectors.shape)
    aside -= (aside * vectors).sum(1, keepdims=True) * vectors / (vectors**2).sum(1, keepdims=True)
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    return units(cosine * vectors + (1 - cosine**2) ** 0.5 * aside)


def signatures(vectors: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"".join(map(embeddings.signature, vectors)), np.uint64).reshape(len(vectors), 4)


def all_may(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.ones(len(one), bool)


def found(vectors: np.ndarray, similarity: float, scratch: Path) -> set[tuple[int, int]]:
    def read(rows: np.ndarray) -> Iterator[np.ndarray]:
        yield from (vectors[block] for block in np.array_split(rows, 3) if len(block))

    pairs, cosine = duplicates.near_pairs(signatures(vectors), similarity, all_may, read, scratch)
    assert not list(scratch.iterdir())
    a, b = (vectors[pairs[:, side]].astype(np.float64) for side in (0, 1))
    np.testing.assert_allclose(cosine, (a * b).sum(1), atol=2e-3)
    return {(int(a), int(b)) for a, b in pairs}


def test_signatures_differ_by_the_angle() -> None:
    rng = np.random.default_rng(0)
    vectors = units(rng.normal(size=(200, 384)))
    for cosine in (0.99, 0.9, 0.5, 0.0):
        other = near(vectors.astype(np.float64), cosine, rng)
        bits = np.bitwise_count(signatures(vectors) ^ signatures(other)).sum(1) / embeddings.SIGNATURE_BITS
        assert bits.mean() == pytest.approx(np.arccos(cosine) / np.pi, abs=0.01)
    assert signatures(vectors[:1])[0].tolist() == signatures(vectors[:1].copy())[0].tolist()


@pytest.mark.parametrize("similarity", [0.9, 0.95, 0.99])
def test_near_pairs_are_those_of_all_pairs_compared(similarity: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    lone = units(rng.normal(size=(3000, 128)))
    planted = near(lone[:300].astype(np.float64), similarity + 0.4 * (1 - similarity), rng)
    apart = near(lone[300:600].astype(np.float64), similarity - 0.3 * (1 - similarity), rng)
    vectors = np.concatenate([lone, planted, apart])[rng.permutation(3600)]
    whole = vectors.astype(np.float32)
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    truth = {(int(a), int(b)) for a, b in np.argwhere(np.triu(whole @ whole.T > similarity, 1))}
    pairs = found(vectors, similarity, tmp_path)
    assert len(truth) >= 300 and not pairs - truth and len(pairs & truth) >= 0.97 * len(truth)


def test_few_clips_are_compared_too(tmp_path: Path) -> None:
    vectors = units(np.ones((3, 16)))
    assert [found(vectors[:n], 0.9, tmp_path) for n in (0, 1)] == [set(), set()]
    assert found(vectors, 0.9, tmp_path) == {(0, 1), (0, 2), (1, 2)}


def test_many_copies_are_one_group(tmp_path: Path) -> None:
    """Also where one order cannot have them all side by side."""
    rng = np.random.default_rng(2)
    centres = units(rng.normal(size=(5, 64))).astype(np.float64)
    vectors = np.concatenate([near(np.repeat(centres[n : n + 1], 200, 0), 0.995, rng) for n in range(5)])
    pairs = found(vectors, 0.97, tmp_path)
    groups = duplicates.groups(len(vectors), np.array(sorted(pairs)))
    assert groups.reshape(5, 200).tolist() == [[n] * 200 for n in range(5)]


def test_groups_and_who_stays() -> None:
    rng = np.random.default_rng(3)
    pairs = rng.integers(0, 400, (150, 2))
    groups = duplicates.groups(400, pairs)
    of = {row: {row} for row in range(400)}
    for a, b in pairs:
        both = of[a] | of[b]
        of.update(dict.fromkeys(both, both))
    for row in range(400):
        mine = {other for other in range(400) if groups[other] == groups[row] >= 0} or {row}
        assert mine == of[row]
    firsts = [int(np.flatnonzero(groups == number)[0]) for number in range(groups.max() + 1)]
    assert firsts == sorted(firsts)
    usable, worth = rng.random(400) < 0.7, rng.integers(0, 3, 400)
    stays = duplicates.staying(groups, usable, worth)
    for row in range(400):
        others = sorted((-worth[other], other) for other in of[row] if usable[other])
        assert stays[row] == (others[0][1] if others and len(of[row]) > 1 else row)


def test_memory_is_of_signatures_and_not_of_vectors(tmp_path: Path) -> None:
    """A hundred bytes a clip and some blocks, however long the vectors are."""
    count = 200_000
    rng = np.random.default_rng(4)
    made = rng.integers(0, 1 << 63, (count, 4), np.uint64)
    made[1::1000] = made[::1000]

    def read(rows: np.ndarray) -> Iterator[np.ndarray]:
        for block in np.array_split(rows, 10):
            vectors = np.zeros((len(block), 1024), np.float16)
            vectors[np.arange(len(block)), block // 1000] = 1  # a copy has the vector of its original
            yield vectors

    tracemalloc.start()
    pairs, _ = duplicates.near_pairs(made, 0.97, all_may, read, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pairs.tolist() == [[n, n + 1] for n in range(0, count, 1000)]
    assert peak < 100 * count + (80 << 20)


def write_embeddings(folder: Path, vectors: dict[int, np.ndarray]) -> None:
    """The stage of a made table; NaN for a clip without."""
    table = Table.open(folder)
    table = Table(folder=folder, keys={**table.keys, "embed": "made"})
    for number, rows in vectors.items():
        ids = table.read("preview", number, ["clip_id"])["clip_id"].to_pylist()
        made = [
            {"clip_id": i, "embedding_why": stage_rows.UNREADABLE}
            if np.isnan(vector[0])
            else {"clip_id": i, "embedding": vector.tobytes(), "signature": embeddings.signature(vector)}
            for i, vector in zip(ids, rows, strict=True)
        ]
        stage_parts.write_part(table.part("embed", number), made, SCHEMAS["embed"])
    table.save()


def set_lengths(folder: Path, frames: dict[int, np.ndarray]) -> None:
    table = Table.open(folder)
    for number, lengths in frames.items():
        scan = table.read("scan", number)
        ends = scan["start_frame"].to_numpy() + lengths.astype(np.int32)
        place = scan.column_names.index("end_frame")
        stage_parts.write_columns(table.part("scan", number), scan.set_column(place, "end_frame", pa.array(ends)))


def test_of_two_videos_each_clip_has_one_partner() -> None:
    pairs = np.array([[0, 3], [0, 4], [1, 3], [1, 4], [2, 3], [2, 6]])
    cosine = np.array([0.98, 0.99, 0.995, 0.985, 0.97, 0.96], np.float32)
    video = np.array([7, 7, 7, 8, 8, 8, 9], np.uint64)
    assert duplicates.mutual(pairs, cosine, video).tolist() == [False, True, True, False, False, True]


def test_clips_of_a_talk_are_no_copies_and_those_of_its_copy_are_one_each(tmp_path: Path) -> None:
    """Five clips of a video that all look alike; the video once more, encoded anew and in another order of parts."""
    made_table.write(tmp_path / "table", parts=2, videos=1, clips=5)
    rng = np.random.default_rng(7)
    talk = near(np.repeat(units(rng.normal(size=(1, 64))).astype(np.float64), 5, 0), 0.99, rng)
    again = near(talk.astype(np.float64), 0.999, rng)
    write_embeddings(tmp_path / "table", {0: talk, 1: again})
    lengths = [(100, 100, 104, 96, 100), (104, 100, 100, 100, 100)]
    set_lengths(tmp_path / "table", dict(enumerate(map(np.array, lengths))))
    funnel = select(tmp_path / "table", Thresholds(max_similarity=0.97), tmp_path / "sets")
    groups = stage_parts.read_part(tmp_path / "sets" / "sets.parquet")["dedup_group"].to_pylist()
    assert funnel["clips"] == 5 and groups == [0, 1, 2, 3, 4] * 2
    set_lengths(tmp_path / "table", {1: np.array((140, 100, 100, 100, 100))})
    assert select(tmp_path / "table", Thresholds(max_similarity=0.97), tmp_path / "sets")["clips"] == 6


def test_of_clips_that_are_alike_the_one_that_serves_most_stays(tmp_path: Path) -> None:
    made_table.write(tmp_path / "table", parts=3, videos=40, clips=5)
    rng = np.random.default_rng(5)
    vectors = units(rng.normal(size=(600, 64)))
    videos = rng.permutation(120)[:40].reshape(10, 4)
    groups = [sorted((5 * four + rng.integers(0, 5, 4)).tolist()) for four in videos]
    for rows in groups:
        vectors[rows] = near(np.repeat(vectors[rows[:1]].astype(np.float64), 4, 0), 0.998, rng)
    vectors[np.setdiff1d(np.arange(600), groups)[0]] = np.nan
    set_lengths(tmp_path / "table", {number: 100 + rng.integers(0, 9, 200) for number in range(3)})
    write_embeddings(tmp_path / "table", dict(enumerate(vectors.reshape(3, 200, 64))))
    select(tmp_path / "table", Thresholds(), tmp_path / "all")
    funnel = select(tmp_path / "table", Thresholds(max_similarity=0.97), tmp_path / "sets")
    before = read_clips(tmp_path / "all")
    place = {(clip.part, clip.record): row for row, clip in enumerate(before)}
    after = {place[clip.part, clip.record] for clip in read_clips(tmp_path / "sets")}
    assert len(before) == 600 and funnel["clips"] == len(after) == 600 - 3 * len(groups)
    for rows in groups:
        best = min(rows, key=lambda row: (-len(before[row].eligible), -before[row].seconds, row))
        assert after & set(rows) == {best}
    written = stage_parts.read_part(tmp_path / "sets" / "sets.parquet")
    counts = collections.Counter(written["left_out"].to_pylist())
    assert counts == {None: len(after), "much like another clip": 3 * len(groups)}
    numbers = np.array(written["dedup_group"].to_pylist())
    assert [np.flatnonzero(numbers == n).tolist() for n in range(len(groups))] == sorted(groups)


def test_of_the_same_bytes_and_frames_the_first_stays(tmp_path: Path) -> None:
    made_table.write(tmp_path / "table", parts=2, videos=4, clips=3)
    table = Table.open(tmp_path / "table")
    for stage in ("preview", "look", "listen"):
        shutil.copy(table.part(stage, 0), table.part(stage, 1))
    first, second = (table.read("scan", number) for number in range(2))
    copied = first.set_column(0, "source", second["source"])
    ends = copied["end_frame"].to_numpy() + np.array([1, *[0] * 11], np.int32)  # but for one clip
    place = copied.column_names.index("end_frame")
    stage_parts.write_columns(table.part("scan", 1), copied.set_column(place, "end_frame", pa.array(ends)))
    funnel = select(tmp_path / "table", Thresholds(), tmp_path / "sets")
    rows = stage_parts.read_part(tmp_path / "sets" / "sets.parquet")
    assert funnel["clips"] == 13
    assert rows["dedup_group"].to_pylist() == [-1, *range(11)] * 2
    assert rows["left_out"].to_pylist() == [None] * 13 + ["the same content as an earlier clip"] * 11
    assert rows["eligible"].to_pylist()[13:] == [0] * 11


def test_similarity_without_embeddings_is_refused(tmp_path: Path) -> None:
    made_table.write(tmp_path / "table", parts=1, videos=2, clips=2)
    message = r"has no embeddings for max_similarity 0\.9 to compare; run .* --embedding-network"
    with pytest.raises(ValueError, match=message):
        select(tmp_path / "table", Thresholds(max_similarity=0.9), tmp_path / "sets")
    with pytest.raises(ValueError, match=r"max_similarity 0\.9 compares embeddings, and none are made"):
        curate(tmp_path, tmp_path / "other", CurateConfig(thresholds=Thresholds(max_similarity=0.9)))
    with pytest.raises(ValueError, match="'max_similarity' is no threshold; there are"):
        ThresholdSweep.parse("max_similarity=0.9:1:0.01")
    with pytest.raises(ValueError, match=r"max_similarity must be in \[0, 1\], not 2"):
        Thresholds(max_similarity=2).validate()


def picture_network(path: Path, **view: object) -> EmbeddingNetwork:
    patch_network(path)
    path.with_suffix(".json").write_text(str({"output": "features", **view}).replace("'", '"'))
    return EmbeddingNetwork.load(str(path))


def test_a_network_of_real_shapes_embeds_thumbnails_and_opens_no_video(tmp_path: Path) -> None:
    network = picture_network(tmp_path / "net.onnx")
    assert network.size == 64
    rng = np.random.default_rng(6)
    pictures = [cv2.GaussianBlur(rng.integers(0, 256, (96, 171, 3), np.uint8), (0, 0), s) for s in (1, 6)]
    jpegs = [
        cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].ravel()
        for picture in pictures
        for quality in (80, 40)
    ]
    table = Table(folder=tmp_path / "table", keys=stage_keys(ScanOptions(), Adapters(embedding=network)))
    task = PartTask(
        table=str(table.folder), number=0, keys=table.keys, options=ScanOptions(), loosest=Thresholds(), sources=(),
        paths={}, given=Adapters(embedding=network),
    )  # fmt: skip
    ids = [{"clip_id": str(n)} for n in range(5)]
    stage_parts.write_part(table.part("preview", 0), ids, SCHEMAS["preview"])
    with RecordWriter(table.thumbnails(0)) as records:
        for record in [*({"thumbnail": jpeg} for jpeg in jpegs), {}]:
            records.write(record)
    whole = Slice(stage="embed", begin=0, end=5)
    rows, made = stage_rows.embed(task, table, None, whole, table.part("embed", 0))
    assert made == 5 and rows[4] == {"clip_id": "4", "embedding_why": stage_rows.UNREADABLE}
    vectors = np.stack([np.frombuffer(row["embedding"], np.float16) for row in rows[:4]]).astype(np.float64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-2)
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.98 and alike[2, 3] > 0.98 and alike[0, 2] < min(alike[0, 1], alike[2, 3])
    assert [len(row["signature"]) for row in rows[:4]] == [32] * 4
    nothing = [
        helper.make_node("Sub", ["x", "x"], ["nothing"]),
        helper.make_node("AveragePool", ["nothing"], ["pooled"], kernel_shape=[56, 56], strides=[56, 56]),
    ]
    zero = EmbeddingNetwork.load(str(write(tmp_path / "zero.onnx", nothing, {"x": [1, 3, 224, 224]}, ["pooled"])))
    task = dataclasses.replace(task, given=Adapters(embedding=zero))
    rows, _ = stage_rows.embed(task, table, None, whole, table.part("embed", 0))
    assert rows[0]["embedding_why"] == (
        "failed: ValueError: the embedding network put out 48 numbers of length 0.0"
    ) and rows[0]["tries"] == 1  # fmt: skip


def test_another_network_embeds_again_and_nothing_else_is_made_again(tmp_path: Path) -> None:
    given = [None, picture_network(tmp_path / "a.onnx"), picture_network(tmp_path / "b.onnx", std=[1, 1, 1])]
    keys = [stage_keys(ScanOptions(), Adapters(embedding=one)) for one in given]
    assert set(keys[1]) - set(keys[0]) == {"embed"} and all(keys[0][stage] == keys[1][stage] for stage in keys[0])
    assert [stage for stage in keys[1] if keys[1][stage] != keys[2][stage]] == ["embed"]


def test_what_is_no_embedding_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"puts out 1 numbers of a picture, an embedding has 8 to 8192; .* net\.json"):
        picture_network(tmp_path / "net.onnx", output="score")
    with pytest.raises(ValueError, match=r"takes no picture of 100 x 224 as NCHW .*; say what it takes in net\.json"):
        picture_network(tmp_path / "net.onnx", height=100)
    with pytest.raises(FileNotFoundError, match=r"gone\.onnx: no such network"):
        EmbeddingNetwork.load("gone.onnx")
