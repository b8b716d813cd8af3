"""Tokens and their windows: what segment ids (g + 1 for the window in slot g, 0 for padding) say, read either way.

A comparison with every slot, never a gather: no token is out of range, tokens split over the mesh as they lie, and
there are few slots. Rows of a table that is differentiated are `models.layers.look_up`'s.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from omnihuman_jax.typing import Array


def members(segment_ids_BL: Array, windows: int) -> Array:
    """Whether a token is one of the window in each slot, bool [B, L, G]; padding is no window's. Numpy or jax."""
    return segment_ids_BL[..., None] == np.arange(1, windows + 1)


def of_window(values_BG: Array, segment_ids_BL: Array) -> Array:
    """Each token's value of its window, [B, L] in the dtype of `values_BG`; 0 (False) on padding.

    Exact, whatever the other windows' values are, and flags stay in numpy where both arguments are numpy arrays.
    """
    members_BLG = members(segment_ids_BL, values_BG.shape[-1])
    if values_BG.dtype == np.bool_:
        marked_BLG: Any = members_BLG & values_BG[..., None, :]
        return marked_BLG.any(axis=-1)
    return jnp.where(members_BLG, values_BG[..., None, :], 0).sum(axis=-1, dtype=values_BG.dtype)
