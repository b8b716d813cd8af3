"""Goodput adds up: new steps, repeated ones, waits and gaps of hand-written event logs; what is served to
Prometheus.
"""

import json
import urllib.request
import xml.etree.ElementTree
from pathlib import Path

import pytest

from omnihuman_jax.commands import goodput as command
from omnihuman_jax.telemetry.events import EventLog
from omnihuman_jax.telemetry.goodput import KINDS, picture, read_goodput
from omnihuman_jax.telemetry.metrics import LoggingConfig
from omnihuman_jax.telemetry.prometheus import Exporter


def start(t: float, processes: int = 2) -> dict:
    return {"event": "start", "t": t, "process": 0, "processes": processes, "devices": 8, "restart": 0}


def span(kind: str, t: float, s: float) -> dict:
    return {"event": "span", "t": t, "s": s, "kind": kind}


def steps(first: int, last: int, t: float, s: float, wait_s: float = 0.0) -> dict:
    return {"event": "steps", "t": t, "s": s, "wait_s": wait_s, "first": first, "last": last}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten steps and a kill after a checkpoint at step 6; a second attempt repeats four steps and finishes."""
    first = [
        start(1000.0), span("restore", 1012.0, 2.0), span("compile", 1020.0, 8.0),
        steps(1, 6, 1032.0, 10.0, wait_s=2.0),
        span("save", 1033.0, 1.0), {"event": "hosts", "t": 1035.0, "step": 8, "host_s": {"0": 0.1, "1": 0.3, "2": 0.1}},
        steps(7, 10, 1037.0, 4.0),
    ]  # fmt: skip
    second = [
        start(1050.0), span("restore", 1060.0, 5.0), span("compile", 1061.0, 1.0), steps(7, 13, 1068.0, 7.0),
        span("samples", 1068.5, 0.5), steps(14, 14, 1069.0, 0.5),
        {"event": "saved", "t": 1069.0, "s": 3.0, "step": 12, "bytes": 99}, {"event": "end", "t": 1070.0, "code": 0},
    ]  # fmt: skip
    (tmp_path / "events").mkdir()
    for number, events in enumerate((first, second)):
        text = "".join(json.dumps(event) + "\n" for event in events)
        (tmp_path / "events" / f"{number:04d}-0.jsonl").write_text(text + ('{"event": "st' if number == 0 else ""))
    return tmp_path


def test_every_second_has_one_kind(run: Path) -> None:
    goodput = read_goodput(run)
    assert goodput.wall == 70.0
    assert goodput.seconds == {
        "productive": 10.0 + 4.0 + 3.5, "repeated": 4.0, "compile": 9.0, "restore": 7.0, "save": 1.0, "samples": 0.5,
        "data_wait": 2.0,
        "start_up": 10.0 + 5.0 + 1.0, "down": 13.0,
    }  # fmt: skip
    assert goodput.share == pytest.approx(17.5 / 70)
    first, second = goodput.attempts
    assert (first.code, first.first, first.last, first.new) == (None, 1, 10, 10)
    assert (second.code, second.first, second.last, second.new) == (0, 7, 14, 4)
    assert goodput.host_ratio == ("1", pytest.approx(3.0))


def test_the_command_prints_a_table_and_draws(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(run), "--json", str(run / "goodput.json")]) == 0
    printed = capsys.readouterr().out
    assert (
        "goodput 25.0% of 70.0 s in 2 attempts" in printed
        and "killed" in printed
        and "process 1 takes 3.0 times" in printed
    )
    stored = json.loads((run / "goodput.json").read_text())
    assert stored["seconds"]["repeated"] == 4.0 and len(stored["attempts"]) == 2
    drawn = xml.etree.ElementTree.fromstring((run / "goodput.svg").read_text())
    bars = [element for element in drawn.iter() if element.tag.endswith("title")]
    assert {bar.text.split(",")[0] for bar in bars} == {kind.replace("_", " ") for kind in KINDS}
    assert picture(read_goodput(run)) == (run / "goodput.svg").read_text()
    assert command.main(["--run", str(run), "--out", str(run / "again.svg")]) == 0
    assert (run / "again.svg").read_text() == (run / "goodput.svg").read_text()


def test_a_run_without_events_is_an_error_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no event log; give the run directory"):
        read_goodput(tmp_path)


def test_the_log_tells_waits_from_steps(tmp_path: Path) -> None:
    for attempt in range(2):
        with EventLog(tmp_path) as events:
            with events.span("compile"):
                pass
            for done, _ in enumerate(events.waiting(range(3)), 1):
                events.dispatched()
                events.step(done)
            hosts = events.compare_hosts(3)
        assert events.attempt == attempt and set(hosts) == {"0"}
        assert events.seconds.keys() == {"compile", "steps", "data_wait"}
    goodput = read_goodput(tmp_path)
    assert [(attempt.first, attempt.last, attempt.new, attempt.code) for attempt in goodput.attempts] == [
        (1, 3, 3, 0),
        (1, 3, 0, 0),
    ]
    assert goodput.seconds["repeated"] > 0 and sum(goodput.seconds.values()) == pytest.approx(goodput.wall)


def test_prometheus_reads_what_the_run_does() -> None:
    first, second = (Exporter(LoggingConfig(prometheus_port=29490), run) for run in ("a", "b"))
    try:
        assert second.port == first.port + 1, "two processes of one machine"
        first.update(7, {"loss": 0.5, "stage": "audio"}, {"compile": 3.0}, {"0": 0.25})
        text = urllib.request.urlopen(f"http://127.0.0.1:{first.port}/metrics", timeout=10).read().decode()
    finally:
        first.close()
        second.close()
    for line in (
        'omnihuman_step{process="0",run="a"} 7.0',
        'omnihuman_metric{name="loss",process="0",run="a"} 0.5',
        'omnihuman_seconds{kind="compile",process="0",run="a"} 3.0',
        'omnihuman_host_step_seconds{host="0",process="0",run="a"} 0.25',
    ):
        assert line in text.splitlines()
    assert "audio" not in text


def test_no_port_no_server() -> None:
    exporter = Exporter(LoggingConfig(), "a")
    exporter.update(1, None, {}, {})
    exporter.close()
    assert exporter.port == 0
