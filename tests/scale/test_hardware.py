"""The hardware table against the vendors' own figures, and slices that exist and do not."""

import pytest
from jax.experimental.pallas import tpu as pltpu

from omnihuman_jax.scale import hardware
from omnihuman_jax.scale.hardware import ACCELERATORS, parse_topology, slices


def test_several_slices() -> None:
    topology = parse_topology("v6e:16x16", num_slices=2)
    assert (topology.chips, topology.hosts, topology.chips_per_slice, topology.slice.name) == (512, 128, 256, "v6e-256")
    assert parse_topology("tpu7x:4x4x4", num_slices=2).devices == 256


def test_gpus_come_in_machines_of_eight() -> None:
    assert [parse_topology(f"h100:{n}").hosts for n in (1, 4, 8, 64)] == [1, 1, 1, 8]
    with pytest.raises(ValueError, match="no slices"):
        _ = parse_topology("h100:64").slice


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v9:4x4", r"unknown accelerator 'v9'; there are v4, .*tpu7x, tpu8t, tpu8i, a100, h100, h200, b200"),
        ("v5p", "write it like v5p:4x4x4"),
        ("v5p:0x4x4", "write it like v5p:4x4x4"),
        ("v5p:8x4x4", r"\(128 chips\): v5p topologies ascend.*; the nearest are 4x4x8 \(128 chips\)"),
        ("v5p:3x3x3", r"the nearest are 2x4x4 \(32 chips\), 2x2x4 \(16 chips\)"),
        ("tpu8i:8", r"tpu8i has no topology 8: it has 4; the nearest are 4 \(4 chips\)"),
        ("tpu8t:4x8", r"tpu8t has no topology '4x8': it has 1x1x1"),
        ("v6e:4x4x4", r"the nearest are 8x8 \(64 chips\)"),
        ("v6e:16x32", r"\(512 chips\): .*; the nearest are 16x16 \(256 chips\)"),
        ("v5p:32x32x32", "the largest slice has 140; the nearest are"),
        ("h100:20", "h100:16 or h100:24"),
        ("h100:4x4", "h100:16"),
    ],
)
def test_what_does_not_exist_names_what_does(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_topology(text)


def test_gpus_have_no_slices() -> None:
    with pytest.raises(ValueError, match="total number of GPUs"):
        parse_topology("h100:64", num_slices=2)
    with pytest.raises(ValueError, match="at least 1"):
        parse_topology("v6e:4x4", num_slices=0)


@pytest.mark.parametrize("name", [name for name, row in ACCELERATORS.items() if row.platform == "tpu"])
def test_every_listed_slice_parses(name: str) -> None:
    listed = list(slices(ACCELERATORS[name], most=2048))
    assert len(set(listed)) == len(listed) >= (1 if ACCELERATORS[name].planned else 8)
    for dims in listed:
        topology = parse_topology(f"{name}:{'x'.join(map(str, dims))}")
        assert topology.hosts * topology.slice.chips_per_host == topology.chips


def test_rings_close_where_the_cloud_says() -> None:
    assert [parse_topology("v5p:2x4x4").has_wrap(dim) for dim in range(3)] == [False, True, True]
    assert [parse_topology("v6e:8x16").has_wrap(dim) for dim in range(2)] == [False, True]
    assert not parse_topology("h100:8").has_wrap(0)


def test_every_number_has_a_source() -> None:
    for row in ACCELERATORS.values():
        assert row.source and row.efficiencies.source
        efficiencies = row.efficiencies
        assert all(
            0 < x < 1 for x in (efficiencies.matmul, efficiencies.attention_forward, efficiencies.attention_backward)
        )
        assert (
            1e14 < row.peak_flops < 1e16
            and 1e10 < row.hbm_bytes < 1e12
            and 100 < row.peak_flops / row.hbm_bandwidth < 700
        )


def test_the_peak_of_a_device_by_jaxs_name_of_it() -> None:
    assert hardware.device_flops("TPU v5") == ACCELERATORS["v5p"].peak_flops
    assert hardware.device_flops("TPU7x") == ACCELERATORS["tpu7x"].peak_flops / 2  # two devices a chip
    assert hardware.device_flops("NVIDIA H100 80GB HBM3") == ACCELERATORS["h100"].peak_flops
    assert hardware.device_flops("NVIDIA H100 PCIe") is None and hardware.device_flops("cpu") is None


def test_peaks_and_memory_are_those_of_jaxs_own_table() -> None:
    """Which has TPU 8t and 8i from 0.12 on; its HBM is what the chip has, ours what a program gets."""
    names = {"v4": "v4", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "7x": "tpu7x", "8t": "tpu8t", "8i": "tpu8i"}
    seen = set()
    for version in pltpu.ChipVersion:
        if (name := names.get(str(version))) is None:
            continue
        row, cores = ACCELERATORS[name], version.num_physical_tensor_cores_per_chip
        info = pltpu.get_tpu_info_for_chip(version, 1)
        assert row.peak_flops == pytest.approx(cores * info.bf16_ops_per_second, rel=0.005), name
        assert 0.88 < row.hbm_bytes / (cores * info.hbm_capacity_bytes) <= 1, name
        assert row.hbm_bandwidth == pytest.approx(cores * info.mem_bw_bytes_per_second, rel=0.13), name
        seen.add(name)
    assert {"v4", "v5e", "v5p", "v6e", "tpu7x"} <= seen
