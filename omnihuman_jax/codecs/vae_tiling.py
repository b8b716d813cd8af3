"""Tiles of a video, each through a network alone, overlapping and blended: what `diffusers` calls tiling, equal to it.

A tile is cut at multiples of a stride and is smaller at the far edges; neighbours are blended linearly over what they
share, one after the other in reading order, and a tile's head may be blended with a neighbour that was blended before.
That order is part of the result. Tiles of one shape run through one program (`jax.lax.map`); there are two or three
lengths a dim where the stride is half a tile or more, and more below that.

Everything here is of one video, [frames, height, width, channels], and counts tiles in latents.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax.typing import SPATIAL_STRIDE, TEMPORAL_STRIDE

Network = Callable[[jax.Array], jax.Array]
K = TypeVar("K", bound=Hashable)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Size of a tile and distance between two, in latents along one dim; size 0: the dim is not tiled."""

    size: int
    stride: int

    @classmethod
    def of_pixels(cls, name: str, size: int, stride: int, unit: int) -> "Tile":
        """A tile given in pixels or frames; ValueError if it does not fall on latents of `unit` pixels or frames."""
        if size < 0 or size % unit or (size and (stride % unit or not 0 < stride <= size)):
            raise ValueError(
                f"tile_{name} {size}, stride_{name} {stride}: multiples of {unit} with 0 < stride <= tile, or tile 0"
                " for none"
            )
        return cls(size=size // unit, stride=stride // unit)

    def needed(self, length: int) -> bool:
        return bool(self.size) and length > self.size

    def starts(self, length: int) -> range:
        return range(0, length, self.stride)

    @property
    def overlap(self) -> int:
        return self.size - self.stride


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Direction:
    """How many pixels or frames a latent is, on the way in and on the way out of the network."""

    pixels_in: int
    pixels_out: int

    def frames(self, latents: int, into: bool) -> int:
        """Length in time of `latents` latents on one side of the network: the first is one frame, later ones four."""
        is_latent = (self.pixels_in if into else self.pixels_out) == 1
        return latents if is_latent else 1 + TEMPORAL_STRIDE * (latents - 1)

    def frame_stride(self, into: bool) -> int:
        return 1 if (self.pixels_in if into else self.pixels_out) == 1 else TEMPORAL_STRIDE


ENCODE = Direction(pixels_in=SPATIAL_STRIDE, pixels_out=1)
DECODE = Direction(pixels_in=1, pixels_out=SPATIAL_STRIDE)


def over_space(network: Network, x_THWC: jax.Array, tiles: tuple[Tile, Tile], direction: Direction) -> jax.Array:
    """`network` over tiles of rows and columns; the whole at once where it is no larger than a tile."""
    into, out = direction.pixels_in, direction.pixels_out
    frames, channels = x_THWC.shape[0], x_THWC.shape[-1]
    sides = (x_THWC.shape[1] // into, x_THWC.shape[2] // into)
    if not any(tile.needed(side) for tile, side in zip(tiles, sides)):
        return network(x_THWC)
    # As in diffusers, a dim that a tile covers is cut too once the other is larger than a tile.
    cut = [tile if tile.size else Tile(size=side, stride=side) for tile, side in zip(tiles, sides)]
    starts = {
        (row, column): (top, left)
        for row, top in enumerate(cut[0].starts(sides[0]))
        for column, left in enumerate(cut[1].starts(sides[1]))
    }
    shapes = {
        place: (min(cut[0].size, sides[0] - top), min(cut[1].size, sides[1] - left))
        for place, (top, left) in starts.items()
    }

    def tile_at(start: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        size = (frames, shape[0] * into, shape[1] * into, channels)
        return network(jax.lax.dynamic_slice(x_THWC, (0, start[0], start[1], 0), size))

    made = _by_shape(tile_at, {place: tuple(into * s for s in start) for place, start in starts.items()}, shapes)
    rows: list[jax.Array] = []
    for row in range(len(cut[0].starts(sides[0]))):
        kept = []
        for column in range(len(cut[1].starts(sides[1]))):
            tile = made[row, column]
            if row:
                tile = blend(made[row - 1, column], tile, cut[0].overlap * out, axis=1)
            if column:
                tile = blend(made[row, column - 1], tile, cut[1].overlap * out, axis=2)
            made[row, column] = tile
            kept.append(tile[:, : cut[0].stride * out, : cut[1].stride * out])
        rows.append(jnp.concatenate(kept, axis=2))
    return jnp.concatenate(rows, axis=1)[:, : sides[0] * out, : sides[1] * out]


def over_time(network: Network, x_THWC: jax.Array, tile: Tile, direction: Direction) -> jax.Array:
    """`network` over stretches of tile.size + 1 latents, of which all but the first give up their first latent.

    What a stretch gives up is a latent made of a single frame, or that frame: it only starts the causal network.
    """
    latents = x_THWC.shape[0] if direction.pixels_in == 1 else 1 + (x_THWC.shape[0] - 1) // TEMPORAL_STRIDE
    if not tile.needed(latents):
        return network(x_THWC)
    # A last stretch of one latent would give it up and be empty.
    starts = {index: (start,) for index, start in enumerate(tile.starts(latents)) if not index or latents - start > 1}
    shapes = {index: (min(tile.size + 1, latents - start),) for index, (start,) in starts.items()}

    def stretch_at(start: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return network(jax.lax.dynamic_slice_in_dim(x_THWC, start[0], direction.frames(shape[0], into=True)))

    stride_in, stride_out = direction.frame_stride(into=True), direction.frame_stride(into=False)
    made = _by_shape(stretch_at, {index: (start * stride_in,) for index, (start,) in starts.items()}, shapes)
    kept = []
    for index in made:
        if index:
            made[index] = blend(made[index - 1], made[index][1:], tile.overlap * stride_out, axis=0)
        kept.append(made[index][: tile.stride * stride_out + (0 if index else 1)])
    return jnp.concatenate(kept)[: direction.frames(latents, into=False)]


def blend(before: jax.Array, after: jax.Array, extent: int, axis: int) -> jax.Array:
    """`after`, whose first `extent` entries along `axis` fade in from the last ones of `before`; fewer if either is
    shorter.
    """
    extent = min(before.shape[axis], after.shape[axis], extent)
    if not extent:
        return after
    weight = np.expand_dims(
        np.arange(extent, dtype=np.float32) / extent, tuple(dim for dim in range(after.ndim) if dim != axis)
    )
    tail = jax.lax.slice_in_dim(before, before.shape[axis] - extent, before.shape[axis], axis=axis)
    head = jax.lax.slice_in_dim(after, 0, extent, axis=axis)
    faded = (tail * (1 - weight) + head * weight).astype(after.dtype)
    return jnp.concatenate([faded, jax.lax.slice_in_dim(after, extent, after.shape[axis], axis=axis)], axis=axis)


def _by_shape(
    network_at: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    starts: Mapping[K, Sequence[int]],
    shapes: Mapping[K, tuple[int, ...]],
) -> dict[K, jax.Array]:
    """What `network_at(start, shape)` gives for every tile, in the order of `starts`; tiles of a shape one after the
    other.
    """
    made: dict[K, jax.Array] = {}
    for shape in sorted(set(shapes.values()), reverse=True):
        same = [key for key in starts if shapes[key] == shape]
        at = np.array([starts[key] for key in same], np.int32)
        stacked = jax.lax.map(lambda start, shape=shape: network_at(start, shape), at)
        made |= {key: stacked[index] for index, key in enumerate(same)}
    return {key: made[key] for key in starts}
