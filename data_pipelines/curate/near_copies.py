"""Pairs of clips that are the same film, by their hashes (`clip_hashes.py`): which of millions are within a few bits.

Locality-sensitive hashing: the bits are dealt out to six bands, a third of each from each word; clips that agree in all
bits of a band are compared whole. A copy that differs in 2 % of the bits is missed by all bands in 1 of 100 cases.
"""

from collections.abc import Iterator

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


def words_of(previewed: pa.Table, listened: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 [n, 3], bool [n] where a clip has all of them) of a part's clips."""
    columns = [(previewed if name in OF_PICTURES else listened)[name] for name in WORDS]
    words = np.stack([pc.fill_null(column, 0).to_numpy() for column in columns], 1)
    return words, np.logical_and.reduce([column.is_valid().to_numpy() for column in columns])


def find_copies(words_NW: np.ndarray, seconds_N: np.ndarray, rows: np.ndarray, distance: float = 1.0) -> np.ndarray:
    """Rows [P, 2] of clips that are the same film, the first of each pair the lower.

    words_NW: uint64 [N, 3], the columns `WORDS`. seconds_N: how long the clips are. rows: those in question; no copy of
    the words is made. distance: bits by which copies may differ, in shares of `MAX_BITS`.
    """
    limits = np.array(MAX_BITS) * distance
    found = [pairs for key in _keys(words_NW) for pairs in _alike(key[rows], rows, words_NW, seconds_N, limits)]
    return np.unique(np.concatenate([np.zeros((0, 2), np.int64), *found]), axis=0)


def _keys(words_NW: np.ndarray) -> Iterator[np.ndarray]:
    """uint32 [N] of each band."""
    assert _BANDS * _SLICE <= BITS and _SLICE * words_NW.shape[1] <= 32
    mask = np.uint32((1 << _SLICE) - 1)
    for band in range(_BANDS):
        key = np.zeros(len(words_NW), np.uint32)
        for word_N in words_NW.T:
            key <<= np.uint32(_SLICE)
            key |= (word_N >> np.uint64(band * _SLICE)).astype(np.uint32) & mask
        yield key


def _alike(
    key: np.ndarray, rows: np.ndarray, words_NW: np.ndarray, seconds_N: np.ndarray, limits: np.ndarray
) -> Iterator[np.ndarray]:
    """Pairs of rows that are the same film, of those with the same key; `key` is of `rows`."""
    order = np.argsort(key, kind="stable")
    key = key[order]
    for step in range(1, min(_NEIGHBOURS, len(key) - 1) + 1):
        at = np.flatnonzero(key[step:] == key[:-step])
        if not at.size:
            return
        one, other = rows[order[at]], rows[order[at + step]]
        differ = np.bitwise_count(words_NW[one] ^ words_NW[other])
        same = (differ <= limits).all(1) & (np.abs(seconds_N[one] - seconds_N[other]) <= MAX_SECONDS)
        yield np.sort(np.stack([one[same], other[same]], 1), axis=1)
