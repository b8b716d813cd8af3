"""The harness that stops runs at every moment, and a sample; `python -m tests.chaos.signals` does them all."""

import dataclasses
from pathlib import Path

import pytest

from tests.chaos import page, signals
from tests.chaos.signals import SENDERS, STEPS, Lane, Stop
from tests.training import runs

TERM, TO_ALL, TO_ONE = SENDERS
GOOD = Stop(moment="compiling", sender=TERM.name, processes=2, before=3, after=3, seconds=2.0, codes=[42, 42])


@pytest.mark.parametrize(
    ("changed", "sender", "said"),
    [
        ({}, TERM, []),
        ({"codes": [130, 130]}, TO_ALL, []),
        ({"codes": [42, 134]}, TERM, ["exit codes [42, 134], not [42, 42]"]),
        ({"codes": [42, 42]}, TO_ONE, ["exit codes [42, 42], not [130, 130]"]),
        ({"after": 4}, TERM, ["a checkpoint of step 4, there was one of 3"]),
        ({"seconds": 60.0}, TERM, ["60 s"]),
        ({"moment": "joining", "victim": 1, "codes": [42, 130]}, TO_ONE, []),
        ({"moment": "joining", "victim": 1, "codes": [130, 42]}, TO_ONE, ["exit codes [130, 42], not [42, 130]"]),
        ({"moment": "saving", "after": 7}, TERM, []),
        ({"moment": "saving"}, TERM, ["stopped after 3 and saved nothing"]),
        ({"moment": "saving", "after": STEPS, "codes": [0, 0]}, TERM, [f"the newest checkpoint is of step {STEPS}"]),
        ({"moment": "the last save", "after": STEPS, "codes": [0, 0]}, TERM, []),
        ({"moment": "the last save", "after": STEPS}, TERM, ["exit codes [42, 42], not [0, 0]"]),
    ],
)
def test_a_stop_that_went_wrong_is_found(changed: dict, sender: signals.Sender, said: list[str]) -> None:
    found = signals.wrong(dataclasses.replace(GOOD, **changed), sender)
    assert len(found) == len(said) and all(part in line for part, line in zip(said, found, strict=True))


def test_a_row_a_moment() -> None:
    stops = [GOOD, dataclasses.replace(GOOD, before=0, after=0, seconds=4.0), dataclasses.replace(GOOD, processes=1)]
    assert signals.table(stops).splitlines()[-1] == (
        "| compiling | 1 | 2 | 42 | 2.0 (2.0) | 3.0 (4.0) | nothing to save |"
    )


def test_a_table_is_written_between_its_markers_alone(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n")
    page.write("x", "new", file)
    assert file.read_text() == "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb\n"
    with pytest.raises(ValueError, match="has no <!-- y: begin -->"):
        page.write("y", "new", file)


@pytest.mark.slow
@pytest.mark.parametrize("sender", [TERM, TO_ONE], ids=lambda sender: sender.name)
def test_two_processes_stopped_at_some_moments(tmp_path: Path, sender: signals.Sender) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    reference = tmp_path / "reference"
    signals.undisturbed(reference, dataset, 2)
    moments = {"starting": ("joining", "restoring", "compiling"), "looping": ("saving",)}
    lane = Lane(tmp_path / "lane", dataset, sender, 2, reference, **moments)
    lane.execute()
    assert lane.wrong == [] and len(lane.stops) == 10
