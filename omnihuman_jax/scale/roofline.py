"""From what one device does in a step to how long it takes, at best and as compiled, and the share of the peak that is
useful.

Every operation takes the longer of its arithmetic, at the stated efficiency of its kind, and its memory traffic.
Collectives come on top (nothing overlaps) or hide behind it (all that can does). Useful operations are the model's own
formula (`flops.py`): what is computed again, or on every device, costs time and is not useful.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from omnihuman_jax.scale.hardware import Accelerator, Efficiencies

KINDS = ("attention_forward", "attention_backward", "matmul", "memory")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Operations of one kind and about one intensity, summed over a step: on one device."""

    kind: str
    flops: float
    bytes: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Communication:
    """Collectives of one kind over the same mesh axes, summed over a step.

    bytes: on one device, the larger side of each, summed (`interconnect`). count: how many run. seconds: on their
        links.
    hidden: they start and finish apart, so that computation can run in between. Copies to and from the host's memory
    are listed here too (network `pcie`).
    """

    kind: str
    axes: tuple[str, ...]
    network: str
    count: int
    bytes: float
    sent_bytes: float
    seconds: float
    hidden: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Roofline:
    """Seconds of one step on one device, by cause, and what follows.

    compute_s: by kind. hbm_s: all memory traffic at the full bandwidth (part of it runs under the arithmetic).
    ici_s, dcn_s: all collectives. host_s: copies to and from the host.
    overlapped_s: computation and each network at once, the slowest decides.
    as_compiled_s: only collectives that the program starts and finishes apart are hidden. serial_s: nothing is.
    """

    compute_s: Mapping[str, float]
    hbm_s: float
    ici_s: float
    dcn_s: float
    host_s: float
    overlapped_s: float
    as_compiled_s: float
    serial_s: float
    mfu: float
    mfu_overlapped: float
    mfu_serial: float
    hfu: float

    @property
    def busy_s(self) -> float:
        """Computation alone."""
        return sum(self.compute_s.values())


def roofline(
    accelerator: Accelerator,
    works: Sequence[Work],
    communications: Sequence[Communication],
    *,
    useful_flops: float,
    devices_per_chip: int = 1,
    efficiencies: Efficiencies | None = None,
) -> Roofline:
    """The roofline of one step.

    Args:
        works, communications: of one device.
        useful_flops: of the whole step, divided by the number of devices.
        devices_per_chip: devices that share a chip's peak and memory.
        efficiencies: instead of the accelerator's own.
    """
    efficiencies = efficiencies or accelerator.efficiencies
    peak, bandwidth = accelerator.peak_flops / devices_per_chip, accelerator.hbm_bandwidth / devices_per_chip
    shares = dataclasses.asdict(efficiencies) | {"memory": efficiencies.matmul}
    compute: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    for work in works:
        compute[work.kind] += max(work.flops / (peak * shares[work.kind]), work.bytes / bandwidth)
    dcn, host = (sum(c.seconds for c in communications if c.network == network) for network in ("dcn", "pcie"))
    ici = sum(c.seconds for c in communications) - dcn - host
    hidden = sum(c.seconds for c in communications if c.hidden)
    busy, total = sum(compute.values()), ici + dcn + host
    overlapped, serial = max(busy, ici, dcn, host), busy + total
    as_compiled = total - hidden + max(busy, hidden)
    return Roofline(
        compute_s=compute,
        hbm_s=sum(work.bytes for work in works) / bandwidth,
        ici_s=ici,
        dcn_s=dcn,
        host_s=host,
        overlapped_s=overlapped,
        as_compiled_s=as_compiled,
        serial_s=serial,
        mfu=useful_flops / peak / as_compiled,
        mfu_overlapped=useful_flops / peak / overlapped,
        mfu_serial=useful_flops / peak / serial,
        hfu=sum(work.flops for work in works) / peak / as_compiled,
    )


def sensitivity(
    accelerator: Accelerator,
    works: Sequence[Work],
    communications: Sequence[Communication],
    *,
    attention: Sequence[float],
    matmul: Sequence[float],
    **options: Any,
) -> list[list[float]]:
    """MFU for each efficiency of the attention kernels (rows, both passes) and of the matrix products (columns)."""
    return [
        [
            roofline(
                accelerator, works, communications,
                efficiencies=Efficiencies(matmul=m, attention_forward=a, attention_backward=a, source="given"),
                **options,
            ).mfu
            for m in matmul
        ]
        for a in attention
    ]  # fmt: skip
