"""Which clips of a table are one content: the same bytes and frames, the same film encoded once more
(`near_copies.py`), or near neighbours by an embedding.

All clips of a talk look alike, and are not copies. So clips of one video are never one content by an embedding; of two
videos a clip can be one content with that of the other's which is most like it, if it is the same the other way round;
and their lengths agree.

Neighbours are looked for among the signatures of `embeddings.py`, 32 bytes a clip: sorted by some of their bits, those
of clips that are alike lie side by side, in one order of bits or another. Whom a signature does not rule out, the
vectors themselves decide, which are read for these clips alone.
"""

import itertools
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from data_pipelines.curate.embeddings import SIGNATURE_BITS
from data_pipelines.curate.near_copies import KeptWords, find_copies
from data_pipelines.curate.part_tags import COPY, DUPLICATE, IN, MUCH_ALIKE, WHYS, PartTags
from data_pipelines.curate.stage_parts import Table
from data_pipelines.curate.tagging import Thresholds
from omnihuman_jax.typing import FPS

# Clips after each one, in an order, that are compared with it.
_NEIGHBOURS = 3
# Pairs that are lost for want of orders, at most, and how many orders there are at most.
_LOST, _MOST_ORDERS = 0.02, 64
_KEY_BYTES = 8
# Of the longer of two clips.
_LENGTH_SLACK = 0.1
# More than any picture has.
_MAX_LINES = 1 << 16
_BLOCK = 1 << 18


def signatures_of(table: Table, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 [n, 4], bool [n] where there is one) of a part's clips."""
    column = table.read("embed", number, ["signature"])["signature"].combine_chunks()
    if not len(column):
        return np.zeros((0, 4), np.uint64), np.zeros(0, bool)
    return np.frombuffer(column.buffers()[1], np.uint64).reshape(-1, 4), pc.is_valid(column).to_numpy(False)


def mark(
    parts: Sequence[PartTags], table: Table, thresholds: Thresholds, scratch: Path, words: KeptWords | None = None
) -> None:
    """Clips of one content get a group; all but one of those that can be used are left out.

    scratch: a folder for what is needed meanwhile.
    words: of all clips, where copies are looked for.
    """
    content = np.concatenate([part.content for part in parts])
    usable = np.concatenate([part.left_out for part in parts]) == IN
    copies = _copied_pairs(parts, usable, words, thresholds.min_copy_distance)
    one_film = np.concatenate([same_pairs(content), copies])
    pairs = one_film
    if thresholds.max_similarity < 1:
        pairs = np.concatenate([pairs, _near_pairs(parts, usable, table, thresholds.max_similarity, scratch)])
    if not len(pairs):
        return
    group = groups(len(content), pairs)
    rows = np.flatnonzero(group >= 0)
    starts = np.cumsum([0, *(len(part.content) for part in parts)])
    bounds = np.searchsorted(rows, starts)
    places = [rows[bounds[index] : bounds[index + 1]] - starts[index] for index in range(len(parts))]
    # What serves most stays; of those the longest; of those the one with the most lines, which are less than a frame.
    served = np.concatenate([np.bitwise_count(part.tags.bits[mine]) for part, mine in zip(parts, places, strict=True)])
    seconds, lines = (
        np.concatenate([getattr(part, name)[mine] for part, mine in zip(parts, places, strict=True)])
        for name in ("seconds", "lines")
    )
    seconds = seconds + lines / (_MAX_LINES * 2 * FPS)
    stays = staying(group[rows], usable[rows], served + seconds / (1 + seconds.max()))
    leaves = usable[rows] & (stays != np.arange(len(rows)))
    is_same = content[rows] == content[rows[stays]]
    copied = groups(len(content), one_film)[rows]
    is_copy = (copied >= 0) & (copied == copied[stays])
    for part, mine, begin, end in zip(parts, places, bounds[:-1], bounds[1:], strict=True):
        part.dedup_group[mine] = group[rows[begin:end]]
        part.left_out[mine[leaves[begin:end]]] = WHYS.index(MUCH_ALIKE)
        part.left_out[mine[(leaves & is_copy)[begin:end]]] = WHYS.index(COPY)
        part.left_out[mine[(leaves & is_same)[begin:end]]] = WHYS.index(DUPLICATE)


