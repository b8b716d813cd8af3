"""The chaos harness itself, on a few faults; `make chaos` runs thirty."""

from pathlib import Path

import pytest

from omnihuman_jax.telemetry.goodput import Goodput
from tests.chaos import faults, run
from tests.chaos.faults import Fault
from tests.chaos.trial import Trial, write_dataset


def test_every_kind_is_planned() -> None:
    import random

    rows = run.plan_faults(30, random.Random(3))
    planned = [fault for row in rows for fault in row]
    assert len(planned) == 30 and {fault.kind for fault in planned} == set(faults.KINDS)
    assert all(row[0].step > 0 and row[-1].step < 60 for row in rows)


def test_a_fault_before_the_first_step_strikes_an_attempt_that_resumes() -> None:
    early, full = list(faults.EARLY), faults.DISK_FULL
    assert run._in_order([early[0], full, faults.STOP, early[1], faults.FLIP]) == [
        full, faults.STOP, *early, faults.FLIP
    ]  # fmt: skip
    # There is no attempt after a disk that was full: the run went on.
    assert run._in_order([early[0], full]) == [full, faults.TERMINATE]


def test_a_fault_that_left_the_wrong_bits_is_found(tmp_path: Path) -> None:
    """The check fails on a difference: of a bit, of a step that was lost, of a fault that never struck."""
    import numpy as np

    def trial(value: float, *plan: Fault) -> Trial:
        made = Trial(tmp_path, tmp_path, 2, list(plan), tmp_path, 0)
        made.arrays = {"params/w": np.array([value], np.float32)}
        return made

    for name in ("quarantine.jsonl", "nonfinite.jsonl"):
        (tmp_path / name).write_text("{}\n")
    good = Fault(kind=faults.KILL, step=7, rank=0, struck=1.0, detected=2.0, recovered=3.0, newest=5, resumed=5)
    assert run.check(trial(1.0, good), trial(1.0)) == []
    assert "differ" in run.check(trial(1.0), trial(np.nextafter(np.float32(1), np.float32(2))))[0]
    lost = Fault(kind=faults.KILL, step=7, rank=0, struck=1.0, detected=2.0, recovered=3.0, newest=5, resumed=0)
    assert "went on from step 0" in run.check(trial(1.0, lost), trial(1.0))[0]
    assert "recovered 0" in run.check(trial(1.0, Fault(kind=faults.STOP, step=7, rank=0)), trial(1.0))[0]


def test_where_no_disk_can_be_filled_other_faults_strike_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = [Fault(kind=kind, step=7, rank=0) for kind in (faults.DISK_FULL, faults.KILL, faults.DISK_FULL)]
    trial = Trial(tmp_path, tmp_path, 2, plan, tmp_path, 0)
    trial.do_without_a_disk("no disk")
    assert len(trial.plan) == 3 and faults.DISK_FULL not in {fault.kind for fault in trial.plan}
    assert capsys.readouterr().err.count("NO FULL DISK") == 2
    monkeypatch.setattr(
        run, "read_goodput", lambda folder: Goodput(attempts=(), seconds={"productive": 1.0}, wall=2.0, host_ratio=None)
    )
    assert f"No {faults.DISK_FULL}" in run.table([trial], 60)


def test_a_finished_run_is_not_run_again_and_a_broken_off_one_from_its_start(tmp_path: Path) -> None:
    import numpy as np

    def trial(name: str, *plan: Fault) -> Trial:
        return Trial(tmp_path / name, tmp_path, 2, list(plan), tmp_path, 0)

    done = trial("done", Fault(kind=faults.KILL, step=7, rank=0, struck=1.5, codes=[137, 134]))
    assert done.finished_before() is None
    done.run.mkdir()
    done.arrays, done.seconds = {"params/w": np.arange(3, dtype=np.float32)}, 2.5
    done.keep(["lost a step"])
    again = trial("done", Fault(kind=faults.KILL, step=7, rank=0))
    assert again.finished_before() == ["lost a step"]
    assert again.plan == done.plan and again.seconds == 2.5
    assert again.arrays["params/w"].tobytes() == done.arrays["params/w"].tobytes()
    (tmp_path / "half" / "launch").mkdir(parents=True)
    assert trial("half").finished_before() is None and not (tmp_path / "half").exists()


@pytest.mark.slow
def test_a_struck_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    reference = Trial(tmp_path / "reference", dataset, 2, [], tmp_path / "cache", 0)
    assert reference.execute().code == 0
    plan = [
        Fault(kind=kind, step=step, rank=1)
        for kind, step in ((faults.KILL, 8), (faults.FLIP, 20), (faults.TERMINATE, 33))
    ]
    struck = Trial(tmp_path / "struck", dataset, 2, plan, tmp_path / "cache", 1)
    assert struck.execute().code == 0
    assert run.check(struck, reference) == []
