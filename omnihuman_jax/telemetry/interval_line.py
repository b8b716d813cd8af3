"""The line an interval that a run without a terminal prints: how far, how well, how fast, and for how long still."""

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

SIZES = ("B", "KB", "MB", "GB", "TB")


def describe(line: Mapping[str, Any]) -> str:
    """One line of text of what is known at the end of an interval; speed is left out where nothing was measured."""
    parts = [
        f"step {line['step']}/{line['total_steps']}",
        f"stage {line['stage']}",
        f"loss {float(line['loss']):.4f}",
        f"grad norm {float(line['grad_norm']):.3g}",
        f"lr {line['learning_rate']:.3g}",
    ]
    if "step_time_s" in line:
        parts += [f"{line['step_time_s']:.3g} s/step", f"{line['tokens_per_s']:,.0f} tokens/s"]
        share = ("MFU", "mfu") if "mfu" in line else ("matmul peak", "matmul_peak_share")
        parts.append(f"{share[0]} {line[share[1]]:.1%}")
    parts.append(f"data wait {line['data_wait_share']:.1%}")
    parts.append(f"left {duration(line['left_s'])}")
    parts.append(f"{line['memory']} memory {size(line['memory_bytes'])}")
    return "  ".join(parts)


def memory() -> tuple[str, int]:
    """("device", the largest peak of this process's devices in bytes), or ("host", its resident bytes) where they do
    not say.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if peaks := [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]:
        return "device", max(peaks)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return "host", pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # no Linux: the peak is all that there is
        return "host", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def duration(seconds: float) -> str:
    """`0:03:05`; from a day on `2 d 4:10`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours < 24 else f"{hours // 24} d {hours % 24}:{minutes:02d}"


def size(count: float) -> str:
    """`1.3 MB`, in powers of 1000."""
    for unit in SIZES:
        if count < 1000 or unit == SIZES[-1]:
            break
        count /= 1000
    return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
