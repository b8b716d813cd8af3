"""Traces of the steps that were asked for, by option or by file; one that fails is a word."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from omnihuman_jax.telemetry.profiler import ASK, FOLDER, Profiler, parse_steps


def train(profiler: Profiler, first: int, last: int) -> None:
    step = jax.jit(lambda x: jnp.sin(x @ x))
    x = jnp.eye(8)
    for done in range(first, last + 1):
        profiler.before(done)
        x = step(x)
        profiler.after(done, x)
    profiler.close()


def traced(run: Path) -> list[tuple[int, int]]:
    lines = [json.loads(line) for line in (run / FOLDER / "steps.jsonl").read_text().splitlines()]
    return [(line["first"], line["last"]) for line in lines]


def train_twice(run: Path) -> None:
    """Steps 3 and 4 by the option, then two by the file."""
    train(Profiler(run, parse_steps("3:5")), 1, 8)
    assert traced(run) == [(3, 4)]
    assert len(list((run / FOLDER).glob("plugins/profile/*/*.xplane.pb"))) == 1
    (run / ASK).write_text("2\n")
    train(Profiler(run, None), 11, 14)


def test_steps_and_the_file(tmp_path: Path) -> None:
    """In a process of its own, as a trainer is: where torch is loaded, as other tests do, JAX 0.10 cannot trace."""
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True)
    assert traced(tmp_path) == [(3, 4), (11, 12)] and not (tmp_path / ASK).exists()


def test_a_trace_that_fails_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FOLDER).write_text("no folder")
    with caplog.at_level(logging.WARNING):
        train(Profiler(tmp_path, range(1, 3)), 1, 4)
    assert "the run goes on" in caplog.text


@pytest.mark.parametrize("text", ["0:3", "5:5", "7:2", "a", "1:2:3", "-1"])
def test_what_are_no_steps(text: str) -> None:
    with pytest.raises(ValueError, match="give FIRST:STOP, such as 100:105"):
        parse_steps(text)
    assert list(parse_steps("7")) == [7]


if __name__ == "__main__":
    train_twice(Path(sys.argv[1]))
