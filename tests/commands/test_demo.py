"""The demo's own part: the order of the commands, stamps, and the kill whose resume is compared bit by bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from omnihuman_jax import cli
from omnihuman_jax.commands import demo

# A process with the outside of a training: checkpoints that appear whole, lines of metrics, no end of its own.
TRAINING = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[sys.argv.index("--run") + 1])
start = max([int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit()], default=0)
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
metrics = run / "metrics.jsonl"
kept = [l for l in (metrics.read_text().splitlines() if metrics.exists() else []) if json.loads(l)["step"] <= start]
metrics.write_text("".join(l + "\\n" for l in kept))
end = 1000000 if start == 0 else 40
drift = DRIFT if start else 0.0
for step in range(start + 1, end):
    with metrics.open("a") as f:
        f.write(json.dumps({"step": step, "loss": 1 / step + drift, "step_time_s": time.time()}) + "\\n")
    if step % 10 == 0:
        (run / "checkpoints" / f"{step}.tmp").mkdir()
        (run / "checkpoints" / f"{step}.tmp").rename(run / "checkpoints" / str(step))
    time.sleep(0.05 if start == 0 else 0)
"""


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def install(drift: float) -> demo.Step:
        script = tmp_path / "training.py"
        script.write_text(TRAINING.replace("DRIFT", repr(drift)))
        monkeypatch.setattr(demo, "CLI", (sys.executable, str(script)))
        return demo.Step(name="train", argv=("train", "--run", str(tmp_path / "run")), why="")

    return install


def test_a_killed_training_is_continued_and_compared(training, tmp_path: Path) -> None:
    record = demo.train_with_a_kill(training(0.0), tmp_path, demo.Stamps(tmp_path))
    resume = record["resume"]
    assert resume["killed_at"] > resume["checkpoint"] >= 10 and resume["different"] == []
    assert resume["compared"] == list(range(resume["checkpoint"] + 1, resume["killed_at"] + 1))
    assert resume["values"] == 2 * len(resume["compared"])  # step and loss, not the time


def test_a_resume_that_differs_in_the_last_bit_fails_the_demo(
    training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        demo.train_with_a_kill(training(2**-52), tmp_path, demo.Stamps(tmp_path))
    assert exit_.value.code == 1 and "differs" in capsys.readouterr().out


def test_it_kills_once_only(training, tmp_path: Path) -> None:
    step, stamps = training(0.0), demo.Stamps(tmp_path)
    demo.kill_once(step, tmp_path, stamps)
    first = stamps.read("kill")
    assert first is not None and first["killed"] and first["lost"]
    demo.train_with_a_kill(step, tmp_path, stamps)
    assert stamps.read("kill") == first


def steps_of(folder: Path) -> list[demo.Step]:
    """Two cheap real commands, the second of which needs what the first would not make."""
    return [
        demo.Step(name="first", argv=("demo", "--list", "--out", str(folder)), why=""),
        demo.Step(name="second", argv=("report", "--run", str(folder / "nothing")), why=""),
    ]


def test_finished_steps_are_skipped_and_a_failed_one_stops_the_story(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stamps = demo.Stamps(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        demo.tell(steps_of(tmp_path), tmp_path, stamps)
    assert exit_.value.code == 2
    out, err = capfd.readouterr()
    assert "omnihuman curate" in out and "omnihuman report: " in err and "Traceback" not in err
    assert stamps.read("first") is not None and stamps.read("second") is None
    assert stamps.read("first")["peak_bytes"] > 2**20

    with pytest.raises(SystemExit):
        demo.tell(steps_of(tmp_path), tmp_path, stamps)
    out, _ = capfd.readouterr()
    assert "finished before" in out and "omnihuman curate" not in out


def test_a_changed_command_or_config_runs_again_and_so_do_later_steps(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text("a = 1\n")
    before = {step.name: step.fingerprint for step in demo.story(tmp_path, config, 8)}
    assert before == {step.name: step.fingerprint for step in demo.story(tmp_path, config, 8)}
    config.write_text("a = 2\n")
    after = {step.name: step.fingerprint for step in demo.story(tmp_path, config, 8)}
    assert {name for name in before if before[name] != after[name]} == {"plan", "train"}

    stamps = demo.Stamps(tmp_path)
    for name in ("first", "second"):
        stamps.write(name, {"fingerprint": "old", "seconds": 1.0, "peak_bytes": 1})
    with pytest.raises(SystemExit):
        demo.tell(steps_of(tmp_path), tmp_path, stamps)
    assert stamps.read("second") is None


def test_every_step_is_a_command_that_exists(tmp_path: Path) -> None:
    steps = demo.story(tmp_path, tmp_path / "c.py", 8)
    names = [next(arg for arg in step.argv if arg in cli.COMMANDS) for step in steps]
    assert len({step.name for step in steps}) == len(steps)
    # No steps of the story.
    beside = {
        "demo",
        "theatre",
        "ablate",
        "packing",
        "import",
        "submit",
        "status",
        "logs",
        "cancel",
        "replay",
        "bench-checkpoint",
        "goodput",
    }
    assert list(dict.fromkeys(names)) == [name for name in cli.COMMANDS if name not in beside]


def test_fresh_removes_nothing_but_a_demo(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ValueError, match="not made by a demo"):
        demo.main(["--out", str(tmp_path), "--fresh"])
    assert (tmp_path / "precious").exists()
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py"):
        demo.main(["--out", str(tmp_path), "--config", "nowhere.py"])


def test_the_printed_command_can_be_typed(tmp_path: Path) -> None:
    out = tmp_path / "a folder"
    listed = subprocess.run(
        [*demo.CLI, "demo", "--list", "--out", str(out)], capture_output=True, text=True, timeout=60
    )
    import shlex

    argvs = [tuple(shlex.split(line)) for line in listed.stdout.splitlines()]
    config = Path("configs/demo.py")
    assert all(argv[0] == "omnihuman" for argv in argvs) and any(str(out / "clips") in argv for argv in argvs)
    assert any(str(config) in argv[3:] or str(config) in " ".join(argv) for argv in argvs)


def test_interrupted_lines_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert demo.logged(tmp_path) == [{"step": 1}]
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "checkpoints" / "5").mkdir()
    assert demo.finished_checkpoints(tmp_path) == [5]
