"""The same run on 1, 2 and 4 processes: the same data, the same losses, and each continues what another number
began.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.training import runs

STEPS = 9  # 5 of the first stage
OPTIONS = (f"--config.stages.rows[1].steps={STEPS - 5}",)
TOLERANCE = 1e-5


@pytest.mark.slow
def test_one_two_and_four_processes_are_one_run(tmp_path: Path, measured: Callable[[str, float, float], None]) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    straight, handed_on = tmp_path / "straight", tmp_path / "handed_on"
    runs.train(straight, dataset, *OPTIONS)
    runs.train(handed_on, dataset, *OPTIONS, "--stop-after=3")
    runs.train(handed_on, dataset, *OPTIONS, "--stop-after=6", processes=2)
    # On four processes with another mesh as well: a checkpoint belongs to no mesh.
    runs.train(handed_on, dataset, *OPTIONS, "--config.mesh.data=4", "--config.mesh.fsdp=1", processes=4)

    expected, found = runs.records(straight), runs.records(handed_on)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    assert found[:3] == expected[:3]  # the same process count, so far: bit for bit
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        measured("loss, on 1, 2 and 4 processes in turn against 1", abs(ours["loss"] / theirs["loss"] - 1), TOLERANCE)
        for name, value in theirs.items():
            wanted = pytest.approx(value, rel=TOLERANCE, abs=1e-12) if isinstance(value, float) else value
            assert ours[name] == wanted, (theirs["step"], name)

    ours, theirs = runs.checkpoint(handed_on, STEPS), runs.checkpoint(straight, STEPS)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if name.startswith("progress/counters/stage_windows"):
            assert np.array_equal(ours[name], value)  # the very same windows were seen
        elif name.startswith("params/"):
            np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
