"""What a process prints: its own lines in two formats, no library's noise, and every process's tag."""

import io
import json
import logging
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator

import jax
import pytest

from omnihuman_jax.runtime import processes
from omnihuman_jax.runtime.incidents import Incidents
from omnihuman_jax.telemetry import interval_line, run_log


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Callable[[], list[str]]]]:
    """`printed(format, ...)` sets the log up; calling what it returns gives the lines so far."""
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    out = io.StringIO()

    def begin(*args: object, **kwargs: object) -> Callable[[], list[str]]:
        monkeypatch.setattr(sys, "stdout", out)
        # A command that ran before in this process may hear the warnings still, in pytest's place of then.
        logging.captureWarnings(False)
        run_log.set_up(*args, **kwargs)  # type: ignore[arg-type]
        return lambda: out.getvalue().splitlines()

    yield begin
    logging.captureWarnings(False)
    root.handlers[:] = before[1]
    root.setLevel(before[0])


def test_what_a_line_quotes_does_nothing(printed: Callable[..., Callable[[], list[str]]]) -> None:
    lines = printed("text")
    logging.getLogger("omnihuman_jax.x").warning("window %s\nsecond line", "a\x1b[2J\u202e\udce9")
    assert [line.split(": ")[-1] for line in lines()] == ["window a\\u001b[2J\\u202e\\xe9", "second line"]


def chatter() -> None:
    """What a run's libraries have to say, and two lines of its own."""
    logging.getLogger("absl").info("Finished async checkpoint commit")
    logging.getLogger("orbax.checkpoint").info("saving")
    logging.getLogger("gcsfs").warning("_call exception", exc_info=ValueError("retried"))
    logging.getLogger("jax._src.xla_bridge").warning("a transfer takes long")
    warnings.warn("a ratio grows", stacklevel=1)
    logging.getLogger("omnihuman_jax.telemetry.run_telemetry").info(
        "step %d", 3, extra=run_log.fields("step", step=3, loss=math.nan, ratios={"text": 0.5})
    )
    logging.getLogger("omnihuman_jax.training.run_guard").error("gone", exc_info=RuntimeError("planted"))


def test_text_has_the_runs_own_lines_and_warnings_of_libraries(printed) -> None:
    lines = printed("text")
    chatter()
    when = r"2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d "
    told = [line for line in lines() if line.startswith("2")]
    for line, wanted in zip(
        told, ("WARNING: a transfer", "WARNING: .*a ratio grows", "step 3$", "ERROR: gone"), strict=True
    ):
        assert re.match(when + wanted, line), line
    assert lines()[-1] == "RuntimeError: planted" and "retried" not in "".join(lines())


def test_json_is_one_object_a_line_with_everything(printed, tmp_path) -> None:
    jax.devices()  # JAX tells of its start at debug
    lines = printed("json", "debug", process=2)
    chatter()
    Incidents(tmp_path).note("save_failed", {"step": 4})
    found = [json.loads(line) for line in lines()]
    assert [line["level"] for line in found] == ["debug"] * 3 + ["warning"] * 2 + ["info", "error", "info"]
    assert all(line["process"] == 2 and line["time"].endswith("+00:00") for line in found)
    assert (found[5]["event"], found[5]["step"], found[5]["loss"], found[5]["ratios"]) == (
        "step",
        3,
        "nan",
        {"text": 0.5},
    )
    assert "RuntimeError: planted" in found[6]["traceback"]
    assert (found[7]["event"], found[7]["incident"], found[7]["step"]) == ("incident", "save_failed", 4)


def test_an_incident_is_no_second_line_of_text(printed, tmp_path) -> None:
    lines = printed("text")
    Incidents(tmp_path).note("save_failed", {"step": 4})
    assert lines() == [] and "save_failed" in (tmp_path / "incidents.jsonl").read_text()


def test_processes_of_a_job_are_told_apart(printed, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed("text", process=3)
    logging.getLogger("omnihuman_jax").warning("before they have met")
    monkeypatch.setattr(processes, "own_count", lambda: 4)
    monkeypatch.setattr(processes, "own_index", lambda: 1)
    logging.getLogger("omnihuman_jax").warning("after")
    assert lines()[0].endswith("[process 3] WARNING: before they have met")
    assert lines()[1].endswith("[process 1] WARNING: after")


NATIVE = """
import os, sys, time
from omnihuman_jax.telemetry import run_log
run_log.set_up("text", sys.argv[1])
run_log.hear_native_stdout()
os.write(1, b"[Gloo] Rank 0 is connected to 1 peer ranks\\n")
time.sleep(0.5)
print("from Python")
"""


@pytest.mark.parametrize("level", ["info", "debug"])
def test_native_code_on_stdout_is_a_debug_line(level: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NATIVE, level], capture_output=True, text=True, timeout=120, check=True
    )
    gloo = [line for line in done.stdout.splitlines() if "[Gloo]" in line]
    assert done.stdout.splitlines()[-1] == "from Python" and len(gloo) == (level == "debug")
    assert all("DEBUG: [Gloo] Rank 0" in line for line in gloo)


def test_the_error_that_ends_a_command_is_a_line_of_json_too(printed) -> None:
    lines = printed("json")
    with pytest.raises(SystemExit) as ended, run_log.last_words("json"):
        raise ValueError("data.dataset is not set")
    assert ended.value.code == 2 and json.loads(lines()[0])["message"] == "data.dataset is not set"
    with pytest.raises(SystemExit) as ended, run_log.last_words("json"):
        raise TypeError("a bug")
    assert ended.value.code == 1 and "TypeError: a bug" in json.loads(lines()[1])["traceback"]
    with pytest.raises(ValueError, match="as it is"), run_log.last_words("text"):
        raise ValueError("as it is")


def test_an_interval_in_words() -> None:
    line = {
        "step": 20, "total_steps": 300, "stage": "pose", "loss": 0.91234, "grad_norm": 1.25, "learning_rate": 5e-5,
        "step_time_s": 1.5, "tokens_per_s": 12345.6, "matmul_peak_share": 0.41, "data_wait_share": 0.002,
        "left_s": 90000.0, "memory": "device", "memory_bytes": 71_200_000_000,
    }  # fmt: skip
    assert interval_line.describe(line) == (
        "step 20/300  stage pose  loss 0.9123  grad norm 1.25  lr 5e-05  1.5 s/step  12,346 tokens/s  matmul peak 41.0%"
        "  data wait 0.2%  left 1 d 1:00  device memory 71.2 GB"
    )
    assert "MFU 33.0%" in interval_line.describe(line | {"mfu": 0.33})
    # The first line after a start, whose step was the compilation; and numbers that are none.
    first = {name: value for name, value in line.items() if name not in ("step_time_s", "tokens_per_s")}
    first = interval_line.describe(first | {"loss": "nan"})
    assert "loss nan" in first and "tokens" not in first
    assert (interval_line.duration(185), interval_line.size(12), interval_line.size(1.3e6)) == (
        "0:03:05",
        "12 B",
        "1.3 MB",
    )
    kind, nbytes = interval_line.memory()
    assert kind == "host" and 1e7 < nbytes < 1e12
