"""float16 to float32: every one of the 65,536 values, and shapes as packing has them."""

import numpy as np
import pytest

from omnihuman_jax.data.half import widen

ALL = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def widened(half: np.ndarray) -> np.ndarray:
    out = np.full(half.shape, 7, np.float32)
    widen(half, out)
    return out


def test_every_value_is_what_numpy_casts_it_to():
    finite = ALL[np.isfinite(ALL)]
    assert len(finite) == 63488  # subnormals and both zeros among them
    assert widened(finite).tobytes() == finite.astype(np.float32).tobytes()
    assert widened(ALL).tobytes() == ALL.astype(np.float32).tobytes()


@pytest.mark.parametrize("offset", [0, 1])
def test_any_shape_and_place_in_memory(offset):
    values = np.random.default_rng(0).normal(size=(5, 3, 7)).astype(np.float16)
    data = bytes(offset) + values.tobytes()
    half = np.frombuffer(data, np.float16, offset=offset).reshape(values.shape)
    assert widened(half).tobytes() == values.astype(np.float32).tobytes()
    assert widened(half[:0]).shape == (0, 3, 7)
    assert widened(half.transpose(1, 0, 2)).tobytes() == values.transpose(1, 0, 2).astype(np.float32).tobytes()
    other = np.zeros(3, np.float32)
    widen(np.asarray([1e9, 0.5, np.nan]), other)
    assert other[:2].tolist() == [1e9, 0.5] and np.isnan(other[2])
    into = np.zeros((9, 3, 7), np.float32)
    widen(half, into[2:7])
    assert (into[2:7] == values).all() and not into[:2].any() and not into[7:].any()
