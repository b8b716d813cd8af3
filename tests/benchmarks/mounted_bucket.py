"""A bucket read and written by the trainer itself and through a FUSE mount, beside a disk, in one run.

    python -m tests.benchmarks.mounted_bucket --write     # needs rclone, fuse3 and the right to mount

The bucket is a GCS server on loopback (fake-gcs-server, objects in memory) behind a proxy that answers each request
`--delay-ms` late, as one far away would. The mount is rclone's, since Google's own gcsfuse is no Debian package: once
with every read and write passed on, once with whole files cached on the disk, which are written back later. Each figure
is taken in a process of its own on a fresh mount with an empty cache: records in random order by 4 threads, twice; a
state saved and restored through the trainer's own checkpoints. Medians of `--rounds`.
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks import reader_speed
from tests.chaos import page
from tests.storage import servers

RECORDS, THREADS = 64, 4
DISK, DIRECT, MOUNT, CACHED = "disk", "`gs://`, by the trainer", "FUSE mount", "FUSE mount with a file cache"
MODES = {MOUNT: "off", CACHED: "full"}
INSTALL = "apt-get install rclone fuse3"
PAGE = page.PAGE.with_name("launch.md")


def read_records(folder: str) -> dict[str, object]:
    """Seconds of two passes over all records, and a digest of what was read."""
    import numpy as np

    from omnihuman_jax.data.record_source import open_records

    _reached(folder)
    begin, seconds = time.monotonic(), []
    records, digests = open_records(folder), {}
    order = np.random.default_rng(0).permutation(len(records)).tolist()

    def read(index: int) -> None:
        record = records[index]
        assert record is not None, records.unreadable
        digests[index] = hashlib.sha256(record.latents_FHWC.tobytes()).hexdigest()

    for _ in range(2):
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(read, order))
        seconds.append(time.monotonic() - begin)
        begin = time.monotonic()
    digest = hashlib.sha256("".join(digests[index] for index in sorted(digests)).encode()).hexdigest()
    return {"first_s": seconds[0], "again_s": seconds[1], "digest": digest}


def _reached(folder: str) -> None:
    """Libraries are imported and a first request is made: a run does that once."""
    from omnihuman_jax.runtime.locations import location

    location(folder).exists()


def checkpoint(folder: str, mib: int, restores: bool) -> dict[str, object]:
    """Seconds until a save is whole, its manifest written, or until a state is back with its fingerprints checked."""
    import jax

    from omnihuman_jax.checkpoint.checkpoints import open_checkpoints
    from omnihuman_jax.checkpoint.record import RunRecord
    from omnihuman_jax.checkpoint.writer import CheckpointConfig
    from omnihuman_jax.commands.bench_checkpoint import make_state

    _reached(folder)
    state = jax.jit(lambda new: new._replace(step=new.step + 1))(make_state(mib << 20))
    jax.block_until_ready(state)
    with open_checkpoints(folder, CheckpointConfig(retries=0)) as checkpoints:
        begin = time.monotonic()
        if restores:
            step = checkpoints.choose()
            assert step == 1, step
            jax.block_until_ready(checkpoints.restore(step, state))
        else:
            checkpoints.save(state, RunRecord(config={}, fingerprint="", step=1))
            if not checkpoints.wait():
                raise OSError(checkpoints.last_failure)
        return {"seconds": time.monotonic() - begin}


@contextlib.contextmanager
def mounted(server: servers.Server, folder: Path, mode: str) -> Iterator[Path]:
    """The bucket as a folder, by rclone; its cache is gone afterwards, once all is written back."""
    place, cache = folder / "mount", folder / "cache"
    place.mkdir(exist_ok=True)
    with (folder / "rclone.log").open("ab") as log:
        process = subprocess.Popen(
            ["rclone", "mount", f":gcs:{servers.BUCKET}", str(place), "--config", os.devnull, "--gcs-anonymous",
             "--gcs-endpoint", f"{server.proxy.url}/storage/v1/", "--vfs-cache-mode", mode, "--cache-dir", str(cache)],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until = time.monotonic() + 30
        while not os.path.ismount(place):
            if process.poll() is not None or time.monotonic() > until:
                raise OSError(f"rclone did not mount: {(folder / 'rclone.log').read_text()[-500:]}")
            time.sleep(0.05)
        yield place
    finally:
        subprocess.run(["fusermount3", "-u", str(place)], check=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        shutil.rmtree(cache, ignore_errors=True)


def objects(server: servers.Server, prefix: str) -> dict[str, int]:
    """Name below `prefix` -> bytes, by the server's own word."""
    url = f"{server.proxy.url}/storage/v1/b/{servers.BUCKET}/o?prefix={prefix}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        rows = json.load(answer).get("items", [])
    return {row["name"].removeprefix(prefix): int(row["size"]) for row in rows if not row["name"].endswith("/")}


