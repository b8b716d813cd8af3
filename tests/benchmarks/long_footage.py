"""Memory and time of videos of a minute, an hour and three hours: the scan of the whole, and two seconds near the end.

    python -m tests.benchmarks.long_footage --video CLIP.mp4 --hours 0.0167,1,3

The long videos are the given one over and over, its packets copied behind one another, so that they are made in
seconds. Each measurement is a process of its own; memory is its peak above that of the same process with nothing read.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import av

TASKS = ("nothing", "scan", "two seconds")


def lengthen(source: Path, target: Path, seconds: float) -> float:
    """Writes `source` again and again until it is that long; returns the length."""
    with av.open(str(target), "w") as out:
        streams, offset = {}, 0.0
        while offset < seconds:
            with av.open(str(source)) as given:
                if not streams:
                    streams = {one.index: out.add_stream_from_template(one) for one in given.streams}
                ends = offset
                for packet in given.demux(*given.streams):
                    if packet.dts is None:
                        continue
                    shift = round(offset / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    ends = max(ends, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                    packet.stream = streams[packet.stream.index]
                    out.mux(packet)
            offset = ends
    return offset


def do(task: str, path: str, end_s: float) -> None:
    """One task in this process; prints seconds and peak memory."""
    from data_pipelines.curate import decode, file_stages
    from omnihuman_jax.typing import FPS

    began, found = time.process_time(), 0
    if task == "scan":
        found = len(file_stages.scan(path, file_stages.ScanOptions()).ranges)
    elif task == "two seconds":
        start = int((end_s - 10) * FPS)
        found = sum(1 for _ in decode.clip_frames(path, start, start + 2 * FPS))
        wave = decode.clip_audio(path, start, start + 2 * FPS)
        assert wave is not None and found == 2 * FPS, (found, wave)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"cpu_s": time.process_time() - began, "peak_bytes": peak, "found": found}))


def measured(task: str, path: Path, end_s: float) -> dict[str, float]:
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.benchmarks.long_footage", "--task", task, "--video", str(path), "--end",
            str(end_s),
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", required=True, type=Path)
    parser.add_argument("--hours", default="0.0167,1,3")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.task:
        return do(options.task, str(options.video), options.end)
    print(
        "| video | scan: CPU s | scan: memory, MB | two seconds near the end: CPU s | memory, MB |"
        "\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for hours in map(float, options.hours.split(",")):
            path = Path(folder) / f"long{options.video.suffix}"
            end_s = lengthen(options.video, path, hours * 3600)
            found = {task: measured(task, path, end_s) for task in TASKS}
            base = found["nothing"]["peak_bytes"]
            cells = [
                f"{found[task]['cpu_s']:.1f} | {(found[task]['peak_bytes'] - base) / 1e6:.0f}" for task in TASKS[1:]
            ]
            print(f"| {end_s / 3600:.2f} h, {path.stat().st_size / 1e6:.0f} MB | {' | '.join(cells)} |", flush=True)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
