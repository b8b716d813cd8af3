"""Tokens and their windows: values reach the tokens of their window, and nothing else does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnihuman_jax import segments

IDS = np.array([[2, 2, 0, 3], [1, 0, 0, 1]], np.int32)
NAN = np.nan


@pytest.mark.parametrize("values", [[[7, -4, 5], [1, 2, 3]], [[NAN, -0.1, 1e-8], [3.3, NAN, np.inf]]])
def test_a_token_has_the_value_of_its_window_bit_for_bit_and_padding_has_none(values) -> None:
    values_BG = np.asarray(values, np.int32 if isinstance(values[0][0], int) else np.float32)
    expected = np.where(IDS > 0, np.take_along_axis(values_BG, np.maximum(IDS - 1, 0), axis=1), 0)
    found = jax.jit(segments.of_window)(values_BG, IDS)
    assert found.dtype == values_BG.dtype
    np.testing.assert_array_equal(found, expected)


def test_flags_are_the_same_in_numpy_and_in_jax() -> None:
    flags_BG = np.array([[True, True, False], [False, True, True]])
    on_host = segments.of_window(flags_BG, IDS)
    assert isinstance(on_host, np.ndarray) and on_host.tolist() == [[True, True, False, False], 4 * [False]]
    np.testing.assert_array_equal(segments.of_window(jnp.asarray(flags_BG), jnp.asarray(IDS)), on_host)


def test_members_of_each_slot() -> None:
    members_BLG = segments.members(IDS, 3)
    assert members_BLG.sum(axis=1).tolist() == [[0, 2, 1], [2, 0, 0]]
    assert not members_BLG[IDS == 0].any()
