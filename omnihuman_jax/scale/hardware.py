"""Accelerators: what one chip computes, holds and moves. One table; the slices that exist are `topologies.py`'s.

Sources are named a row; what is an assumption says so. Bandwidths are bytes a second, one way unless said otherwise;
FLOP/s are dense bfloat16. No JAX.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from omnihuman_jax.scale.topologies import GENERATIONS, TpuSlice, tpu_slice

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Efficiencies:
    """Shares of a chip's peak that kernels reach: inputs of every prediction, never results of ours.

    matmul: the model's matrix products. attention_forward, attention_backward: the attention kernels at head size 128
    and long sequences, on the operations that they execute (7 products a block in two backward kernels, 5 in a fused
    one).
    source: where each number comes from.
    """

    matmul: float
    attention_forward: float
    attention_backward: float
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """One generation, by chip (on GPU: by GPU).

    peak_flops: dense bfloat16 FLOP/s. hbm_bytes: what a program can use. hbm_bandwidth: bytes/s.
    link_bandwidth: of one ICI link, one way (GPU: of all NVLinks of a GPU, one way). torus_dims: 2, 3; 0 for NVLink.
    wrap: a torus dim has its wrap-around links from this size on (ICI). dcn_bandwidth: of the data-centre network, a
        chip.
    chip_bandwidth: between the devices of one chip, one way; 0: a chip is one device, or nobody says.
    host_bandwidth: between a chip and its host's memory, one way. chips_per_host: of a machine. host_ram_bytes: of a
    machine with so many chips; 0: unknown, it differs with who built the machine. efficiencies: see there.
    planned: announced, and not to be had: what is published of it, and assumptions that `source` names.
    source: of the numbers.
    """

    name: str
    platform: str
    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    torus_dims: int
    wrap: int
    dcn_bandwidth: float
    host_bandwidth: float
    chips_per_host: int
    host_ram_bytes: int = 0
    chip_bandwidth: float = 0.0
    planned: bool = False
    efficiencies: Efficiencies
    source: str


_SCALING_BOOK = "links, DCN and PCIe: jax-ml.github.io/scaling-book/tpus (2025); usable HBM: libtpu 0.0.52's own limit"
_JAX_TABLE = "JAX 0.12.0.1's own table (jax.experimental.pallas.tpu, get_tpu_info_for_chip)"
_EIGHTH = "cloud.google.com/blog, TPU 8t and TPU 8i technical deep dive (2026-04-22)"
_UNMEASURED = "no public measurement found; assumed"

_ROWS = (
    Accelerator(
        name="v4", platform="tpu", peak_flops=275e12, hbm_bytes=int(30.5 * GIB), hbm_bandwidth=1200e9,
        link_bandwidth=45e9,
        torus_dims=3, wrap=4, dcn_bandwidth=6.25e9, host_bandwidth=16e9, chips_per_host=4, host_ram_bytes=407 * GIB,
        efficiencies=Efficiencies(
            matmul=0.65, attention_forward=0.50, attention_backward=0.50,
            source=f"as v5p, whose matrix units are the same 128 x 128; {_UNMEASURED}",
        ),
        source=f"docs.cloud.google.com/tpu/docs/v4; {_SCALING_BOOK}",
    ),
    Accelerator(
        name="v5e", platform="tpu", peak_flops=197e12, hbm_bytes=int(15.75 * GIB), hbm_bandwidth=819e9,
        link_bandwidth=45e9,
        torus_dims=2, wrap=16, dcn_bandwidth=3.125e9, host_bandwidth=16e9, chips_per_host=4, host_ram_bytes=192 * GIB,
        efficiencies=Efficiencies(
            matmul=0.65, attention_forward=0.50, attention_backward=0.50,
            source="matmul: MaxText trains 32 B on v5e-256 at 66.9 % MFU end to end (github.com/google/maxtext, "
            f"configs/v5e); attention: as v5p (128 x 128 matrix units), {_UNMEASURED}",
        ),
        source=f"docs.cloud.google.com/tpu/docs/v5e; {_SCALING_BOOK}",
    ),
    Accelerator(
        name="v5p", platform="tpu", peak_flops=459e12, hbm_bytes=int(95.73 * GIB), hbm_bandwidth=2765e9,
        link_bandwidth=90e9,
        torus_dims=3, wrap=4, dcn_bandwidth=6.25e9, host_bandwidth=16e9, chips_per_host=4, host_ram_bytes=448 * GIB,
        efficiencies=Efficiencies(
            matmul=0.65, attention_forward=0.50, attention_backward=0.50,
            source="matmul: MaxText trains Llama 2 70B on 512 v5p at 65.4 % MFU end to end (maxtext.readthedocs.io, "
            "reference/models/tiering), a lower bound; attention: derived, not measured: v6e's measured kernel, whose "
            "products fill only half of its 256 x 256 unit at head size 128, on 128 x 128 units that they fill",
        ),
        source=f"docs.cloud.google.com/tpu/docs/v5p; {_SCALING_BOOK}",
    ),
    Accelerator(
        name="v6e", platform="tpu", peak_flops=918e12, hbm_bytes=int(31.24 * GIB), hbm_bandwidth=1638e9,
        link_bandwidth=90e9,
        torus_dims=2, wrap=16, dcn_bandwidth=12.5e9, host_bandwidth=32e9, chips_per_host=4, host_ram_bytes=720 * GIB,
        efficiencies=Efficiencies(
            matmul=0.66, attention_forward=0.364, attention_backward=0.364,
            source="measured by others on v6e for a 14 B video transformer at 75.6 K tokens, head size 128 "
            "(github.com/yangwhale/gpu-tpu-pedia, tpu/Wan2.2): linear layers 66 %, splash attention 36.4 % forward "
            "(its matrix unit is 256 wide); backward: assumed as forward",
        ),
        source=f"docs.cloud.google.com/tpu/docs/v6e; {_SCALING_BOOK}",
    ),
    Accelerator(
        name="tpu7x", platform="tpu", peak_flops=2307e12, hbm_bytes=int(2 * 94.74 * GIB), hbm_bandwidth=7380e9,
        link_bandwidth=90e9,
        torus_dims=3, wrap=4, dcn_bandwidth=12.5e9, host_bandwidth=32e9, chips_per_host=4, host_ram_bytes=960 * GIB,
        chip_bandwidth=540e9,
        efficiencies=Efficiencies(
            matmul=0.60, attention_forward=0.40, attention_backward=0.40,
            source=f"{_UNMEASURED}; for scale: MaxDiffusion trains Wan 2.2 14 B at 384 TFLOP/s a device (two a chip, "
            "1,153 at the peak: 33 %; it says 40 %) with kernels of its own (github.com/AI-Hypercomputer/maxdiffusion, "
            "pull request 487)",
        ),
        source=f"docs.cloud.google.com/tpu/docs/tpu7x, between the two dies of a chip six links; {_SCALING_BOOK}",
    ),
    Accelerator(
        name="tpu8t", platform="tpu", peak_flops=996e12, hbm_bytes=216 * 10**9, hbm_bandwidth=6528e9,
        link_bandwidth=180e9,
        torus_dims=3, wrap=4, dcn_bandwidth=50e9, host_bandwidth=32e9, chips_per_host=4, planned=True,
        efficiencies=Efficiencies(
            matmul=0.60, attention_forward=0.40, attention_backward=0.40, source=f"as tpu7x; {_UNMEASURED}",
        ),
        source=f"bfloat16 peak, one TensorCore a chip: {_JAX_TABLE}; memory: {_EIGHTH}, which also says: links twice "
        "and DCN up to four times tpu7x's; slices, hosts and PCIe: assumed as tpu7x's",
    ),
    Accelerator(
        name="tpu8i", platform="tpu", peak_flops=1101e12, hbm_bytes=288 * 10**9, hbm_bandwidth=8601e9,
        link_bandwidth=1200e9,
        torus_dims=0, wrap=0, dcn_bandwidth=12.5e9, host_bandwidth=32e9, chips_per_host=4, planned=True,
        efficiencies=Efficiencies(
            matmul=0.60, attention_forward=0.40, attention_backward=0.40, source=f"as tpu7x; {_UNMEASURED}",
        ),
        source=f"for serving; bfloat16 peak, two TensorCores a chip: {_JAX_TABLE}; memory: {_EIGHTH}; links: all of a "
        "chip (19.2 Tbit/s both ways), of boards of four chips, the only slice here: no torus; DCN, PCIe: as tpu7x's",
    ),
    Accelerator(
        name="a100", platform="gpu", peak_flops=312e12, hbm_bytes=80 * 10**9, hbm_bandwidth=2039e9,
        link_bandwidth=300e9,
        torus_dims=0, wrap=0, dcn_bandwidth=25e9, host_bandwidth=32e9, chips_per_host=8,
        efficiencies=Efficiencies(
            matmul=0.75, attention_forward=0.70, attention_backward=0.60,
            source="attention: FlashAttention-2 (arxiv.org/abs/2307.08691), up to 73 % forward and 63 % backward; "
            f"matmul: {_UNMEASURED}",
        ),
        source="nvidia.com, A100 80GB SXM data sheet; PCIe 4 x16; network: 200 Gbit/s a GPU",
    ),
    Accelerator(
        name="h100", platform="gpu", peak_flops=989e12, hbm_bytes=80 * 10**9, hbm_bandwidth=3350e9,
        link_bandwidth=450e9,
        torus_dims=0, wrap=0, dcn_bandwidth=50e9, host_bandwidth=64e9, chips_per_host=8,
        efficiencies=Efficiencies(
            matmul=0.70, attention_forward=0.66, attention_backward=0.55,
            source="attention: FlashAttention-3 (arxiv.org/abs/2407.08608), head size 128, no mask, 16 K: about 650 "
            "TFLOP/s forward and 550 backward, cuDNN's class; our packed Triton kernel was never measured; "
            f"matmul: {_UNMEASURED}",
        ),
        source="nvidia.com, H100 SXM data sheet; PCIe 5 x16; network: 400 Gbit/s a GPU",
    ),
    Accelerator(
        name="h200", platform="gpu", peak_flops=989e12, hbm_bytes=141 * 10**9, hbm_bandwidth=4800e9,
        link_bandwidth=450e9,
        torus_dims=0, wrap=0, dcn_bandwidth=50e9, host_bandwidth=64e9, chips_per_host=8,
        efficiencies=Efficiencies(
            matmul=0.70, attention_forward=0.66, attention_backward=0.55, source="as h100: same processor",
        ),
        source="nvidia.com, H200 SXM data sheet; PCIe 5 x16; network: 400 Gbit/s a GPU",
    ),
    Accelerator(
        name="b200", platform="gpu", peak_flops=2250e12, hbm_bytes=180 * 10**9, hbm_bandwidth=7700e9,
        link_bandwidth=900e9,
        torus_dims=0, wrap=0, dcn_bandwidth=50e9, host_bandwidth=64e9, chips_per_host=8,
        efficiencies=Efficiencies(matmul=0.70, attention_forward=0.60, attention_backward=0.50, source=_UNMEASURED),
        source="nvidia.com, HGX B200 data sheet; PCIe 5 x16; network: 400 Gbit/s a GPU",
    ),
    Accelerator(
        name="gb200", platform="gpu", peak_flops=2500e12, hbm_bytes=186 * 10**9, hbm_bandwidth=8000e9,
        link_bandwidth=900e9,
        torus_dims=0, wrap=0, dcn_bandwidth=50e9, host_bandwidth=225e9, chips_per_host=4,
        efficiencies=Efficiencies(
            matmul=0.70, attention_forward=0.60, attention_backward=0.50, source=f"as b200; {_UNMEASURED}",
        ),
        source="nvidia.com, GB200 NVL72 data sheet, a GPU; NVLink-C2C shared by two GPUs; network: 400 Gbit/s a GPU",
    ),
    Accelerator(
        name="gb300", platform="gpu", peak_flops=2500e12, hbm_bytes=279 * 10**9, hbm_bandwidth=8000e9,
        link_bandwidth=900e9,
        torus_dims=0, wrap=0, dcn_bandwidth=100e9, host_bandwidth=225e9, chips_per_host=4,
        efficiencies=Efficiencies(
            matmul=0.70, attention_forward=0.60, attention_backward=0.50,
            source=f"as b200; {_UNMEASURED}; for scale: NVIDIA trains Wan 2.1 14 B at 41 % MFU end to end",
        ),
        source="nvidia.com, GB300 NVL72 data sheet, a GPU; NVLink-C2C shared by two GPUs; network: 800 Gbit/s a GPU; "
        "memory: docs.cloud.google.com, A4X Max (1,116 GB a machine)",
    ),
)  # fmt: skip

ACCELERATORS: dict[str, Accelerator] = {row.name: row for row in _ROWS}

# JAX's names of devices -> row of the table. A name that is not here has no peak that we know: an H100 PCIe, say.
_DEVICE_KINDS: dict[str, str] = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
    "TPU v6 lite": "v6e", "TPU v6e": "v6e", "TPU7x": "tpu7x", "TPU8t": "tpu8t", "TPU8i": "tpu8i",
    "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA A100-SXM4-40GB": "a100", "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200", "NVIDIA B200": "b200", "NVIDIA GB200": "gb200", "NVIDIA GB300": "gb300",
}  # fmt: skip


def device_flops(kind: str) -> float | None:
    """Dense bfloat16 FLOP/s at the peak of one JAX device with this `device_kind`; None where the table has it not."""
    if (name := _DEVICE_KINDS.get(kind)) is None:
        return None
    accelerator = ACCELERATORS[name]
    per_chip = GENERATIONS[name].devices_per_chip if accelerator.platform == "tpu" else 1
    return accelerator.peak_flops / per_chip


@dataclasses.dataclass(frozen=True, slots=True)
class Topology:
    """A slice (or several equal ones, joined by the data-centre network) of one generation; `dims` is (count,) for
    GPUs.
    """

    accelerator: Accelerator
    dims: tuple[int, ...]
    num_slices: int = 1

    @property
    def name(self) -> str:
        """As `parse_topology` takes it."""
        return f"{self.accelerator.name}:{self.shape}"

    @property
    def shape(self) -> str:
        """`8x8x8`; the number of GPUs."""
        return "x".join(map(str, self.dims))

    @property
    def slice(self) -> TpuSlice:
        """What `topologies` knows of one slice; ValueError on GPU, where clusters differ."""
        if self.accelerator.platform == "gpu":
            raise ValueError(f"{self.name}: a GPU cluster has no slices")
        return tpu_slice(self.accelerator.name, self.shape)

    @property
    def chips_per_slice(self) -> int:
        """Chips of one slice."""
        return math.prod(self.dims)

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.chips_per_slice * self.num_slices

    @property
    def devices(self) -> int:
        """JAX devices of all slices."""
        return self.chips if self.accelerator.platform == "gpu" else self.slice.devices * self.num_slices

    @property
    def hosts(self) -> int:
        """Machines of all slices."""
        per_slice = math.ceil(self.chips_per_slice / self.accelerator.chips_per_host)
        return (per_slice if self.accelerator.platform == "gpu" else self.slice.hosts) * self.num_slices

    def has_wrap(self, dim: int) -> bool:
        """Whether the torus is closed along a dim."""
        size = self.dims[dim]
        return self.accelerator.torus_dims > 0 and size >= self.accelerator.wrap and size % self.accelerator.wrap == 0


def parse_topology(text: str, num_slices: int = 1) -> Topology:
    """`v5p:8x8x8`, `v6e:16x16` or `h100:64` -> the topology; ValueError names the nearest ones that exist."""
    name, _, shape = text.partition(":")
    if name not in ACCELERATORS:
        raise ValueError(f"topology {text!r}: unknown accelerator {name!r}; there are {', '.join(ACCELERATORS)}")
    accelerator = ACCELERATORS[name]
    example = "64" if accelerator.platform == "gpu" else "x".join(["4"] * max(accelerator.torus_dims, 1))
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise ValueError(f"topology {text!r}: write it like {name}:{example}")
    if num_slices < 1:
        raise ValueError(f"--slices must be at least 1, not {num_slices}")
    dims = tuple(map(int, shape.split("x")))
    if accelerator.platform == "gpu":
        return _gpus(accelerator, dims, text, num_slices)
    try:
        tpu_slice(name, shape)
    except ValueError as error:
        chips = math.prod(dims)
        near = sorted(slices(accelerator), key=lambda d: (abs(math.log(math.prod(d) / chips)), max(d)))[:3]
        names = ", ".join(f"{'x'.join(map(str, d))} ({math.prod(d)} chips)" for d in near)
        raise ValueError(f"topology {text!r} ({chips} chips): {error}; the nearest are {names}") from error
    return Topology(accelerator, dims, num_slices)


def slices(accelerator: Accelerator, most: int = 16384) -> Iterator[tuple[int, ...]]:
    """Every slice of a TPU generation of up to `most` chips, dims in growing order."""
    generation = GENERATIONS[accelerator.name]
    small = (tuple(map(int, shape.split("x"))) for shape in generation.small)
    yield from (dims for dims in small if math.prod(dims) <= most)
    cubes = generation.max_cubes
    for a in range(1, cubes + 1):
        for b in range(a, cubes // a + 1):
            for c in range(b, cubes // (a * b) + 1):
                if 64 * a * b * c <= most:
                    yield (4 * a, 4 * b, 4 * c)


def _gpus(accelerator: Accelerator, dims: tuple[int, ...], text: str, num_slices: int) -> Topology:
    if num_slices > 1:
        raise ValueError(f"topology {text!r}: only TPUs have slices; give the total number of GPUs")
    count, host = dims[0], accelerator.chips_per_host
    if len(dims) > 1 or (count > host and count % host):
        total = math.prod(dims)
        near = sorted({max(host, total // host * host), -(-total // host) * host})
        raise ValueError(
            f"topology {text!r}: give a number of GPUs in whole machines of {host} (above {host}), such "
            f"as {' or '.join(f'{accelerator.name}:{n}' for n in near)}"
        )
    return Topology(accelerator, dims)
