"""One run under the launcher's restart rule, struck by one fault an attempt; what it did, and what it ended with."""

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np

from launch.local import Event, LocalJob, LocalProcesses, Outcome
from launch.local_state import log_path
from omnihuman_jax.runtime.locations import Location, is_remote, location
from omnihuman_jax.telemetry.metrics import read_metrics
from tests import quick_xla
from tests.chaos import faults
from tests.chaos.faults import Fault
from tests.data import synthetic
from tests.launch.specs import spec
from tests.training import runs

STEPS, INTERVAL, DEVICES = 60, 5, 4
HEARTBEAT_S, WATCHDOG_S, HOLD_S = 10, 60, 60
CORRUPT_ROW = 18
DISK_MB = 48
_NO_DISK = "a file system of its own could not be mounted (that needs root)"


def write_dataset(folder: Path) -> Path:
    """Synthetic windows; one record is corrupt, and one holds what is not a number: the same for every run."""
    table = synthetic.catalog(160, latent_frames=(1, 3), strong=0.3)
    # One that trains everything, so that it is drawn; images seldom are.
    row = max(row for row in range(len(table)) if int(table.eligible[row]) == synthetic.ELIGIBLE["all"])
    synthetic.write_dataset(folder, table, poisoned=(row,))
    synthetic.damage(folder, table, CORRUPT_ROW)
    return folder


