"""Any clip trains: a set of which half is silent, a third has no pose and a tenth is corrupt, trained as it is, and
beside it what is left when incomplete clips are dropped (docs/any_clip_trains.md).

    python -m tests.any_clip.run --out runs/any_clip            # what `make any-clip` runs
    python -m tests.any_clip.run --out runs/any_clip --write    # and puts the tables and pictures into docs/

Drawn clips (`omnihuman theatre`) are robbed, then go the way of all clips: `encode`, `train`, the gain of a condition.
Both arms read the same records; they differ in which windows are trained on. What is finished is not run again; a
training that was killed goes on.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omnihuman_jax.ablation.arm_commands import ArmCommand
from omnihuman_jax.commands import ablate
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.dataset_check import check_dataset
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.incidents import read_lines
from omnihuman_jax.runtime.locations import local
from tests.any_clip import damage, measure, page
from tests.any_clip.damage import Shares

# All clips, and the complete ones alone.
ALL, COMPLETE = ARMS = ("all", "complete")
RESULT = "any_clip.json"
_CHECKPOINTS = 4


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """What is drawn, robbed, trained and measured.

    steps: of every training, a multiple of four; windows: held-out ones on which a loss is measured.
    """

    out: Path
    hours: float
    seeds: tuple[int, ...]
    steps: int
    windows: int
    shares: Shares = dataclasses.field(default_factory=Shares)
    theatre_seed: int = 1

    def run(self, arm: str, seed: int) -> Path:
        return self.out / f"seed_{seed}" / arm

    @property
    def runs(self) -> list[list[Path]]:
        """By arm, then seed."""
        return [[self.run(arm, seed) for seed in self.seeds] for arm in ARMS]

    @property
    def interval(self) -> int:
        """Steps between two checkpoints, and so between two looks at the held-out clips."""
        return self.steps // _CHECKPOINTS

    def validate(self) -> None:
        if self.steps < _CHECKPOINTS or self.steps % _CHECKPOINTS:
            raise ValueError(f"--steps {self.steps} must be a multiple of {_CHECKPOINTS}, and above 0")
        if not self.seeds or self.windows < 2:
            raise ValueError(f"--seeds {self.seeds} and --windows {self.windows}: at least one seed and two windows")


def drawing(one: Experiment) -> list[ArmCommand]:
    """The clips, and the networks that encode them."""
    theatre = ["theatre", "--out", str(one.out / "theatre"), "--hours", str(one.hours), "--programme", "faces"]
    return [
        # One voice: with two, which are installed would decide what is drawn.
        ArmCommand(name="theatre", argv=(*theatre, "--seed", str(one.theatre_seed), "--voices", "neural")),
        ArmCommand(name="sample-media", argv=("sample-media", "--out", str(one.out / "media"))),
    ]


def encoding(one: Experiment) -> list[ArmCommand]:
    """The incomplete set, as docs/theatre.md encodes the whole one."""
    media = one.out / "media"
    argv = ["encode", str(one.out / "incomplete" / "clips"), "--out", str(one.out / ALL), "--codec", "dct"]
    argv += ["--text-encoder", str(media / "all-MiniLM-L6-v2"), "--speech-encoder"]
    argv += [str(media / "whisper-tiny.en-encoder"), "--speech-layers", "0,2,4", "--area", "48x48"]
    argv += ["--window-frames", "25", "--stride", "10", "--references", "3", "--margin", "2"]
    return [ArmCommand(name="encode", argv=tuple(argv))]


def training(one: Experiment) -> list[ArmCommand]:
    """Both arms, seed by seed: the theatre's config with a pose on 30 % of the windows, and half as many sequences a
    step: of a short training, more steps are worth more.
    """
    made = []
    for seed in one.seeds:
        for arm in ARMS:
            argv = ["train", "--config", "configs/theatre.py", "--run", str(one.run(arm, seed)), "--no-progress"]
            argv += [f"--config.data.dataset={one.out / arm}", f"--config.seed={seed}"]
            argv += [f"--config.stages.rows[0].steps={one.steps}", "--config.stages.rows[0].pose=0.3"]
            argv += ["--config.data.plan.sequences_per_step=2", "--config.data.plan.chunk_steps=32"]
            argv += [f"--config.checkpoint.interval={one.interval}", f"--config.checkpoint.keep={_CHECKPOINTS}"]
            # The complete arm sees each of its windows often: that is the point, and no warning.
            argv += [f"--config.logging.interval={max(1, one.steps // 24)}", "--config.data.plan.repeat_warning=1000.0"]
            made.append(ArmCommand(name=f"train-{arm}-{seed}", argv=tuple(argv)))
    return made


def rob(one: Experiment) -> None:
    """Between drawing and encoding: `incomplete`."""
    damage.make_incomplete(one.out / "theatre", one.out / "incomplete", one.shares, one.theatre_seed)


def split_arms(one: Experiment) -> None:
    """Between encoding and training: the records that are corrupt, and the arm that drops what is incomplete."""
    fates = damage.read_fates(one.out / "incomplete")
    rows = damage.incomplete_rows(Catalog.load(one.out / ALL), fates)
    damage.flip_records(one.out / ALL, fates)
    ablate.leave_out(one.out / ALL, one.out / COMPLETE, rows)


def measured(one: Experiment) -> dict[str, Any]:
    """Everything that the page says."""
    fates, dataset = damage.read_fates(one.out / "incomplete"), one.out / ALL
    catalog, first = Catalog.load(dataset), one.run(ALL, one.seeds[0])
    encoded = json.loads((dataset / "encode.json").read_text())
    train = catalog.split == "train"
    # Each step is looked at with the parameters that it had.
    looked_at = [step + 1 for step in measure.checkpoints_of(first) if step < one.steps]
    return {
        "hours": one.hours,
        "steps": one.steps,
        "seeds": one.seeds,
        "clips": {
            "trained on": len(fates),
            "silent": sum(fate.silent for fate in fates.values()),
            "without a pose": sum(fate.poseless for fate in fates.values()),
            "corrupt": sum(bool(fate.corrupt) for fate in fates.values()),
            "complete": sum(fate.is_complete for fate in fates.values()),
            "held out": len(set(catalog.clip_id[catalog.split == damage.HELD_OUT].tolist())),
        },
        "windows": {ALL: int(train.sum()), COMPLETE: int((Catalog.load(one.out / COMPLETE).split == "train").sum())},
        "became": damage.what_became(fates, encoded, list(read_lines(first / "quarantine.jsonl"))),
        "found_by_check": collections.Counter(problem.kind for problem in check_dataset(dataset)),
        "ratios": {arm: dataclasses.asdict(measure.ratios(one.run(arm, one.seeds[0]))) for arm in ARMS},
        "losses": {arm: measure.losses(one.run(arm, one.seeds[0])) for arm in ARMS},
        "looked_at": looked_at,
        "gradients": {a: dataclasses.asdict(g) for a, g in measure.gradients(first, looked_at).items()},
        "held_out": measure.compare(measure.held_out(one.runs, dataset, one.windows)),
    }


@contextlib.contextmanager
def cpu_noted(out: Path) -> Iterator[None]:
    """Adds the CPU seconds of this start, of all its processes, to those of earlier ones in `cpu_s.json`."""
    try:
        yield
    finally:
        spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        path = out / "cpu_s.json"
        before = json.loads(path.read_text()) if path.is_file() else 0.0
        files.write_text(path, json.dumps(round(before + sum(u.ru_utime + u.ru_stime for u in spent), 1)))


def main(argv: Sequence[str]) -> int:
    """`make any-clip`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=local, required=True, help="folder for everything")
    parser.add_argument("--hours", type=float, default=0.12, help="of drawn clips (%(default)s)")
    parser.add_argument("--seeds", default="1", help="of the trainings, with commas between (%(default)s)")
    parser.add_argument("--steps", type=int, default=160, help="of each training (%(default)s)")
    parser.add_argument("--windows", type=int, default=24, help="held-out windows measured (%(default)s)")
    parser.add_argument("--write", action="store_true", help="put tables and pictures into docs/")
    options = parser.parse_args(argv)
    seeds = tuple(int(word) for word in options.seeds.split(","))
    one = Experiment(
        out=options.out, hours=options.hours, seeds=seeds, steps=options.steps, windows=options.windows
    )  # fmt: skip
    one.validate()
    one.out.mkdir(parents=True, exist_ok=True)
    with cpu_noted(one.out):
        ablate.run_all(drawing(one), one.out)
        rob(one)
        ablate.run_all(encoding(one), one.out)
        split_arms(one)
        ablate.run_all(training(one), one.out)
        result = measured(one)
    result["cpu_minutes"] = round(json.loads((one.out / "cpu_s.json").read_text()) / 60, 1)
    files.write_text(one.out / RESULT, json.dumps(result, indent=1) + "\n")
    print(page.tables(result))
    page.write_pictures(result, one.out)
    if options.write:
        page.write(result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
