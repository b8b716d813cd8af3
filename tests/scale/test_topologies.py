"""Slices against the clouds' own tables."""

import pytest

from omnihuman_jax.scale.topologies import GENERATIONS, tpu_slice

# generation, topology, chips, hosts, chips a host, name
TABLE = [
    ("v4", "2x2x1", 4, 1, 4, "v4-8"),
    ("v4", "8x8x12", 768, 192, 4, "v4-1536"),
    ("v4", "12x8x8", 768, 192, 4, "v4-1536"),
    ("v5e", "1x1", 1, 1, 1, "v5litepod-1"),
    ("v5e", "2x4", 8, 2, 4, "v5litepod-8"),
    ("v5e", "16x16", 256, 64, 4, "v5litepod-256"),
    ("v5p", "2x4x4", 32, 8, 4, "v5p-64"),
    ("v5p", "4x4x8", 128, 32, 4, "v5p-256"),
    ("v5p", "16x16x24", 6144, 1536, 4, "v5p-12288"),
    ("v6e", "2x2", 4, 1, 4, "v6e-4"),
    ("v6e", "8x16", 128, 32, 4, "v6e-128"),
    ("tpu7x", "1x1x1", 1, 1, 1, "tpu7x-2"),
    ("tpu7x", "8x16x16", 2048, 512, 4, "tpu7x-4096"),
]


@pytest.mark.parametrize(("generation", "topology", "chips", "hosts", "per_host", "name"), TABLE)
def test_slices(generation: str, topology: str, chips: int, hosts: int, per_host: int, name: str) -> None:
    found = tpu_slice(generation, topology)
    assert (found.chips, found.hosts, found.chips_per_host, found.name) == (chips, hosts, per_host, name)
    assert found.hosts * found.chips_per_host == found.chips
    assert found.devices == chips * (2 if generation == "tpu7x" else 1)


@pytest.mark.parametrize(
    ("generation", "topology", "message"),
    [
        ("v5", "2x2", "unknown: it is one of v4, v5e"),
        ("v5e", "2x3", "v5e has no topology 2x3: it has 1x1, 2x2"),
        ("v5e", "32x16", "v5e has no topology 32x16"),
        ("v5e", "4x4x4", "v5e has no topology '4x4x4'"),
        ("v5p", "4x4", "v5p has no topology '4x4': it has 2x2x1"),
        ("v5p", "4x4x6", "multiples of 4 with at most 140 cubes"),
        ("v5p", "8x4x4", "ascend: 4x4x8"),
        ("v5p", "32x32x32", "512 cubes of 4x4x4, the largest slice has 140"),
        ("v4", "16x16x20", "80 cubes of 4x4x4, the largest slice has 64"),
        ("v6e", "", "v6e has no topology ''"),
    ],
)
def test_a_wrong_slice_is_an_error_with_what_there_is(generation: str, topology: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")) as error:
        tpu_slice(generation, topology)
    assert "\n" not in str(error.value)


def test_every_listed_topology_is_a_slice() -> None:
    assert all(tpu_slice(name, topology).hosts >= 1 for name, kind in GENERATIONS.items() for topology in kind.small)
