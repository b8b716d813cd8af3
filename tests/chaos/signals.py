"""SIGTERM and Ctrl-C at every moment of a run's life: what came of each, and the bits that the run ended with.

    python -m tests.chaos.signals --processes 1,2,4 --write
    python -m tests.chaos.signals --processes 4 --senders "Ctrl-C to one" --keep DIR    # one lane

A lane is one way to be stopped (SIGTERM to one process, Ctrl-C to all as a terminal does, Ctrl-C to one) on one number
of processes. Its first run is stopped at each moment in turn, fresh until it has a step, resumed from then on, by the
same command every time; others meet the moments of the loop fresh. Each has to end with the records and the arrays of a
run that nobody stopped. `tests.training.moments` makes the moments last: a process stays there in C, as in a restore or
a compilation, where no handler of Python's runs.

As a launcher would, it sends SIGTERM to those that are left when one process ends before the job is joined.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from omnihuman_jax.runtime import exit_codes
from tests.chaos import faults, page
from tests.training import moments, runs

STEPS, INTERVAL = 30, 8
# On a machine that others use a process may get no time to say for minutes that it lives.
OPTIONS = (
    f"--config.stages.rows[1].steps={STEPS - 5}", f"--config.checkpoint.interval={INTERVAL}", "--heartbeat-s=600",
)  # fmt: skip
# Before the first step the stop cuts the stay short; in the loop it waits for its end.
HOLD_S, HOLD_IN_LOOP_S = 120.0, 3.0
ALONE = (moments.IMPORTING, "reading the config", "joining")
STARTING = (*ALONE, "opening the data set", "restoring", "measuring the peak", "compiling")
FIRST_STEP, LAST_SAVE = "the first step", "the last save"
LOOP = ("a later step", "saving", LAST_SAVE)
# How late an answer may come: before the first step; between steps, where a step and a save come first.
LIMIT_S, LIMIT_IN_LOOP_S = 30.0, 300.0
# As a launcher would: on a machine that others use a process may come to its first collective later than Gloo waits.
TRIES = 3
# How long anything may take on a machine that others use.
PATIENCE_S = 1800.0


@dataclasses.dataclass(frozen=True, slots=True)
class Sender:
    """Who stops a run, and how."""

    name: str
    number: signal.Signals
    to_all: bool

    @property
    def code(self) -> int:
        """That the processes shall leave with."""
        return exit_codes.INTERRUPTED if self.number == signal.SIGINT else exit_codes.RESTART


SENDERS = (
    Sender("SIGTERM to one", signal.SIGTERM, to_all=False),
    Sender("Ctrl-C to all", signal.SIGINT, to_all=True),
    Sender("Ctrl-C to one", signal.SIGINT, to_all=False),
)


@dataclasses.dataclass(kw_only=True, slots=True)
class Stop:
    """One of them, and what came of it.

    before, after: the newest whole checkpoint; seconds: from the signal to the last exit; codes: by process.
    """

    moment: str
    sender: str
    processes: int
    before: int
    after: int = 0
    seconds: float = 0.0
    victim: int = 0
    codes: list[int] = dataclasses.field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether the run was complete by then."""
        return self.after == STEPS


def stop(run: Path, dataset: Path, moment: str, sender: Sender, processes: int, victim: int) -> tuple[Stop, str]:
    """Starts the job, stops it at `moment`, waits until all have left; with what they printed."""
    seen = Stop(
        moment=moment,
        sender=sender.name,
        processes=processes,
        before=faults.newest_whole(run / "checkpoints"),
        victim=victim,
    )
    jobs = _start(run, dataset, moment, processes)
    try:
        _wait_for(jobs, moment)
        begin = time.monotonic()
        for job in jobs if sender.to_all else [jobs[victim]]:
            job.send_signal(sender.number)
        if moment in ALONE and not sender.to_all:
            jobs[victim].wait(PATIENCE_S)
            for job in jobs:
                job.send_signal(signal.SIGTERM)
        seen.codes, outputs = runs.outcomes(jobs, timeout=PATIENCE_S)
    finally:
        for job in jobs:
            job.kill()
    seen.seconds = time.monotonic() - begin
    seen.after = faults.newest_whole(run / "checkpoints")
    return seen, "\n".join(outputs)