class Trial:
    """Args:
    run, dataset: folders.
    processes: of the job; `faults` strike one an attempt, in order.
    cache: of compiled programs, so that a restart compiles nothing.
    bucket: URI below which the checkpoints go; "": to a disk.
    """

    def __init__(
        self, run: Path, dataset: Path, processes: int, plan: list[Fault], cache: Path, seed: int, bucket: str = ""
    ):
        self.run, self.dataset, self.processes, self.plan, self.cache = run, dataset, processes, plan, cache
        self.home: Location = location(f"{bucket}/{run.name}") if bucket else run / "disk"
        self.checkpoints = self.home / "checkpoints"
        self._rng = random.Random(seed)
        self._current: Fault | None = None
        self._switched = False
        # Those that no step has followed yet: more than one, where the next strikes before it.
        self._recovering: list[Fault] = []
        self._first_attempt: int | None = None
        self.seconds = 0.0
        self._over = threading.Event()
        self._job: LocalJob | None = None

    def execute(self) -> Outcome:
        """Until the run is done; the faults know then what came of them."""
        in_a_bucket = is_remote(self.home)
        with contextlib.nullcontext() if in_a_bucket else faults.small_disk(self.run / "disk", DISK_MB) as own_disk:
            if not own_disk:
                self.do_without_a_disk("a bucket is never full" if in_a_bucket else _NO_DISK)
            self._left = list(self.plan)
            job_spec = spec(
                {
                    "accelerator": {"type": "cpu", "nodes": self.processes, "devices": DEVICES // self.processes},
                    "image": "",
                },
                {
                    "name": "chaos",
                    "config": str(runs.CONFIG),
                    "output": str(self.run),
                    "volumes": [],
                    "grace_s": 60,
                    "restarts": 99,
                },
            )
            environment = {
                "XLA_FLAGS": quick_xla.FLAGS,
                "JAX_COMPILATION_CACHE_DIR": str(self.cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            job = self._job = LocalJob(
                job_spec,
                processes=self._processes,
                on_event=self._on_event,
                command_of=self._command,
                environment=environment,
                pause_s=0.1,
            )
            watcher = threading.Thread(target=self._watch, daemon=True)
            watcher.start()
            began = time.time()
            try:
                outcome = job.run()
            finally:
                self._over.set()
                watcher.join()
                self.seconds = time.time() - began
            if outcome.code == 0:
                self.arrays = self._final()
            return outcome

    def finished_before(self) -> list[str] | None:
        """What was wrong with it, where an earlier start finished it: its faults and arrays are as they were then.

        None where it has to be executed; what a start that was broken off left of it is removed.
        """
        if not (self.run / "trial.json").exists():
            if self.run.exists():
                shutil.rmtree(self.run)
            return None
        kept = json.loads((self.run / "trial.json").read_text())
        self.plan = [Fault(**row) for row in kept["faults"]]
        self.seconds = kept["seconds"]
        with np.load(self.run / "arrays.npz") as arrays:
            self.arrays = dict(arrays)
        return kept["wrong"]

    def keep(self, wrong: list[str]) -> None:
        """For `finished_before`, once it has run to its end."""
        np.savez(self.run / "arrays.npz", **self.arrays)
        kept = {"faults": [dataclasses.asdict(fault) for fault in self.plan], "wrong": wrong, "seconds": self.seconds}
        (self.run / "trial.json").write_text(json.dumps(kept))

    def do_without_a_disk(self, why: str) -> None:
        """Other faults in place of full disks, where there is no disk that may be filled; said loudly."""
        others = [kind for kind in faults.KINDS if kind != faults.DISK_FULL and kind not in faults.EARLY]
        for fault in [fault for fault in self.plan if fault.kind == faults.DISK_FULL]:
            fault.kind = self._rng.choice(others)
            print(
                f"{self.run}: NO FULL DISK: {why}; in its place: {fault.kind}",
                file=sys.stderr,
            )

    def _final(self) -> dict[str, np.ndarray]:
        return runs.checkpoint(self.home, STEPS)

    def losses(self) -> dict[int, float]:
        return {line["step"]: float(line["loss"]) for line in read_metrics(self.run)}

    def _processes(self, attempt: int) -> LocalProcesses:
        processes = 6 - self.processes if self._switched else self.processes  # 2 and 4
        return LocalProcesses(count=processes, devices=DEVICES // processes)

    def _command(self, attempt: int, rank: int, processes: LocalProcesses, port: int) -> list[str]:
        fault, program = self._current, ["omnihuman_jax.cli"]
        if fault is not None and fault.kind == faults.RAISE and fault.rank % processes.count == rank:
            # Counted in batches of this attempt.
            program = ["tests.training.faulty", "raise", str(max(1, fault.step - fault.newest)), "--"]
        if fault is not None and fault.is_early and rank == processes.count - 1:
            # It stays there, the others come to wait for it.
            program = ["tests.training.moments", faults.EARLY[fault.kind], str(HOLD_S), "--"]
        return [
            sys.executable, "-m", *program, "--simulate-devices", str(processes.devices), "train",
            f"--config={runs.CONFIG}",
            f"--run={self.run}", f"--config.data.dataset={self.dataset}", "--no-progress",
            f"--coordinator=127.0.0.1:{port}", f"--num-processes={processes.count}", f"--process-id={rank}",
            f"--heartbeat-s={HEARTBEAT_S}", "--shutdown-s=10", "--peer-timeout-s=120",
            f"--config.watchdog.step_s={WATCHDOG_S}", f"--config.checkpoint.interval={INTERVAL}",
            "--config.checkpoint.keep=3",
            f"--config.checkpoint.directory={self.checkpoints}", f"--config.stages.rows[1].steps={STEPS - 5}",
            "--config.numerics.max_skipped=50",
        ]  # fmt: skip

    def _on_event(self, event: Event) -> None:
        """Runs in the launcher's thread: before an attempt nothing else moves."""
        if event.kind == "attempt":
            self._between(event.attempt)
        elif event.kind == "exited" and self._current is not None and self._current.struck:
            fault = self._current
            fault.detected = fault.detected or event.time_s
            fault.codes.append(event.code or 0)
        elif event.kind == "exited" and self._current is not None and self._current.kind == faults.RAISE:
            self._current.struck = self._current.detected = event.time_s
            self._current.codes.append(event.code or 0)

    def _between(self, attempt: int) -> None:
        self._first_attempt = attempt if self._first_attempt is None else self._first_attempt
        before, self._current = self._current, None
        if before is not None and before.kind in (faults.TRUNCATE, faults.FLIP):
            faults.damage_newest(self.checkpoints, before.kind, self._rng)
        newest = faults.newest_whole(self.checkpoints)
        if before is not None:
            self._switched = self._switched != (before.kind == faults.PROCESSES)
            # A flipped bit leaves the sizes as they are: the step before it is what may be trusted.
            # One that strikes before the first step leaves what was there.
            if not before.is_early:
                before.newest = self._before(newest) if before.kind == faults.FLIP else newest
            self._recovering.append(before)
        if attempt > self._first_attempt and before is None:
            raise AssertionError(f"attempt {attempt} was started, but no fault was planted: see {self.run}/launch/logs")
        fault = self._left.pop(0) if self._left else None
        if fault is not None:
            fault.newest = newest if before is None else before.newest
            fault.step = max(fault.step, fault.newest + 2)
        self._current = fault

    def _before(self, step: int) -> int:
        steps = sorted(
            int(path.name) for path in self.checkpoints.iterdir() if path.name.isdigit() and int(path.name) < step
        )
        return steps[-1] if steps else 0

    def _watch(self) -> None:
        """Follows metrics.jsonl: strikes, and sees when a run goes on."""
        filler: Path | None = None
        while not self._over.wait(0.02):
            job, fault = self._job, self._current
            assert job is not None
            step = self._logged()
            if fault is not None and fault.is_early:
                self._strike_early(job, fault)
                continue
            if self._recovering:
                self._see_recovery(job.attempt, step)
                continue
            if fault is None or (fault.struck and fault.kind != faults.DISK_FULL):
                continue
            if fault.kind == faults.DISK_FULL:
                filler = self._disk_full(fault, step, filler)
            elif fault.kind == faults.RAISE:
                fault.reached = max(fault.reached, step)
            elif step >= fault.step and self._is_the_moment(fault):
                if fault.kind != faults.KILL_IN_SAVE:
                    time.sleep(fault.delay_s)
                pids = job.pids()
                if pids and self._current is fault:
                    fault.reached, fault.struck = self._logged(), time.time()
                    faults.strike(pids[fault.rank % len(pids)], fault.kind)

    def _is_the_moment(self, fault: Fault) -> bool:
        if fault.kind == faults.KILL_IN_SAVE:
            return faults.is_saving(self.checkpoints)
        # With the only whole one damaged a run rightly ends. Saves to a bucket take longer than some steps.
        return (
            fault.kind not in (faults.TRUNCATE, faults.FLIP) or self._before(faults.newest_whole(self.checkpoints)) > 0
        )

    def _see_recovery(self, attempt: int, step: int) -> None:
        resumed = self._resumed(attempt)
        for fault in self._recovering:
            fault.resumed = resumed
        if resumed is not None and step > resumed:
            for fault in self._recovering:
                fault.recovered = time.time()
            self._recovering = []

    def _strike_early(self, job: LocalJob, fault: Fault) -> None:
        """Once the last rank says that it is at the moment, and the others have had time to wait for it."""
        pids, moment = job.pids(), f"AT {faults.EARLY[fault.kind]}\n"
        if fault.struck or not pids:
            return
        log = log_path(self.run / "launch", job.attempt, max(pids))
        if not log.is_file() or moment not in log.read_text(errors="replace"):
            return
        time.sleep(1.0 + fault.delay_s)
        if self._current is fault:
            fault.reached, fault.struck = fault.newest, time.time()
            faults.strike(pids[fault.rank % len(pids)], fault.kind)

    def _disk_full(self, fault: Fault, step: int, filler: Path | None) -> Path | None:
        if not fault.struck:
            if step >= fault.step and not faults.is_saving(self.checkpoints):
                fault.reached, fault.struck = step, time.time()
                return faults.fill(self.run / "disk")
            return None
        incidents = self.run / "incidents.jsonl"
        failed = incidents.exists() and any(
            line["incident"] == "save_failed" and line["time"] >= fault.struck
            for line in map(json.loads, incidents.read_text().splitlines())
        )
        if failed and not fault.detected:
            fault.detected, fault.newest, fault.resumed = time.time(), faults.newest_whole(self.checkpoints), None
            if filler is not None:
                filler.unlink()
        if fault.detected and not fault.recovered and faults.newest_whole(self.checkpoints) > fault.newest:
            fault.recovered = time.time()
            # The run itself went on; the next fault ends this same attempt.
            following = self._left.pop(0) if self._left else None
            if following is not None:
                following.newest = faults.newest_whole(self.checkpoints)
                following.step = max(following.step, step + 2)
            self._current = following
        return filler

    def _logged(self) -> int:
        path = self.run / "metrics.jsonl"
        try:
            with path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
                steps = re.findall(rb'^\{"step": (\d+),', file.read(), re.MULTILINE)
        except FileNotFoundError:
            return 0
        return int(steps[-1]) if steps else 0

    def _resumed(self, attempt: int) -> int | None:
        """The step that an attempt says it goes on from, None until it does."""
        path = log_path(self.run / "launch", attempt, 0)
        if not path.is_file():
            return None
        found = re.search(r"parameters, \d+ devices .*, step (\d+) of", path.read_text(errors="replace"))
        return int(found[1]) if found else None