def _copied_pairs(
    parts: Sequence[PartTags], usable: np.ndarray, words: KeptWords | None, distance: float
) -> np.ndarray:
    """int64 [P, 2] of usable clips that are one film; none without words."""
    if words is None:
        return np.zeros((0, 2), np.int64)
    starts = np.cumsum([0, *(len(part.seconds) for part in parts)])

    def seconds_of(rows: np.ndarray) -> np.ndarray:
        bounds = np.searchsorted(rows, starts)
        places = zip(parts, starts[:-1], itertools.pairwise(bounds), strict=True)
        return np.concatenate([part.seconds[rows[a:b] - start] for part, start, (a, b) in places])

    hashed = np.concatenate([part.hashed for part in parts])
    return find_copies(words, seconds_of, hashed & usable, distance)


def _near_pairs(
    parts: Sequence[PartTags], usable: np.ndarray, table: Table, max_similarity: float, scratch: Path
) -> np.ndarray:
    """int64 [P, 2] of usable clips whose embeddings have a higher cosine, as the file's head says."""
    chosen = np.concatenate([part.embedded for part in parts]) & usable
    rows = np.flatnonzero(chosen)
    starts = np.cumsum([0, *(len(part.content) for part in parts)])
    signatures, video = np.empty((len(rows), 4), np.uint64), np.empty(len(rows), np.uint64)
    seconds = np.concatenate([part.seconds for part in parts])[rows]
    at = 0
    for part, begin, end in zip(parts, starts[:-1], starts[1:], strict=True):
        mine = chosen[begin:end]
        signatures[at : at + mine.sum()], video[at : at + mine.sum()] = part.signature[mine], part.video[mine]
        at += int(mine.sum())
        part.signature, part.video = np.zeros((0, 4), np.uint64), np.zeros(0, np.uint64)  # lets go of what it has

    def may_be_one(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        length, other_length = seconds[one], seconds[other]
        agree = np.abs(length - other_length) <= _LENGTH_SLACK * np.maximum(length, other_length)
        return np.asarray(agree & (video[one] != video[other]))

    def read_vectors(wanted: np.ndarray) -> Iterator[np.ndarray]:
        """Part by part."""
        places = rows[wanted]
        bounds = np.searchsorted(places, starts)
        for index, part in enumerate(parts):
            if bounds[index] < bounds[index + 1]:
                mine = places[bounds[index] : bounds[index + 1]] - starts[index]
                column = table.read("embed", part.number, ["embedding"])["embedding"].take(mine)
                yield np.frombuffer(b"".join(column.to_pylist()), np.float16).reshape(len(mine), -1)

    pairs, cosine = near_pairs(signatures, max_similarity, may_be_one, read_vectors, scratch)
    return rows[pairs[mutual(pairs, cosine, video)]]


def same_pairs(content_N: np.ndarray) -> np.ndarray:
    """int64 [P, 2]: rows with equal numbers, each with the one before it."""
    order = np.argsort(content_N, kind="stable")
    same = np.flatnonzero(content_N[order[1:]] == content_N[order[:-1]])
    return np.stack([order[same], order[same + 1]], axis=1)


def near_pairs(
    signatures_N4: np.ndarray,
    similarity: float,
    may_be_one: Callable[[np.ndarray, np.ndarray], np.ndarray],
    read_vectors: Callable[[np.ndarray], Iterator[np.ndarray]],
    scratch: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [P, 2], float32 [P]): pairs of rows whose vectors have a cosine above `similarity`, and the cosine.

    Args:
        signatures_N4: uint64.
        may_be_one: bool [k], whether rows and others, int64 [k] each, are worth a comparison.
        read_vectors: gives the vectors of rows (increasing), float16 [k, D], block by block.
        scratch: a folder for the vectors of those that could be near; nothing of it stays.
    """
    pairs_P2 = candidates(signatures_N4, similarity, may_be_one)
    cosine_P = np.zeros(len(pairs_P2), np.float32)
    if not len(pairs_P2):
        return pairs_P2, cosine_P
    rows, places = np.unique(pairs_P2, return_inverse=True)
    places_P2 = places.reshape(-1, 2)
    with tempfile.TemporaryFile(dir=scratch) as file:
        size = 0
        for block in read_vectors(rows):
            file.write(np.ascontiguousarray(block, np.float16).tobytes())
            size = block.shape[1]
        file.flush()
        vectors = np.memmap(file, np.float16, "r", shape=(len(rows), size))
        for begin in range(0, len(pairs_P2), _BLOCK // 16):
            one, other = places_P2[begin : begin + _BLOCK // 16].T
            a, b = vectors[one].astype(np.float32), vectors[other].astype(np.float32)
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)  # not quite 1 in float16
            cosine_P[begin : begin + len(one)] = np.einsum("pd,pd->p", a, b) / lengths
        del vectors
    near = cosine_P > similarity
    return pairs_P2[near], cosine_P[near]


def mutual(pairs_P2: np.ndarray, cosine_P: np.ndarray, video_N: np.ndarray) -> np.ndarray:
    """Bool [P]: pairs of which each row is the one of its video that is most like the other row."""
    kept = np.ones(len(pairs_P2), bool)
    for one, other in (pairs_P2.T, pairs_P2.T[::-1]):
        order = np.lexsort((-cosine_P, video_N[other], one))
        row, video = one[order], video_N[other][order]
        is_first = np.ones(len(order), bool)
        is_first[1:] = (row[1:] != row[:-1]) | (video[1:] != video[:-1])
        kept[order[~is_first]] = False
    return kept


def candidates(
    signatures_N4: np.ndarray, similarity: float, may_be_one: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """int64 [P, 2], sorted: pairs that are neighbours in some order, and that their signatures do not rule out."""
    count = len(signatures_N4)
    bytes_N32 = signatures_N4.view(np.uint8)
    differ = math.acos(similarity) / math.pi
    limit = SIGNATURE_BITS * differ + 3 * math.sqrt(SIGNATURE_BITS * differ * (1 - differ))
    found = np.zeros(0, np.int64)
    for number in range(_orders(count, differ)):
        key = np.zeros(count, np.uint64)
        for byte in random.Random(number).sample(range(bytes_N32.shape[1]), _KEY_BYTES):
            key <<= np.uint64(8)
            key |= bytes_N32[:, byte]
        order = np.argsort(key, kind="stable")
        codes = [found]
        for begin in range(0, count, _BLOCK):
            for step in range(1, _NEIGHBOURS + 1):
                other = order[begin + step : begin + step + _BLOCK]
                one = order[begin : begin + len(other)]
                bits = np.bitwise_count(signatures_N4[one] ^ signatures_N4[other]).sum(axis=1, dtype=np.int64)
                near = np.flatnonzero(bits <= limit)
                near = near[may_be_one(one[near], other[near])]
                one, other = one[near], other[near]
                codes.append(np.minimum(one, other) * count + np.maximum(one, other))
        found = np.unique(np.concatenate(codes))
    return np.stack([found // max(count, 1), found % max(count, 1)], axis=1)


def groups(count: int, pairs_P2: np.ndarray) -> np.ndarray:
    """int32 [count]: the number of the group that a row is in by these pairs, in the order of their first rows; -1 for
    one that is alone.
    """
    found = np.full(count, -1, np.int32)
    if len(pairs_P2):
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        rows, places = np.unique(pairs_P2, return_inverse=True)
        one, other = places.reshape(-1, 2).T
        graph = coo_matrix((np.ones(len(one), np.int8), (one, other)), shape=(len(rows), len(rows)))
        _, labels = connected_components(graph, directed=False)
        _, first, labels = np.unique(labels, return_index=True, return_inverse=True)
        found[rows] = np.argsort(np.argsort(first))[labels]
    return found


def staying(groups_N: np.ndarray, usable_N: np.ndarray, worth_N: np.ndarray) -> np.ndarray:
    """int64 [N]: of each row the row of its group that stays: the usable one of most worth, the first of equals; its
    own where it is alone, or where none of them is usable.
    """
    stays = np.arange(len(groups_N))
    rows = np.flatnonzero((groups_N >= 0) & usable_N)
    rows = rows[np.lexsort((rows, -worth_N[rows], groups_N[rows]))]
    numbers, first = np.unique(groups_N[rows], return_index=True)
    of_group = np.full(int(groups_N.max(initial=-1)) + 1, -1)
    of_group[numbers] = rows[first]
    grouped = np.flatnonzero(groups_N >= 0)
    best = of_group[groups_N[grouped]]
    stays[grouped] = np.where(best < 0, grouped, best)
    return stays


def _orders(count: int, differ: float) -> int:
    """How many orders of bits: two rows with that share of differing bits are neighbours in one where the first bits,
    enough of them to tell `count` rows apart, are the same.
    """
    if count < 2:
        return 0
    meet = (1 - differ) ** max(1.0, math.log2(count / _NEIGHBOURS))
    return min(_MOST_ORDERS, math.ceil(math.log(_LOST) / math.log1p(-meet))) if meet < 1 else 1
