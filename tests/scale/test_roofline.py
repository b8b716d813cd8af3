"""Rooflines and collectives by hand."""

import dataclasses

import pytest

from omnihuman_jax.scale import interconnect
from omnihuman_jax.scale.hardware import ACCELERATORS, Efficiencies, parse_topology
from omnihuman_jax.scale.interconnect import Path, path_between, seconds
from omnihuman_jax.scale.roofline import Communication, Work, roofline, sensitivity

# 100 FLOP/s and 10 bytes/s: arithmetic in the head.
CHIP = dataclasses.replace(
    ACCELERATORS["v5p"], peak_flops=100.0, hbm_bandwidth=10.0,
    efficiencies=Efficiencies(matmul=0.5, attention_forward=0.25, attention_backward=0.2, source="test"),
)  # fmt: skip
WORKS = [
    Work(kind="matmul", flops=1000, bytes=10),  # 20 s of arithmetic
    Work(kind="matmul", flops=10, bytes=50),  # 5 s of memory
    Work(kind="attention_forward", flops=250, bytes=0),  # 10 s
    Work(kind="attention_backward", flops=400, bytes=0),  # 20 s
    Work(kind="memory", flops=0, bytes=50),  # 5 s
]


def communication(seconds: float, network: str = "ici", *, hidden: bool = False) -> Communication:
    return Communication(
        kind="all-gather",
        axes=("fsdp",),
        network=network,
        count=1,
        bytes=1,
        sent_bytes=1,
        seconds=seconds,
        hidden=hidden,
    )


def test_every_operation_takes_the_longer_of_arithmetic_and_memory() -> None:
    line = roofline(CHIP, WORKS, [], useful_flops=1200)
    assert line.compute_s == {"attention_forward": 10, "attention_backward": 20, "matmul": 25, "memory": 5}
    assert line.busy_s == line.as_compiled_s == line.serial_s == line.overlapped_s == 60
    assert line.hbm_s == 11 and line.mfu == pytest.approx(0.2) and line.hfu == pytest.approx(1660 / 6000)


def test_what_hides_and_what_does_not() -> None:
    communications = [communication(10), communication(15, "dcn", hidden=True), communication(65, "pcie", hidden=True)]
    line = roofline(CHIP, WORKS, communications, useful_flops=1200)
    assert (line.ici_s, line.dcn_s, line.host_s) == (10, 15, 65)
    assert line.overlapped_s == 65  # the host's link decides
    assert line.as_compiled_s == 10 + max(60, 15 + 65)
    assert line.serial_s == 60 + 90 and line.mfu_serial == pytest.approx(12 / 150)
    assert line.mfu_serial < line.mfu < line.mfu_overlapped


def test_two_devices_share_a_chip() -> None:
    alone, half = (roofline(CHIP, WORKS, [], useful_flops=1200, devices_per_chip=n) for n in (1, 2))
    assert half.as_compiled_s == 2 * alone.as_compiled_s and half.mfu == alone.mfu


def test_sensitivity_is_the_roofline_at_other_efficiencies() -> None:
    table = sensitivity(CHIP, WORKS, [communication(10)], attention=[0.25, 0.5], matmul=[0.5, 1.0], useful_flops=1200)
    assert table[0][0] == pytest.approx(12 / (10 + 25 + 10 + 16 + 5)) and table[1][1] == pytest.approx(
        12 / (10 + 15 + 5 + 8 + 5)
    )


@pytest.mark.parametrize(
    ("kind", "path", "expected"),
    [
        # v5p: 90e9 bytes/s a link, one way. A closed ring is used both ways.
        ("all-gather", Path(devices=4, rings=((4, True),)), 0.75 / 2),
        ("reduce-scatter", Path(devices=4, rings=((4, True),)), 0.75 / 2),
        ("all-reduce", Path(devices=4, rings=((4, True),)), 2 * 0.75 / 2),
        ("all-gather", Path(devices=2, rings=((2, False),)), 0.5),
        ("all-gather", Path(devices=64, rings=((8, True), (8, True))), 63 / 64 / 4),
        # Half of all data crosses the middle: 8 x 1 / 4 bytes each way over two links; over one on a line.
        ("all-to-all", Path(devices=8, rings=((8, True),)), 1.0),
        ("all-to-all", Path(devices=4, rings=((4, False),)), 1.0),
        ("collective-permute", Path(devices=8, rings=((8, True),)), 1.0),
        ("all-gather", Path(devices=1), 0.0),
    ],
)
def test_collectives_on_a_torus(kind: str, path: Path, expected: float) -> None:
    assert seconds(parse_topology("v5p:8x8x8"), kind, 90e9, path) == pytest.approx(expected)


