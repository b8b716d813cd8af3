"""A run on two data sets with weights, in real processes: metrics by data set, an exact resume, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import quick_xla
from tests.data import synthetic
from tests.training import runs

CONFIG = """
from omnihuman_jax.data.weighted_datasets import WeightedDataset
from tests.training import tiny_config


def get_config():
    config = tiny_config.get_config()
    config.data.datasets = (
        WeightedDataset(path={talks!r}, weight=1.0),
        WeightedDataset(path={songs!r}, weight=3.0),
    )
    return config
"""


def train(config: Path, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "omnihuman_jax.cli", "--simulate-devices", str(runs.DEVICES), "train"]
    command += ["--config", str(config), "--run", str(run), "--no-progress", *options]
    environment = os.environ | {"XLA_FLAGS": quick_xla.FLAGS}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
def test_a_run_on_two_data_sets_resumes_to_the_bit_and_tells_the_shares(tmp_path):
    folders = {
        name: str(synthetic.write_dataset(tmp_path / name, synthetic.catalog(48, seed=n, latent_frames=(1, 3))))
        for n, name in enumerate(("talks", "songs"))
    }
    config = tmp_path / "two.py"
    config.write_text(CONFIG.format(**folders))
    whole = train(config, tmp_path / "whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    part = train(config, tmp_path / "run", "--stop-after", "7")
    assert part.returncode == 0, part.stdout + part.stderr
    lines = runs.records(tmp_path / "run")
    assert all(line["dataset_target/talks"] == pytest.approx(0.25) for line in lines)
    shares = [line["dataset/songs"] for line in lines]
    assert 0.6 < np.mean(shares) < 0.9
    other = train(config, tmp_path / "run", "--config.data.datasets[1].weight=1")
    told = other.stdout + other.stderr
    assert other.returncode != 0 and "data.datasets[1].weight: 3.0 -> 1.0" in told
    # The data sets may have moved.
    (tmp_path / "songs").rename(tmp_path / "moved")
    name = "--config.data.datasets[1].name=songs"
    again = train(
        config, tmp_path / "run", f"--config.data.datasets[1].path={tmp_path / 'moved'}", "--accept-changes", name
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert runs.records(tmp_path / "run") == runs.records(tmp_path / "whole")
    left, right = (runs.checkpoint(tmp_path / run, 12) for run in ("run", "whole"))
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)
