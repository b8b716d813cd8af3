"""A keyed permutation of 0 .. size - 1, place by place: nothing is sorted and nothing is kept.

A Feistel network permutes the next power of two; a place that lands outside is permuted again until it lands inside
("cycle walking", fewer than two rounds on average), which makes it a permutation of the size itself.
"""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / the golden ratio: its multiples lie evenly
# Of few bits a round mixes little: 8 rounds of 3 bits are visibly not uniform.
_ROUNDS, _SMALL_BITS, _SMALL_ROUNDS = 8, 6, 24
_ROUND_KEYS = np.arange(_SMALL_ROUNDS, dtype=np.uint64) * GOLDEN


def mixed(bits: np.ndarray) -> np.ndarray:
    """uint64 of the same shape: every bit of the result depends on every bit given (the finaliser of SplitMix64)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def permuted(place: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """int64 [n]: where each place goes, by the permutation of its own key.

    Args:
        place: int64 [n], 0 <= place < size <= 2**62.
        key: uint64 [n]; places of one key go to different places.
    """
    result = place.astype(np.uint64)
    walking = np.arange(len(place))
    while len(walking):
        moved = _feistel(result[walking], size, key[walking])
        result[walking] = moved
        walking = walking[moved >= np.uint64(size)]
    return result.astype(np.int64)


def _feistel(place: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """A permutation of the power of two from `size` on."""
    bits = max(1, (size - 1).bit_length())
    low = bits // 2
    masks = np.uint64((1 << (bits - low)) - 1), np.uint64((1 << low) - 1)
    left, right = place >> np.uint64(low), place & masks[1]
    for number, round_key in enumerate(_ROUND_KEYS[: _SMALL_ROUNDS if bits <= _SMALL_BITS else _ROUNDS]):
        if number % 2 == 0:
            left = left ^ (mixed(right ^ (key + round_key)) >> np.uint64(32) & masks[0])
        else:
            right = right ^ (mixed(left ^ (key + round_key)) >> np.uint64(32) & masks[1])
    return left << np.uint64(low) | right