def _start(run: Path, dataset: Path, moment: str, processes: int) -> list[subprocess.Popen]:
    hold = HOLD_S if moment in STARTING else HOLD_IN_LOOP_S
    # The last one stays, the others wait for it: in a barrier, a collective, or to join. Before that nobody waits.
    holds = {index: hold if index == processes - 1 or moment in ALONE[:2] else 0.0 for index in range(processes)}
    chosen = {index: (moment, seconds) for index, seconds in holds.items() if seconds or moment == "joining"}
    if processes == 1:
        return [runs.start(run, dataset, *OPTIONS, moment=chosen[0])]
    return runs.start_all(run, dataset, *OPTIONS, processes=processes, moments=chosen)


def _wait_for(jobs: list[subprocess.Popen], moment: str) -> None:
    for job in jobs if moment in ALONE else jobs[-1:]:
        runs.wait_until(job, moment)
    if len(jobs) > 1:
        time.sleep(1.0)  # the others come to where they wait


def wrong(seen: Stop, sender: Sender) -> list[str]:
    """What is not as it has to be."""
    found, starting = [], seen.moment in STARTING
    expected = [exit_codes.OK if seen.is_done else sender.code] * seen.processes
    if seen.moment in ALONE and not sender.to_all:
        expected = [sender.code if index == seen.victim else exit_codes.RESTART for index in range(seen.processes)]
    if seen.codes != expected:
        found.append(f"exit codes {seen.codes}, not {expected}")
    if starting and seen.after != seen.before:
        found.append(f"a checkpoint of step {seen.after}, there was one of {seen.before}")
    if not starting and seen.after <= seen.before:
        found.append(f"stopped after {seen.before} and saved nothing")
    if (seen.moment == LAST_SAVE) != seen.is_done:
        found.append(f"the newest checkpoint is of step {seen.after} of {STEPS}")
    if seen.seconds > (LIMIT_S if starting else LIMIT_IN_LOOP_S):
        found.append(f"{seen.seconds:.0f} s")
    return [
        f"{seen.sender}, {seen.processes} processes, from step {seen.before}, {seen.moment}: {line}" for line in found
    ]


def undisturbed(run: Path, dataset: Path, processes: int) -> None:
    """The same command, to the end."""
    jobs = (
        runs.start_all(run, dataset, *OPTIONS, processes=processes)
        if processes > 1
        else [runs.start(run, dataset, *OPTIONS)]
    )
    try:
        runs.finish(*jobs, timeout=PATIENCE_S)
    finally:
        for job in jobs:
            job.kill()


class Lane:
    """One sender on one number of processes: all its stops, on runs in `folder`, where another start of it goes on.

    Args:
        reference: a run of the same command that nobody stopped.
        starting, looping: the moments, of those before the first step and of those in the loop.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Path,
        sender: Sender,
        processes: int,
        reference: Path,
        starting: tuple[str, ...] = STARTING,
        looping: tuple[str, ...] = LOOP,
    ):
        self.folder, self.dataset, self.sender, self.processes = folder, dataset, sender, processes
        self._reference = reference
        self._result = folder / "stops.json"
        folder.mkdir(parents=True, exist_ok=True)
        stored = json.loads(self._result.read_text()) if self._result.exists() else {"stops": [], "wrong": []}
        self.stops = [Stop(**row) for row in stored["stops"]]
        self.wrong: list[str] = stored["wrong"]
        # One run through all moments, fresh and then resumed; and a fresh one for each moment of the loop.
        self._plan = [("chain", moment) for moment in (*starting, FIRST_STEP, *starting, FIRST_STEP, *looping)]
        self._plan += [(moment.replace(" ", "-"), moment) for moment in looping]

    def execute(self) -> None:
        """What is left of it."""
        for name, moment in self._plan[len(self.stops) :]:
            self._stop(self.folder / name, moment)
            stops = [dataclasses.asdict(seen) for seen in self.stops]
            self._result.write_text(json.dumps({"stops": stops, "wrong": self.wrong}))
        for name in dict.fromkeys(name for name, _ in self._plan):
            self._end(self.folder / name)

    def _stop(self, run: Path, moment: str) -> None:
        # By turns the one that stays and one that waits for it.
        victim = (len(self.stops) % 2) * (self.processes - 1)
        seen, output = stop(run, self.dataset, moment, self.sender, self.processes, victim)
        self.stops.append(seen)
        where = f"{seen.sender}, {self.processes} processes, from step {seen.before}, {moment}"
        print(f"{where}: {seen.codes} in {seen.seconds:.1f} s", file=sys.stderr, flush=True)
        if found := wrong(seen, self.sender):
            self.wrong += [f"{line}\n{output}" for line in found]

    def _end(self, run: Path) -> None:
        """The same command once more, to the end, and the comparison."""
        for tries_left in reversed(range(TRIES)):
            if faults.newest_whole(run / "checkpoints") == STEPS:
                break
            try:
                undisturbed(run, self.dataset, self.processes)
            except AssertionError as error:
                if not tries_left:
                    raise
                print(f"{run} ended early and is started again:\n{error}", file=sys.stderr, flush=True)
        if runs.records(run) != runs.records(self._reference):
            self.wrong.append(f"{run}: logged other records than the undisturbed run")
        ours, theirs = runs.checkpoint(run, STEPS), runs.checkpoint(self._reference, STEPS)
        if ours.keys() != theirs.keys() or any(ours[name].tobytes() != theirs[name].tobytes() for name in theirs):
            self.wrong.append(f"{run}: ended with other arrays than the undisturbed run")


def table(stops: list[Stop]) -> str:
    """The page's section: a row a moment."""
    counts = sorted({seen.processes for seen in stops})
    names = ", ".join(sender.name for sender in SENDERS if any(seen.sender == sender.name for seen in stops))
    numbers = ", ".join(map(str, counts))
    lines = [
        f"{len(stops)} stops ({names}) of runs of {STEPS} steps on {numbers} processes. Seconds from the signal to "
        "the exit of the last process: median (largest).",
        "",
        "| when | new | resumed | exit codes | " + " | ".join(f"s, {count} proc." for count in counts) + " | saved |",
        "|---" * (5 + len(counts)) + "|",
    ]
    for moment in (*STARTING, FIRST_STEP, *LOOP):
        rows = [seen for seen in stops if seen.moment == moment]
        if rows:
            lines.append(_row(moment, rows, counts))
    return "\n".join(lines)