def files(folder: Path) -> dict[str, int]:
    """The same of a folder."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


class Bench:
    """The figures of one way after another, in `folder`."""

    def __init__(self, server: servers.Server, folder: Path, mib: int):
        self.server, self.folder, self.mib = server, folder, mib
        self.digests: set[object] = set()
        self.failures: dict[str, str] = {}
        self._saves = 0

    def _in_a_process(self, *words: str) -> dict[str, float]:
        environment = os.environ | {"OMNIHUMAN_DATASET_CACHE": str(self.folder / "datasets"), "JAX_PLATFORMS": "cpu"}
        argv = [sys.executable, "-m", "tests.benchmarks.mounted_bucket", "--one", *words]
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
        shutil.rmtree(self.folder / "datasets", ignore_errors=True)
        if done.returncode:
            raise OSError(f"{words}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    @contextlib.contextmanager
    def root(self, way: str) -> Iterator[str]:
        """Where that way finds what lies in the bucket."""
        if way in MODES:
            with mounted(self.server, self.folder, MODES[way]) as place:
                yield str(place)
        else:
            yield self.server.bucket if way == DIRECT else str(self.folder / "disk")

    def measure(self, way: str) -> dict[str, float]:
        """Seconds by what was done, and the requests of a save; without those of a save that failed."""
        with self.root(way) as root:
            seen = self._in_a_process("records", f"{root}/dataset")
        self.digests.add(seen["digest"])
        row = {"first": seen["first_s"], "again": seen["again_s"]}
        self._saves += 1
        name = f"checkpoints-{self._saves}"
        requests = self.server.proxy.requests
        with self.root(way) as root:
            before = len(requests)
            try:
                row["save"] = self._in_a_process("save", f"{root}/{name}", str(self.mib))["seconds"]
            except OSError as error:
                self.failures[way] = str(error)
                return row
            row["stored"] = row["save"] + (self._upload(Path(root) / name) if way in MODES else 0.0)
        row["requests"] = len(requests) - before
        with self.root(way) as root:
            row["restore"] = self._in_a_process("restore", f"{root}/{name}", str(self.mib))["seconds"]
        return row

    def _upload(self, folder: Path) -> float:
        """Seconds from now until the server has the files of a mounted folder."""
        begin = time.monotonic()
        while files(folder) != objects(self.server, f"{folder.name}/"):
            if time.monotonic() > begin + 600:
                raise OSError(f"{folder} did not reach the bucket")
            time.sleep(0.1)
        return time.monotonic() - begin


def table(delay_ms: float, mib: int, nbytes: int, seen: dict[str, list[dict[str, float]]]) -> str:
    """One server's: a row a way."""
    lines = [
        f"Requests answered {delay_ms:g} ms late; {RECORDS} records of {nbytes / RECORDS / 1e6:.1f} MB, a state of "
        f"{mib} MiB; {len(seen[DISK])} rounds.",
        "",
        "| | records, MB/s | the second time | a save is whole after s | in the bucket after s | restored in s |",
        "|---|---|---|---|---|---|",
    ]
    for way, rounds in seen.items():
        middle = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
        rates = " | ".join(f"{nbytes / 1e6 / middle[name]:.0f}" for name in ("first", "again"))
        saves = [f"{middle[name]:.1f}" if name in middle else "fails" for name in ("save", "stored", "restore")]
        saves[1] = "-" if way == DISK or saves[0] == "fails" else saves[1]
        saves[2] = "-" if saves[0] == "fails" else saves[2]
        lines.append(f"| {way} | {rates} | {' | '.join(saves)} |")
    return "\n".join(lines)


def compare(delay_ms: float, rounds: int, mib: int) -> str:
    """All ways by turns on one server."""
    with tempfile.TemporaryDirectory(prefix="mounted-") as temporary, servers.gcs(Path(temporary)) as server:
        folder = Path(temporary)
        os.environ.update(server.environment)
        dataset = folder / "disk" / "dataset"
        reader_speed.write_dataset(dataset, RECORDS, reader_speed.SIZES["480p"])
        from omnihuman_jax.runtime.locations import location

        for name in files(dataset):
            location(f"{server.bucket}/dataset/{name}").write_bytes((dataset / name).read_bytes())
        server.proxy.delay_s = delay_ms / 1e3
        bench = Bench(server, folder, mib)
        seen: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):
            for way in (DISK, DIRECT, MOUNT, CACHED):
                seen.setdefault(way, []).append(bench.measure(way))
                print(f"{delay_ms:g} ms, {way}: {seen[way][-1]}", file=sys.stderr, flush=True)
        for way, failure in bench.failures.items():
            print(f"{way} cannot save:\n{failure}", file=sys.stderr)
        assert len(bench.digests) == 1, "one way read other records than another"
        nbytes = sum(path.stat().st_size for path in dataset.glob("*.array_record*"))
        return table(delay_ms, mib, nbytes, seen)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=128, help="size of the state (%(default)s)")
    parser.add_argument("--delay-ms", default="20", help="of each answer; a table each, by commas (%(default)s)")
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{PAGE.name}")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        what, folder, *mib = options.one
        print(
            json.dumps(
                read_records(folder) if what == "records" else checkpoint(folder, *map(int, mib), what == "restore")
            )
        )
        return 0
    if lacking := [tool for tool in ("rclone", "fusermount3") if shutil.which(tool) is None]:
        parser.error(f"{', '.join(lacking)} is not on this machine; Debian, Ubuntu: {INSTALL}")
    tables = [compare(float(delay), options.rounds, options.mib) for delay in options.delay_ms.split(",")]
    print(text := "\n\n".join(tables))
    if options.write:
        page.write("mounted bucket", text, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
