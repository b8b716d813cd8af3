"""TPU slices by generation and topology: chips, hosts, JAX devices. Plain tables, no JAX.

Every multi-host slice of every generation has hosts of 4 chips; v5e and v6e have machines of 8 for 2x4.
Sources: GKE's and Cloud TPU's pages, xpk's tables (2026-06).
"""

import dataclasses
import difflib
import math
import re


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TpuGeneration:
    """What differs between the generations as far as the shape of a slice goes.

    name: ours and the cloud's: v4, v5e, v5p, v6e, tpu7x; tpu8t and tpu8i are announced
    small: topologies that are listed one by one; for 2D generations there are no others
    max_cubes: 3D: a larger slice is A x B x C, all multiples of 4, of at most so many 4x4x4 cubes; 0: none
    any_order: 3D: A <= B <= C is not asked for
    devices_per_chip: that JAX shows (a chip's two cores are one device since v4; tpu7x shows two)
    name_prefix, cores_in_name: the cloud's name of a slice is prefix-N, N its chips (or cores, two a chip)
    """

    name: str
    small: tuple[str, ...]
    max_cubes: int = 0
    any_order: bool = False
    devices_per_chip: int = 1
    name_prefix: str
    cores_in_name: bool


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")

GENERATIONS: dict[str, TpuGeneration] = {
    generation.name: generation
    for generation in (
        TpuGeneration(name="v4", small=_SOLID, max_cubes=64, any_order=True, name_prefix="v4", cores_in_name=True),
        TpuGeneration(name="v5e", small=_FLAT, name_prefix="v5litepod", cores_in_name=False),
        TpuGeneration(name="v5p", small=_SOLID, max_cubes=140, name_prefix="v5p", cores_in_name=True),
        TpuGeneration(name="v6e", small=_FLAT, name_prefix="v6e", cores_in_name=False),
        TpuGeneration(
            name="tpu7x",
            small=("1x1x1", *_SOLID),
            max_cubes=144,
            devices_per_chip=2,
            name_prefix="tpu7x",
            cores_in_name=True,
        ),
        # Announced: a torus of 9,600 chips, and boards of four chips; what slices there will be is not.
        TpuGeneration(name="tpu8t", small=("1x1x1", *_SOLID), max_cubes=150, name_prefix="tpu8t", cores_in_name=False),
        TpuGeneration(name="tpu8i", small=("4",), devices_per_chip=2, name_prefix="tpu8i", cores_in_name=True),
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TpuSlice:
    """One slice; `topology` in chips, such as 4x4x8; `one_host`: a machine of 8 chips (v5e, v6e: 2x4)."""

    generation: TpuGeneration
    topology: str
    one_host: bool = False

    @property
    def chips(self) -> int:
        return math.prod(_dims(self.topology))

    @property
    def chips_per_host(self) -> int:
        return min(self.chips, 8 if self.one_host else 4)

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def devices(self) -> int:
        """JAX devices of the slice."""
        return self.chips * self.generation.devices_per_chip

    @property
    def name(self) -> str:
        """The cloud's name of it, such as v5p-128."""
        return f"{self.generation.name_prefix}-{self.chips * (2 if self.generation.cores_in_name else 1)}"


def tpu_slice(generation: str, topology: str, *, one_host: bool = False) -> TpuSlice:
    """The slice; ValueError, with what there is, on an unknown generation or a topology that it does not have."""
    if generation not in GENERATIONS:
        near = difflib.get_close_matches(generation, GENERATIONS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"TPU generation {generation!r} is unknown: it is one of {', '.join(GENERATIONS)}{hint}")
    kind = GENERATIONS[generation]
    rank = len(kind.small[0].split("x"))
    if topology in kind.small:
        return TpuSlice(generation=kind, topology=topology, one_host=one_host)
    listed = ", ".join(kind.small)
    cubes = f", or AxBxC of multiples of 4 with at most {kind.max_cubes} cubes of 4x4x4" if kind.max_cubes else ""
    if not re.fullmatch("x".join([r"[1-9]\d*"] * rank), topology):
        raise ValueError(f"{generation} has no topology {topology!r}: it has {listed}{cubes}")
    dims = _dims(topology)
    if not kind.max_cubes or any(dim % 4 for dim in dims):
        raise ValueError(f"{generation} has no topology {topology}: it has {listed}{cubes}")
    if (count := math.prod(dims) // 64) > kind.max_cubes:
        raise ValueError(f"{generation} {topology} is {count} cubes of 4x4x4, the largest slice has {kind.max_cubes}")
    if not kind.any_order and list(dims) != sorted(dims):
        raise ValueError(f"{generation} topologies ascend: {'x'.join(map(str, sorted(dims)))} instead of {topology}")
    return TpuSlice(generation=kind, topology=topology)


def _dims(topology: str) -> tuple[int, ...]:
    return tuple(map(int, topology.split("x")))