def _row(moment: str, rows: list[Stop], counts: list[int]) -> str:
    fresh = sum(seen.before == 0 for seen in rows)
    codes = ", ".join(map(str, sorted({code for seen in rows for code in seen.codes})))
    saved = (
        "nothing to save" if moment in STARTING else "its last step: complete" if moment == LAST_SAVE else "its step"
    )
    seconds = [[seen.seconds for seen in rows if seen.processes == count] for count in counts]
    times = " | ".join(f"{statistics.median(row):.1f} ({max(row):.1f})" if row else "-" for row in seconds)
    return f"| {moment} | {fresh} | {len(rows) - fresh} | {codes} | {times} | {saved} |"


def run_lanes(work: Path, counts: list[int], senders: tuple[Sender, ...] = SENDERS) -> tuple[list[Stop], list[str]]:
    """A lane for each count and sender; what `work` has of them already is not run again."""
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(work / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    dataset, stops, found = work / "dataset", [], []
    if not dataset.exists():
        runs.write_dataset(dataset)
    for count in counts:
        reference = work / f"reference-{count}"
        if faults.newest_whole(reference / "checkpoints") < STEPS:
            undisturbed(reference, dataset, count)
        # One process is all of them.
        for sender in senders if count > 1 else [sender for sender in senders if sender != SENDERS[2]]:
            lane = Lane(work / f"{count}-{sender.name.replace(' ', '-')}", dataset, sender, count, reference)
            lane.execute()
            stops, found = stops + lane.stops, found + lane.wrong
            print(f"{count} processes, {sender.name}: {len(lane.stops)} stops, {len(lane.wrong)} wrong", flush=True)
    return stops, found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2,4", help="of the jobs (%(default)s)")
    parser.add_argument(
        "--senders",
        default=",".join(sender.name for sender in SENDERS),
        metavar="NAMES",
        help="who stops (%(default)s)",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, go on there, and leave everything")
    parser.add_argument(
        "--write", nargs="?", const="signals", metavar="REGION",
        help=f"put the table into docs/{page.PAGE.name}, between the markers of that name (signals)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    chosen = options.senders.split(",")
    if unknown := set(chosen) - {sender.name for sender in SENDERS}:
        parser.error(f"--senders {', '.join(unknown)}: take of {', '.join(sender.name for sender in SENDERS)}")
    work = options.keep or Path(tempfile.mkdtemp(prefix="signals-"))
    work.mkdir(parents=True, exist_ok=True)
    counts = [int(part) for part in options.processes.split(",")]
    stops, found = run_lanes(work.resolve(), counts, tuple(sender for sender in SENDERS if sender.name in chosen))
    print(text := table(stops))
    if options.write and not found:
        page.write(options.write, text)
    print("\n".join(found) if found else "every run ended with the records and the bits of the undisturbed one")
    if found:
        print(f"what they left: {work}", file=sys.stderr)
    elif options.keep is None:
        shutil.rmtree(work)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
