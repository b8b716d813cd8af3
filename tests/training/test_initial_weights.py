"""A run that starts from weights of `omnihuman import`: they are its step 0, and its checkpoints say where they come
from.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from omnihuman_jax import assembly
from omnihuman_jax.checkpoint.reader import CheckpointReader
from omnihuman_jax.checkpoint.record import CheckpointError, RunRecord
from omnihuman_jax.commands import import_weights, replay
from omnihuman_jax.config import ExperimentConfig, to_json
from omnihuman_jax.models import mmdit
from omnihuman_jax.runtime.incidents import append_line
from omnihuman_jax.sharding import MeshConfig
from omnihuman_jax.training import resume, run_guard
from tests.training import runs, tiny_config

ORIGIN = {"kind": "hunyuan-video", "folder": "transformer", "files": {"config.json": "0" * 64}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return runs.write_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> tuple[Path, dict]:
    """A checkpoint as `omnihuman import` writes it, and its parameters."""
    config = tiny_config.get_config()
    params = jax.jit(lambda: mmdit.init_params(config.model, jax.random.key(99)))()
    folder = tmp_path_factory.mktemp("weights") / "imported"
    import_weights.save(params, config, ORIGIN, folder)
    return folder, params


def _config(dataset: Path, weights: Path) -> ExperimentConfig:
    config = tiny_config.get_config()
    config.mesh = MeshConfig(data=2, fsdp=2, context=2)
    config.data.dataset, config.initial_weights = str(dataset), str(weights)
    return config


def test_step_0_is_the_imported_weights(dataset, weights):
    folder, params = weights
    config = _config(dataset, folder)
    parts = assembly.assemble(config)
    with jax.set_mesh(parts.mesh):
        state, record = resume.first_state(parts, RunRecord(config=to_json(config), fingerprint="f", step=0))
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    jax.tree.map(np.testing.assert_array_equal, state.ema, params)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.opt_state))
    assert int(state.step) == 0
    assert record.origin == {**ORIGIN, "initial_weights": {"run": "tiny", "step": 0}}
    config.model = dataclasses.replace(config.model, width=48, rope_axes=(8, 8, 8))
    with pytest.raises(CheckpointError, match=r"initial_weights: .*does not fit this model: .*omnihuman import"):
        resume.first_state(assembly.assemble(config), record)


def test_replay_without_a_checkpoint_takes_the_weights_that_the_run_began_with(dataset, weights, tmp_path, monkeypatch):
    folder, params = weights
    monkeypatch.setattr(replay, "_windows", lambda parts, params, step: iter([params]))  # compiles for half a minute
    checkpoint, found = replay.replay(_config(dataset, folder), tmp_path, 7)
    assert checkpoint == 0
    jax.tree.map(np.testing.assert_array_equal, next(found), params)
    assert replay.steps_between(tmp_path, 0, 7) == 6 and replay.steps_between(tmp_path, 6, 7) == 0
    for line in ({"first": 2, "to": 5}, {"first": 2, "to": 5, "checkpoint": 1}):
        append_line(tmp_path / run_guard.ROLLBACKS, line)
    # Step 4 was trained before the rollback, after three others; step 7 after it: after steps 1 and 6.
    assert replay.steps_between(tmp_path, 0, 4) == 3 and replay.steps_between(tmp_path, 0, 7) == 2


def test_imported_weights_are_no_run(dataset, weights):
    folder, _ = weights
    record = RunRecord(config=to_json(_config(dataset, folder)), fingerprint="f", step=0)
    refused = pytest.raises(ValueError, match=r"not a run; train in another --run with --config.initial_weights=")
    with CheckpointReader(folder / "checkpoints") as checkpoints, refused:
        resume.continue_record(folder, checkpoints.record(0), record, accept_changes=True)


@pytest.mark.slow
def test_training_starts_from_them_and_remembers_it(dataset, weights, tmp_path):
    folder, params = weights
    option = f"--config.initial_weights={folder}"
    runs.train(tmp_path / "run", dataset, option, "--stop-after=1", "--config.optimizer.learning_rate=1e-9")
    runs.train(tmp_path / "run", dataset, option, "--stop-after=2", "--config.optimizer.learning_rate=1e-9")
    with CheckpointReader(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.record(2).origin == {**ORIGIN, "initial_weights": {"run": "tiny", "step": 0}}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["initial_weights"] == str(folder)
    stored = runs.checkpoint(tmp_path / "run", 1)
    kernel = np.asarray(params["dual_blocks"]["video"]["attention"]["q"]["kernel"])
    np.testing.assert_allclose(stored["params/dual_blocks/video/attention/q/kernel"], kernel, atol=1e-7)
