"""The commands of a suite, in order: each can be typed by hand, and each one that is finished is not run again."""

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path

from omnihuman_jax.ablation.suite import Arm, ArmGroup, Suite

LOGGED = 20
"""Steps between two lines of metrics: `logging.interval` of the suite's config."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ArmCommand:
    """One command: the arguments of `omnihuman`."""

    name: str
    argv: tuple[str, ...]

    @property
    def command(self) -> str:
        """As a user would type it."""
        return shlex.join(("omnihuman", *self.argv))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where things are: `out` of the suite, `config` that it trains, the theatre's folder of each part's data."""

    out: Path
    config: Path
    theatres: dict[str, Path]

    def run(self, part: str, seed: int, name: str) -> Path:
        """The run of an arm, or of `shared`."""
        return self.out / part / f"seed_{seed}" / name

    def evaluation(self, part: str, seed: int, name: str) -> Path:
        """What was measured of it."""
        return self.run(part, seed, name) / "evaluation"

    def dataset(self, part: str, arm: Arm | None = None) -> Path:
        """What it trains on."""
        strong = arm is not None and arm.strong_only
        return self.out / part / "strong_only" if strong else self.theatres[part] / "dataset"


def commands(suite: Suite, places: Places, *, rounds: int, overrides: tuple[str, ...] = ()) -> Iterator[ArmCommand]:
    """Every command of the suite: seed by seed, so that an experiment that is ended early has whole seeds.

    Args:
        rounds: of samples and mouth correlation while an arm trains; 0: none.
        overrides: `--config.*` of every training.
    """
    for seed in suite.seeds:
        for part in suite.parts:
            yield _train(suite, places, part, None, seed, rounds, overrides)
            for arm in part.arms:
                yield _train(suite, places, part, arm, seed, rounds, overrides)
                yield _evaluate(suite, places, part, arm, seed)


def _train(
    suite: Suite, places: Places, part: ArmGroup, arm: Arm | None, seed: int, rounds: int, overrides: tuple[str, ...]
) -> ArmCommand:
    name = arm.name if arm else "shared"
    argv = ["train", "--config", f"{places.config}:{arm.name if arm else part.name}", f"--config.seed={seed}"]
    argv += [f"--config.data.dataset={places.dataset(part.name, arm)}"]
    argv += [f"--run={places.run(part.name, seed, name)}", "--no-progress"]
    argv += [f"--config.stages.rows[{i}].steps={row.steps}" for i, row in enumerate(part.schedule(arm).rows)]
    if arm:
        argv += [f"--fork={places.run(part.name, seed, 'shared')}@{part.shared_steps}"]
    if arm and rounds:
        every = max(1, round(arm.stage.steps / rounds / LOGGED)) * LOGGED
        theatre = places.theatres[part.name]
        argv += [
            f"--config.samples.interval={every}",
            "--config.samples.windows=2",
            f"--config.samples.split={suite.split}",
        ]
        argv += [f"--config.samples.truth={theatre / 'truth'}", f"--config.samples.clips={theatre / 'clips'}"]
    return ArmCommand(name=f"{part.name}-{seed}-{name}-train", argv=(*argv, *overrides))


def _evaluate(suite: Suite, places: Places, part: ArmGroup, arm: Arm, seed: int) -> ArmCommand:
    # The noise's seed is the same in every arm and seed: samples are compared window by window.
    argv = ["evaluate", "--suite", "theatre", "--run", str(places.run(part.name, seed, arm.name))]
    # Of the whole data set: an arm that has trained on a part of it is asked the same.
    argv += ["--dataset", str(places.dataset(part.name)), "--truth", str(places.theatres[part.name] / "truth")]
    argv += ["--split", suite.split, "--windows", str(suite.windows), "--batch", "16", "--seed", "0"]
    argv += ["--steps", str(suite.sampling_steps), "--guidance-scale", str(suite.guidance_scale)]
    if suite.chains and any(one.metric == "drift" and arm.name in (one.more, one.less) for one in suite.comparisons):
        argv += ["--chains", str(suite.chains), "--chain-seconds", str(suite.chain_s)]
    argv += ["--out", str(places.evaluation(part.name, seed, arm.name))]
    return ArmCommand(name=f"{part.name}-{seed}-{arm.name}-evaluate", argv=tuple(argv))
