"""A run stays on the generation of its data that it began with, to the bit, and says when there is a newer one."""

import logging
from pathlib import Path

import numpy as np
import pytest

from omnihuman_jax.config import read_config, write_config
from omnihuman_jax.data.weighted_datasets import WeightedDataset
from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.training import resume
from tests.data import synthetic
from tests.training import runs, tiny_config


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_bits_after_an_append(tmp_path: Path) -> None:
    dataset, untouched = (runs.write_dataset(tmp_path / name) for name in ("dataset", "untouched"))
    runs.train(tmp_path / "whole", untouched)
    run = tmp_path / "run"
    assert "generation" not in runs.train(run, dataset, "--stop-after=7")
    assert read_config(run).data.dataset == f"{dataset}@1"
    synthetic.append(dataset, synthetic.catalog(16, seed=5, latent_frames=(1, 3)))
    (code,), (told,) = runs.outcomes([runs.start(run, f"{dataset}@2")])
    assert code == exit_codes.USER_ERROR and "was trained with another configuration or data set" in told, told
    output = runs.train(run, dataset)
    line = next(line for line in output.splitlines() if "stays on generation 1" in line)
    assert f"generation 2 is there, of 64 windows: take it with --config.data.dataset={dataset}@2" in line
    assert output.count("stays on generation") == 1
    left, right = (runs.checkpoint(tmp_path / name, 12) for name in ("run", "whole"))
    assert left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)
    assert runs.records(run) == runs.records(tmp_path / "whole")


@pytest.mark.slow
def test_a_new_run_takes_the_newest_and_an_old_one_where_it_is_told_to(tmp_path: Path) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    synthetic.append(dataset, synthetic.catalog(16, seed=5, latent_frames=(1, 3)))
    assert "stays on" not in runs.train(tmp_path / "new", dataset, "--stop-after=3")
    assert read_config(tmp_path / "new").data.dataset == f"{dataset}@2"
    runs.train(tmp_path / "old", f"{dataset}@1", "--stop-after=3")
    output = runs.train(tmp_path / "old", f"{dataset}@2", "--accept-changes", "--stop-after=5")
    assert "accepted change: data plan" in output and read_config(tmp_path / "old").data.dataset == f"{dataset}@2"
    assert "stays on" not in runs.train(tmp_path / "old", dataset, "--stop-after=6")


def test_which_generation_a_run_takes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folders = [synthetic.write_dataset(tmp_path / name, synthetic.catalog(8, seed=n)) for n, name in enumerate("abc")]
    for folder in folders[1:]:
        synthetic.append(folder, synthetic.catalog(4, seed=9))
    a, b, c = map(str, folders)
    config = tiny_config.get_config()

    def taken(*paths: str, stored: tuple[str, ...] = ()) -> list[str]:
        config.data.dataset, config.data.datasets = (paths[0], ()) if len(paths) == 1 else ("", ())
        if len(paths) > 1:
            config.data.datasets = tuple(WeightedDataset(path=path) for path in paths)
        found = resume.with_generations(config, stored)
        assert [row.path for row in config.data.rows] == list(paths), "the caller's config is its own"
        return [row.path for row in found.data.rows]

    assert taken(a) == [f"{a}@1"] and taken(b) == [f"{b}@2"]
    assert taken(b, stored=(f"{b}@1",)) == [f"{b}@1"]
    assert "take it with --config.data.dataset=" in caplog.text
    assert taken(b, stored=(f"{a}@2",)) == [f"{b}@2"]  # it has moved
    assert taken(b, stored=(b,)) == [f"{b}@1"]  # of before there were generations
    assert taken(f"{b}@2", stored=(f"{b}@1",)) == [f"{b}@2"]
    caplog.clear()
    assert taken(a, b, c, stored=(f"{a}@1", f"{b}@2", f"{c}@1")) == [f"{a}@1", f"{b}@2", f"{c}@1"]
    (line,) = caplog.messages
    assert line.startswith(f"{c}: the run stays on generation 1") and f"data.datasets[2].path={c}@2" in line
    assert taken(a, b, stored=(a,)) == [f"{a}@1", f"{b}@2"]  # of another number of data sets nothing is known
    run = tmp_path / "run"
    run.mkdir()
    config.data.dataset, config.data.datasets = f"{b}@1", ()
    write_config(config, run)
    config.data.dataset = f"{b}"
    assert resume.has_opened(run, config)
