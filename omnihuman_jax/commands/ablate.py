"""The paper's claims about training ratios, tried on drawn people: arms fork from a shared checkpoint, a seed at a
time, and a rule that was fixed before says what may be claimed (docs/ablations.md).

It calls nothing but `omnihuman train` and `omnihuman evaluate`: every command is printed and can be typed by hand. What
is finished is not run again; a training that was killed goes on.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.ablation import arm_commands, results
from omnihuman_jax.ablation.arm_commands import ArmCommand, Places
from omnihuman_jax.ablation.paper import SUITES
from omnihuman_jax.ablation.suite import ArmGroup, Suite, hours
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.config import read_config
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.plan import Plan
from omnihuman_jax.data.window_index import TRAIN_SPLIT
from omnihuman_jax.reporting import ablation_page
from omnihuman_jax.runtime import exit_codes, files
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.telemetry.metrics import read_metrics

CLI = (sys.executable, "-m", "omnihuman_jax.cli")
DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "ablations.py"
DECIDED, RESULT, PAGE, STAMPS = "decided.json", "ablations.json", "ablations.html", ".finished"
_STOP_S = 120.0
"""How long a training that is told to stop may take to save."""


def decide(suite: Suite, out: Path, overrides: Sequence[str]) -> None:
    """Writes down what is asked before anything runs; ValueError where another answer was under way here.

    Arms and seeds may be added later; what they are, and what is asked of them, may not change.
    """
    asked: dict[str, Any] = {"evaluation": _evaluation(suite), "overrides": list(overrides)}
    for part in suite.to_json()["parts"]:
        asked |= {f"arm {arm['name']}": {"after": part["shared"], **arm} for arm in part["arms"]}
    asked |= {f"comparison {one['name']}": one for one in suite.to_json()["comparisons"]}
    path = out / DECIDED
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if changed := [name for name, value in asked.items() if before.get(name, value) != value]:
        raise ValueError(
            f"{out} was begun with another {changed[0]}: what is asked is decided before the first run; give"
            " another --out"
        )
    files.write_text(path, json.dumps(before | asked, indent=2) + "\n")


def _evaluation(suite: Suite) -> dict[str, Any]:
    names = ("split", "windows", "sampling_steps", "guidance_scale", "chains", "chain_s")
    return {name: getattr(suite, name) for name in names}


def prepare(suite: Suite, places: Places) -> dict[str, str]:
    """Makes the data of the arms that train on strong clips alone; arm -> why it cannot be run.

    ValueError or FileNotFoundError where a part's data are not there.
    """
    not_run = {}
    for part in suite.parts:
        for needed in (places.dataset(part.name), places.theatres[part.name] / "truth"):
            if not needed.is_dir():
                raise FileNotFoundError(f"{needed} does not exist; docs/ablations.md has the commands that make it")
        for arm in part.arms:
            if arm.strong_only and not keep_strong(places.dataset(part.name), places.dataset(part.name, arm), part):
                not_run[arm.name] = "the data set has no weak clips to leave out"
    return not_run


def keep_strong(dataset: Path, target: Path, part: ArmGroup) -> bool:
    """A data set of the same records, whose windows are trained on only if they are eligible for all that the part
    trains. False, and nothing written, where that is every window.
    """
    catalog = Catalog.load(dataset)
    wanted = ConditionSet.of(*(c for c in Condition if any(arm.stage.ratios[c] > 0 for arm in part.arms)))
    weak = (catalog.split == TRAIN_SPLIT) & ((catalog.eligible & wanted.bits) != wanted.bits)
    if not weak.any():
        return False
    leave_out(dataset, target, weak)
    return True


def leave_out(dataset: Path, target: Path, rows: np.ndarray) -> None:
    """A data set of the same records (links), whose windows `rows`, bool [n] of the catalog, are not trained on."""
    catalog = Catalog.load(dataset)
    split = np.where(rows, "left_out", np.array(catalog.split.tolist(), object))
    target.mkdir(parents=True, exist_ok=True)
    for path in dataset.iterdir():
        if not path.name.startswith("catalog") and not (link := target / path.name).is_symlink():
            link.symlink_to(path.resolve())
    dataclasses.replace(catalog, split=split).save(target)


def without(suite: Suite, not_run: Mapping[str, str]) -> Suite:
    """The suite without these arms; its comparisons stay, to be reported."""
    parts = [
        dataclasses.replace(part, arms=tuple(arm for arm in part.arms if arm.name not in not_run))
        for part in suite.parts
    ]
    return dataclasses.replace(suite, parts=tuple(part for part in parts if part.arms))


@contextlib.contextmanager
def alone(out: Path) -> Iterator[int]:
    """A lock on the suite's folder, which a command that outlives this one keeps; ValueError where it is taken."""
    descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{out} is in use: another `omnihuman ablate`, or a training that one has left, still works in it"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def run_command(job: ArmCommand, lock: int) -> float:
    """Runs a command to its end; its seconds. SystemExit with its code where it fails."""
    begin = time.monotonic()
    process = subprocess.Popen([*CLI, *job.argv], stdin=subprocess.DEVNULL, pass_fds=(lock,))
    try:
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)  # a training saves first
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        process.kill()
        raise
    if code != 0:
        print(f"{job.name} failed (exit code {code}); start again, and it goes on from here", file=sys.stderr)
        raise SystemExit(exit_codes.of_returncode(code))
    return time.monotonic() - begin


