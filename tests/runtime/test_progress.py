"""The bar says what there is to say on a terminal, and in lines elsewhere; nobody builds another."""

import ast
import io
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from omnihuman_jax.runtime import progress
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.telemetry import training_bar as training

ROOT = Path(__file__).resolve().parents[2]


def shown(unit: str, total: float, completed: float, *, enabled: bool = True, terminal: bool = True) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)
    with progress_bar(unit, enabled=enabled, stays=True, console=console) as bar:  # type: ignore[arg-type]
        row = bar.add_task("reading [it]", total=total)
        bar.update(row, completed=completed, text="part [3]")
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("unit", "total", "completed", "expected"),
    [("items", 8, 2, "2/8"), ("bytes", 8e9, 2e9, "2.0/8.0 GB"), ("share", 4, 1.0, "25%")],
)
def test_how_much_of_how_much_what_and_how_long(unit: str, total: float, completed: float, expected: str) -> None:
    text = shown(unit, total, completed)
    assert "reading [it]" in text and expected in text and "part [3]" in text
    assert "0:00:00 left -:--:--" in text


def test_nothing_where_nobody_watches() -> None:
    assert shown("items", 8, 2, terminal=False) == shown("items", 8, 2, enabled=False) == ""
    code = (
        "from omnihuman_jax.telemetry.training_bar import progress_bar\n"
        "with progress_bar(0, 3, enabled=True) as show: show(2, {'stage': 's', 'loss': 1.0})\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == ran.stderr == ""


def test_a_line_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    with progress_bar(console=console) as bar:
        row = bar.add_task("curate [videos]", total=1200)
        bar.update(row, completed=300, text="0.42 videos/s")
        while "300 of" not in (written := console.file.getvalue()):  # type: ignore[attr-defined]
            time.sleep(0.01)
        bar.update(row, completed=1200)
    line = next(line for line in written.splitlines() if "300 of" in line)
    assert re.fullmatch(r"curate \[videos\]: 300 of 1,200, 0\.42 videos/s, 0:0\d:\d\d so far, left 0:\d\d:\d\d", line)
    ended = console.file.getvalue()  # type: ignore[attr-defined]
    time.sleep(0.15)
    assert console.file.getvalue() == ended  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("unit", "total", "said"),
    [
        ("bytes", 8e9, "2.50 of 8.00 GB, 0:10:00 so far, left 0:22:00"),
        ("share", 8e9, "31 %, 0:10:00 so far, left 0:22:00"),
        ("bytes", None, "2.50 GB, 0:10:00 so far"),
    ],
)
def test_a_line_says_how_much_of_how_much_and_how_long(unit: progress.Unit, total: float | None, said: str) -> None:
    """One step in ten minutes: the time left is that of all that was done."""
    bar = progress_bar(unit, enabled=False)
    bar.add_task("reading", total=total)
    (task,) = bar.tasks
    task.start_time, task.stop_time, task.completed = 0.0, 600.0, 2.5e9
    assert progress.line_of(task, unit) == f"reading: {said}"


def test_a_training_run_shows_stage_loss_and_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with training.progress_bar(2, 8, enabled=True) as show:
        show(3, {"stage": "text", "loss": 0.5})
        show(4, {"stage": "text", "loss": 0.25, "step_time_s": 1.5})
    captured = capsys.readouterr()
    assert "text loss 0.2500 1.50 s/step" in captured.err and captured.out == ""


def built_by_hand(source: str) -> bool:
    """Whether it takes more of `rich.progress` than the type."""
    tree = ast.parse(source)
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "rich.progress"
        for alias in node.names
    }
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return bool(imported - {"Progress"}) or "Progress" in called or "import rich.progress" in source


def test_there_is_one_maker() -> None:
    files = [
        path
        for package in ("omnihuman_jax", "data_pipelines", "launch", "tests")
        for path in (ROOT / package).rglob("*.py")
    ]
    own = {ROOT / "omnihuman_jax" / "runtime" / "progress.py", Path(__file__).resolve()}
    assert [path for path in files if path not in own and built_by_hand(path.read_text())] == []
    assert built_by_hand("from rich.progress import track") and built_by_hand("def f():\n    return Progress(a)")
    assert not built_by_hand("from rich.progress import Progress\ndef f(bar: Progress): bar.add_task('a')")
