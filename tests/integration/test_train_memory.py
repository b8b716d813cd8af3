"""Every way to save memory at once, through `omnihuman train`, and the resume of such a run."""

from pathlib import Path

import numpy as np
import pytest

from tests.training import runs

OPTIONS = (
    "--config.data.plan.sequences_per_step=8",
    "--config.step.micro_batches=2",
    "--config.step.offload=moments_ema",
    "--config.execution.remat=block_offload",
    "--config.optimizer.moments_dtype=bfloat16",
    "--config.mesh.data=1",
    "--config.mesh.fsdp=2",
    "--config.mesh.slices=2",
)


@pytest.mark.slow
def test_resume_is_exact_with_every_way_to_save_memory(tmp_path: Path) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    runs.train(straight, dataset, *OPTIONS, "--stop-after=7")
    runs.train(stopped, dataset, *OPTIONS, "--stop-after=3")
    output = runs.train(stopped, dataset, *OPTIONS, "--stop-after=7", f"--compilation-cache={tmp_path / 'cache'}")
    assert "first step done" in output
    assert runs.records(stopped) == runs.records(straight)
    ours, theirs = runs.checkpoint(stopped, 7), runs.checkpoint(straight, 7)
    assert ours.keys() == theirs.keys()
    moments = [name for name, value in theirs.items() if str(value.dtype) == "bfloat16"]
    assert any("/mu/" in name for name in moments) and any("/nu/" in name for name in moments)
    for name, value in theirs.items():
        assert np.array_equal(ours[name], value), name