def run_all(commands: Sequence[ArmCommand], out: Path) -> None:
    """Runs what is not finished, one after another."""
    stamps = out / STAMPS
    with alone(out) as lock, _stopped_by_sigterm():
        for number, job in enumerate(commands, 1):
            stamp = stamps / f"{job.name}.json"
            if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8"))["command"] == job.command:
                print(f"[{number}/{len(commands)}] {job.name}: finished before", flush=True)
                continue
            print(f"[{number}/{len(commands)}] $ {job.command}", flush=True)
            seconds = run_command(job, lock)
            stamps.mkdir(exist_ok=True)
            files.write_text(stamp, json.dumps({"command": job.command, "seconds": round(seconds, 1)}) + "\n")


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds, so that the command under way is told to stop too."""

    def leave(*_: object) -> None:
        raise SystemExit(exit_codes.RESTART)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def curve(run: Path) -> dict[str, list[float]]:
    """What a run measured of itself while it trained: step, windows with audio seen since step 0, mouth correlation."""
    config = read_config(run)
    plan = Plan(Catalog.load(config.data.dataset), config.stages, config.data.plan, config.seed)
    found: dict[str, list[float]] = {"step": [], "audio_windows": [], "mouth": []}
    rates = [report.windows * report.realised[Condition.AUDIO] / report.steps for report in plan.report()]
    for line in read_metrics(run):
        if "mouth/correlation" in line:
            seen = sum(
                rate * min(max(line["step"] - start, 0), row.steps)
                for rate, start, row in zip(rates, config.stages.starts, config.stages.rows, strict=True)
            )
            found["step"].append(line["step"])
            found["audio_windows"].append(round(seen))
            found["mouth"].append(line["mouth/correlation"])
    return found


def write_results(suite: Suite, places: Places, not_run: Mapping[str, str]) -> list[dict[str, Any]]:
    """ablations.json and the page; the rows."""
    rows = results.summarise(suite, places, not_run)
    curves = {
        f"{arm.name}, seed {seed}": curve(places.run(part.name, seed, arm.name))
        for part in without(suite, not_run).parts
        for arm in part.arms
        for seed in suite.seeds
    }
    found = {"suite": suite.to_json(), "rows": rows, "curves": curves}
    files.write_text(places.out / RESULT, json.dumps(found, indent=2) + "\n")
    shown = {
        arm.name: places.run(part.name, suite.seeds[0], arm.name)
        for part in without(suite, not_run).parts
        for arm in part.arms
    }
    files.write_text(places.out / PAGE, ablation_page.page(found, places.out, shown))
    return rows


def describe(suite: Suite) -> str:
    """The arms, the steps, and about how long they take."""
    lines = []
    for part in suite.parts:
        lines.append(
            f"{part.name}: {part.what}; {part.shared_steps} steps before the fork, seeds {_joined(suite.seeds)}"
        )
        for arm in part.arms:
            ratios = ", ".join(f"{c.label} {arm.stage.ratios[c]:.0%}" for c in Condition if arm.stage.ratios[c])
            lines.append(f"  {arm.name}: {arm.stage.steps} steps, {ratios}{', strong clips alone' * arm.strong_only}")
    for one in suite.comparisons:
        lines.append(f"asked: {one.claim} ({one.metric} of {one.more} above {one.less} by {one.smallest:g} or more)")
    for name, value in hours(suite).items():
        lines.append(f"about {value:.1f} hours for {name} on two idle cores, evaluation included")
    return "\n".join(lines)


def _joined(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="omnihuman ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  omnihuman ablate --suite paper --out runs/ablations --faces runs/theatre --dry-run\n"
        "  omnihuman ablate --out runs/small --faces runs/theatre --arms audio_10,audio_50 --seeds 1,2 --steps 300",
    )
    parser.add_argument("--suite", choices=SUITES, default="paper", help="what is asked (%(default)s)")
    parser.add_argument("--out", type=local, required=True, help="folder for runs, results and the page")
    parser.add_argument(
        "--faces",
        type=local,
        metavar="DIR",
        help="a theatre of close-ups with its `dataset`; without it, no arm of them",
    )
    parser.add_argument("--bodies", type=local, metavar="DIR", help="a theatre of half bodies, likewise")
    parser.add_argument("--arms", type=_words, default=(), metavar="A,B", help="these arms only")
    parser.add_argument("--seeds", type=_numbers, default=(), metavar="1,2", help="these seeds instead of the suite's")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of an arm after the fork")
    parser.add_argument("--shared-steps", type=int, metavar="N", help="steps before the fork")
    parser.add_argument("--windows", type=int, metavar="N", help="windows of an evaluation")
    parser.add_argument("--chains", type=int, metavar="N", help="long videos of an evaluation of drift; 0: none")
    parser.add_argument(
        "--curves",
        type=int,
        default=6,
        metavar="N",
        help="times that an arm is looked at while it trains (%(default)s)",
    )
    parser.add_argument("--config", type=local, default=DEFAULT_CONFIG, help="instead of configs/ablations.py")
    parser.add_argument("--dry-run", action="store_true", help="print arms, steps and hours, and stop")
    parser.allow_abbrev = False
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _numbers(text: str) -> tuple[int, ...]:
    if not all(word.isdigit() for word in _words(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers with commas between, such as 1,2,3")
    return tuple(map(int, _words(text)))


def main(argv: Sequence[str]) -> int:
    """`omnihuman ablate`."""
    options, overrides = _parser().parse_known_args(list(argv))
    if foreign := [word for word in overrides if not word.startswith("--config.")]:
        raise ValueError(f"unknown argument {foreign[0]!r}; fields of every training are set with --config.FIELD=VALUE")
    suite = SUITES[options.suite].chosen(
        arms=options.arms, seeds=options.seeds, steps=options.steps, shared_steps=options.shared_steps,
        windows=options.windows, chains=options.chains,
    )  # fmt: skip
    suite.validate()
    if options.dry_run:
        print(describe(suite))
        return exit_codes.OK
    theatres = {name: folder for name in ("faces", "bodies") if (folder := getattr(options, name)) is not None}
    suite, left_out = _of_data(suite, theatres)
    if not options.config.is_file():
        raise FileNotFoundError(
            f"{options.config} does not exist; run from a clone of the repository, or name --config"
        )
    places = Places(out=options.out, config=options.config, theatres=theatres)
    options.out.mkdir(parents=True, exist_ok=True)
    with alone(options.out):  # nothing is written beside one that runs
        decide(suite, options.out, overrides)
        not_run = prepare(suite, places)
    print("\n".join([describe(suite), *left_out]), flush=True)
    made = list(
        arm_commands.commands(without(suite, not_run), places, rounds=options.curves, overrides=tuple(overrides))
    )
    run_all(made, options.out)
    for row in write_results(suite, places, not_run):
        print(results.told(row))
    print(f"{options.out / PAGE}")
    return exit_codes.OK


def _of_data(suite: Suite, theatres: Mapping[str, Path]) -> tuple[Suite, list[str]]:
    """The parts that there are data for, and a line for each other; ValueError where that is all of them."""
    lines = [f"not run: {part.name}, without --{part.name} DIR" for part in suite.parts if part.name not in theatres]
    parts = tuple(part for part in suite.parts if part.name in theatres)
    if not parts:
        raise ValueError(f"there are no data: give {' or '.join(f'--{part.name} DIR' for part in suite.parts)}")
    kept = tuple(one for one in suite.comparisons if one.part in theatres)
    return dataclasses.replace(suite, parts=parts, comparisons=kept), lines