def test_between_slices_each_device_carries_its_share() -> None:
    """All-reduce of 2 slices x 4 chips: inside on the ring, a quarter of it across, twice, half of it each time."""
    topology = parse_topology("v5p:4x4x4", num_slices=2)
    path = Path(devices=8, rings=((4, True),), slices=2)
    inside = seconds(topology, "all-reduce", 1e9, Path(devices=4, rings=((4, True),)))
    assert path.network == "dcn"
    assert seconds(topology, "all-reduce", 1e9, path) == pytest.approx(2 * 1e9 / 4 / 2 / 6.25e9 + inside)


def test_where_the_members_of_a_group_lie() -> None:
    topology = parse_topology("v5p:2x4x4")
    ring = path_between(topology, [(0, (0, y, 0)) for y in range(4)])
    assert (ring.rings, ring.network) == (((4, True),), "ici")
    half = path_between(topology, [(0, (0, y, 0)) for y in range(2)])
    assert half.rings == ((2, False),)  # a part of a ring is a line
    plane = path_between(topology, [(0, (x, y, 0)) for x in range(2) for y in range(4)])
    assert plane.rings == ((2, False), (4, True))
    assert path_between(topology, [(s, (0, 0, 0)) for s in range(2)]).network == "dcn"
    gpus = parse_topology("h100:16")
    assert path_between(gpus, [(i // 8, (i,)) for i in range(8)]).network == "nvlink"
    assert path_between(gpus, [(i // 8, (i,)) for i in range(16)]).network == "dcn"


IRONWOOD = parse_topology("tpu7x:4x4x4")
RING = ((4, True),)


@pytest.mark.parametrize(
    ("kind", "path", "expected"),
    [
        # 90e9 bytes/s a link, 540e9 between the two devices of a chip.
        ("all-gather", Path(devices=2, on_chip=2), 0.5 / 6),
        # A ring through both devices of each chip: a link carries what it would with one device a chip.
        ("all-gather", Path(devices=8, on_chip=2, rings=RING), 7 / 8 / 2),
        # One device of each chip: the other device's group is on the same links.
        ("all-gather", Path(devices=4, rings=RING), 2 * 3 / 4 / 2),
        ("collective-permute", Path(devices=4, rings=RING), 2.0),
        # Twice the data of one device a chip crosses the middle, whosever it is.
        ("all-to-all", Path(devices=8, on_chip=2, rings=RING), 1.0),
        ("all-to-all", Path(devices=4, rings=RING), 1.0),
    ],
)
def test_two_devices_of_a_chip_share_its_links(kind: str, path: Path, expected: float) -> None:
    assert seconds(IRONWOOD, kind, 90e9, path) == pytest.approx(expected)


def test_where_two_devices_of_a_chip_lie() -> None:
    chip = [(0, (0, 0, 0))] * 2
    assert path_between(IRONWOOD, chip) == Path(devices=2, on_chip=2)
    assert path_between(IRONWOOD, chip).network == "chip"
    line = path_between(IRONWOOD, [(0, (x, 0, 0)) for x in range(4) for _ in range(2)])
    assert (line.devices, line.on_chip, line.rings, line.network) == (8, 2, RING, "ici")
    assert path_between(IRONWOOD, [(0, (x, 0, 0)) for x in range(4)]).on_chip == 1


def test_a_permute_takes_as_long_as_its_busiest_link() -> None:
    """A ring over two devices a chip crosses each link once; two rings beside each other cross it twice."""
    devices = [(0, (x, 0, 0)) for x in range(4) for _ in range(2)]
    snake = [(devices[i], devices[(i + 1) % 8]) for i in range(8)]
    beside = [(devices[i], devices[(i + 2) % 8]) for i in range(8)]
    inside = [(devices[i], devices[i ^ 1]) for i in range(8)]
    found = [interconnect.permute_path(IRONWOOD, pairs) for pairs in (snake, beside, inside)]
    assert [path.network for path in found] == ["ici", "ici", "chip"]
    times = [seconds(IRONWOOD, "collective-permute", 90e9, path) for path in found]
    assert times == pytest.approx([1.0, 2.0, 1 / 6])
    slices = parse_topology("v5p:4x4x4", num_slices=2)
    across = [((0, (0, 0, 0)), (0, (1, 0, 0))), ((0, (1, 0, 0)), (1, (0, 0, 0)))]
    assert interconnect.permute_path(slices, across).network == "dcn"


def test_bytes_that_a_device_sends() -> None:
    assert interconnect.sent_bytes("all-reduce", 8, 4) == 12 and interconnect.sent_bytes("all-to-all", 8, 4) == 6
    assert interconnect.sent_bytes("collective-permute", 8, 4) == 8
