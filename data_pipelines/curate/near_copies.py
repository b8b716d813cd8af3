"""Pairs of clips that are the same film, by their hashes (`clip_hashes.py`): which of millions are within a few bits.

Locality-sensitive hashing: the bits are dealt out to six bands, a third of each from each word; clips that agree in all
bits of a band are compared whole. A copy that differs in 2 % of the bits is missed by all bands in 1 of 100 cases.

24 bytes a clip are much beside the few that `select` holds of each: they lie in a file, and a band is made in passing.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.curate.clip_hashes import BITS, OF_PICTURES, OF_SOUND

# Of 64, in the order of `WORDS`. Fixed on clips that no figure of docs/data.md is of: re-encoded, they differ by less;
# other takes of the same scene, with the same camera, by more.
WORDS = (*OF_PICTURES, *OF_SOUND)
MAX_BITS = (6, 10, 8)
# How much longer one may be: by cuts that were found a frame apart.
MAX_SECONDS = 0.2
_BANDS, _SLICE = 6, 10
# In a band, a clip is compared with so many that follow it.
_NEIGHBOURS = 8
_BLOCK = 1 << 18  # clips


def words_of(previewed: pa.Table, listened: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 [n, 3], bool [n] where a clip has all of them) of a part's clips."""
    columns = [(previewed if name in OF_PICTURES else listened)[name] for name in WORDS]
    words = np.stack([pc.fill_null(column, 0).to_numpy() for column in columns], 1)
    return words, np.logical_and.reduce([column.is_valid().to_numpy() for column in columns])


class KeptWords:
    """The words of clips, appended in the order of their rows to an empty file, which is the caller's to close."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def add(self, words_NW: np.ndarray) -> None:
        """uint64 [n, 3] of the next clips."""
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(words_NW, np.uint64).tobytes())
        self.count += len(words_NW)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, uint64 [n, 3]) of all, in order."""
        self._file.seek(0)
        for begin in range(0, self.count, _BLOCK):
            size = min(_BLOCK, self.count - begin) * 8 * len(WORDS)
            yield begin, np.frombuffer(self._file.read(size), np.uint64).reshape(-1, len(WORDS))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """uint64 [k, 3] of these rows, which increase."""
        taken = np.empty((len(rows), len(WORDS)), np.uint64)
        for begin, words_NW in self.blocks():
            first, last = np.searchsorted(rows, [begin, begin + len(words_NW)])
            taken[first:last] = words_NW[rows[first:last] - begin]
        return taken


def find_copies(
    words: KeptWords, seconds_of: Callable[[np.ndarray], np.ndarray], asked_N: np.ndarray, distance: float = 1.0
) -> np.ndarray:
    """int64 [P, 2]: rows of clips that are the same film, the first of each pair the lower.

    Args:
        words: of all N clips.
        seconds_of: how long clips are, by their rows, which increase.
        asked_N: bool, which clips are in question.
        distance: bits by which copies may differ, in shares of `MAX_BITS`.

    Raises:
        ValueError: more than 2**32 clips.
    """
    if words.count != len(asked_N) or words.count >= 1 << 32:
        raise ValueError(f"hashes of {words.count} clips for {len(asked_N)}; they must agree, and be less than 2**32")
    limits = np.array(MAX_BITS) * distance
    found = [_alike(_sorted_band(words, asked_N, band), words, seconds_of, limits) for band in range(_BANDS)]
    return np.unique(np.concatenate([np.zeros((0, 2), np.int64), *found]), axis=0)


def _sorted_band(words: KeptWords, asked_N: np.ndarray, band: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint32 [k] bits of the band, uint32 [k] rows) of the clips in question, by bits and then by row."""
    assert _BANDS * _SLICE <= BITS and _SLICE * len(WORDS) <= 32
    both = np.empty(int(asked_N.sum()), np.uint64)
    at, mask = 0, np.uint64((1 << _SLICE) - 1)
    for begin, words_NW in words.blocks():
        rows = np.flatnonzero(asked_N[begin : begin + len(words_NW)])
        key = np.zeros(len(rows), np.uint64)
        for word_N in words_NW[rows].T:
            key = (key << np.uint64(_SLICE)) | (word_N >> np.uint64(band * _SLICE)) & mask
        both[at : at + len(rows)] = key << np.uint64(32) | (rows + begin).astype(np.uint64)
        at += len(rows)
    # One number each: sorted in place, where an order of rows would take as much again, and longer.
    both.sort()
    halves = both.astype("<u8", copy=False).view("<u4")
    return halves[1::2], halves[::2]


def _alike(
    band: tuple[np.ndarray, np.ndarray],
    words: KeptWords,
    seconds_of: Callable[[np.ndarray], np.ndarray],
    limits: np.ndarray,
) -> np.ndarray:
    """int64 [P, 2]: pairs of rows that are the same film, of those with the same bits in a band."""
    key, row = band
    pairs = []
    for step in range(1, min(_NEIGHBOURS, len(key) - 1) + 1):
        at = np.flatnonzero(key[step:] == key[:-step])
        if not at.size:
            break
        pairs.append(np.stack([row[at], row[at + step]], 1).astype(np.int64))
    if not pairs:
        return np.zeros((0, 2), np.int64)
    pairs_P2 = np.concatenate(pairs)
    rows, places = np.unique(pairs_P2, return_inverse=True)
    one, other = places.reshape(-1, 2).T
    taken, seconds = words.take(rows), seconds_of(rows)
    same = (np.bitwise_count(taken[one] ^ taken[other]) <= limits).all(1)
    same &= np.abs(seconds[one] - seconds[other]) <= MAX_SECONDS
    return np.sort(pairs_P2[same], axis=1)
