"""`omnihuman export`: a real checkpoint to a folder that three lines of PyTorch load, whole or not at all."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from safetensors.torch import load_file

from omnihuman_jax import config as experiment
from omnihuman_jax.checkpoint.checkpoints import open_checkpoints
from omnihuman_jax.checkpoint.reader import load_weights
from omnihuman_jax.checkpoint.record import RunRecord
from omnihuman_jax.checkpoint.writer import CheckpointConfig
from omnihuman_jax.commands import export
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.interop import key_table as kt
from omnihuman_jax.interop import model_sources, weights_export
from omnihuman_jax.interop.checkpoint_leaves import CheckpointLeaves
from omnihuman_jax.interop.export_folder import MODULES
from omnihuman_jax.models import mmdit
from omnihuman_jax.serving.modeling_omnihuman import OmniHumanForVideo
from omnihuman_jax.training.train_state import Counters, TrainState
from tests.interop.cases import Window, odd_config, packed_batch, random_tensors, shape_for, torch_batch

CONFIG = experiment.ExperimentConfig(name="a run", model=odd_config(width=32, num_heads=2, rope_axes=(4, 6, 6)))
STEP = 7


def _params(seed: int) -> dict:
    """Random weights; some stacked kernels lie spread over eight devices, so that their chunks on disk are shards."""
    table = kt.key_table(CONFIG.model)
    params = jax.tree.map(jnp.asarray, table.from_torch(random_tensors(table, seed).__getitem__))
    mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    attention = params["dual_blocks"]["video"]["attention"]
    for name in ("q", "k", "v"):
        spread = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor", None))
        attention[name]["kernel"] = jax.device_put(attention[name]["kernel"], spread)
    return params


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run directory with two checkpoints, written by the trainer's own code."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    with open_checkpoints(directory / "checkpoints", CheckpointConfig()) as checkpoints:
        for step in (STEP - 4, STEP):
            state = TrainState(
                params=_params(step),
                opt_state={"count": jnp.zeros((), jnp.int32)},
                ema=_params(step + 100),
                step=jnp.asarray(step, jnp.int32),
                counters=Counters.zeros(),
            )
            checkpoints.save(state, RunRecord(config=experiment.to_json(CONFIG), fingerprint="f", step=step))
            checkpoints.wait()
    return directory


@pytest.mark.parametrize("part", ["params", "ema"])
def test_leaves_are_those_that_orbax_restores(run, part):
    leaves = CheckpointLeaves(run / "checkpoints" / str(STEP), part)
    weights = {"params": "raw", "ema": "ema"}[part]
    here = SingleDeviceSharding(jax.devices()[0])
    shapes, _ = mmdit.abstract_params(CONFIG.model)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
    restored = kt.flatten(load_weights(run / "checkpoints", shapes, weights=weights)[0])
    assert leaves.shapes == {path: leaf.shape for path, leaf in restored.items()}
    assert leaves.nbytes == sum(leaf.nbytes for leaf in restored.values())
    for path, leaf in restored.items():
        np.testing.assert_array_equal(leaves.read(path, None), np.asarray(leaf))
        if path[0].endswith("blocks"):
            for layer in [*range(leaf.shape[0]), 0]:
                np.testing.assert_array_equal(leaves.read(path, layer), np.asarray(leaf)[layer])


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_weights_are_the_checkpoints_bit_for_bit(run, tmp_path, weights, dtype):
    result = export.export_run(run, tmp_path / "out", weights=weights, dtype=dtype)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        ["model.safetensors", "config.json", "README.md", *MODULES]
    )
    expected = random_tensors(kt.key_table(CONFIG.model), STEP + (100 if weights == "ema" else 0))
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, array in expected.items():
        rounded = array if dtype == "fp32" else array.astype(ml_dtypes.bfloat16).astype(np.float32)
        assert written[name].dtype == (torch.float32 if dtype == "fp32" else torch.bfloat16)
        np.testing.assert_array_equal(written[name].float().numpy(), rounded, err_msg=name)
    assert result.parameters == sum(array.size for array in expected.values())
    assert result.tensors == len(expected) and result.step == STEP
    about = json.loads((tmp_path / "out" / "config.json").read_text())["export"]
    assert about == {"weights": weights, "dtype": dtype, "step": STEP, "run": "a run"}


SCRIPT = """
import sys
for name in ("jax", "jaxlib", "flax", "orbax", "omnihuman_jax"):
    sys.modules[name] = None  # importing any of these now fails
import torch
torch.set_grad_enabled(False)
batch = torch.load("in.pt")
tokens, t = batch["latents_BLC"], batch.pop("t")
{lines}
torch.save(velocity, "velocity.pt")
"""


def test_the_readmes_lines_give_the_jax_models_velocity_without_jax(run, tmp_path, measured):
    """A process in the exported folder, jax and this package blocked, runs the lines that README.md shows."""
    out = tmp_path / "export"
    export.export_run(run, out, weights="ema", max_shard_bytes=20_000)
    assert len(list(out.glob("model-*.safetensors"))) > 3
    shape = shape_for(CONFIG.model)
    every = ConditionSet.of(*Condition)
    layout = [
        [Window(latents=3, height=3, width=5, text_tokens=6, active=every, motion=True)],
        [
            Window(latents=4, height=2, width=3, text_tokens=7, active=ConditionSet.of(Condition.AUDIO)),
            Window(
                latents=3, height=3, width=4, text_tokens=9, active=ConditionSet.of(Condition.POSE, Condition.REFERENCE)
            ),
        ],
    ]
    batch = packed_batch(shape, layout)
    t_BG = np.array([[0.3, 0.9, 0.1, 0.5], [0.71, 0.05, 1.0, 0.4]], np.float32)
    torch.save(torch_batch(batch) | {"t": torch.from_numpy(t_BG)}, out / "in.pt")

    code = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert len(code) == 1 and len(code[0].splitlines()) == 3
    script = SCRIPT.format(lines=code[0])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", script], cwd=out, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    params = kt.key_table(CONFIG.model).from_torch(random_tensors(kt.key_table(CONFIG.model), STEP + 100).__getitem__)
    ours = np.asarray(jax.jit(lambda p: mmdit.apply(CONFIG.model, p, batch.latents_BLC, t_BG, batch))(params))
    theirs = torch.load(out / "velocity.pt").numpy()
    real = batch.segment_ids_BL > 0
    error = np.linalg.norm(theirs[real] - ours[real]) / np.linalg.norm(ours[real])
    measured("velocity, an exported checkpoint's three lines in a process without jax against JAX", error, 1e-5)


def test_what_from_pretrained_refuses(run, tmp_path):
    out = tmp_path / "export"
    export.export_run(run, out)
    assert OmniHumanForVideo.from_pretrained(out, dtype=torch.bfloat16).proj_out.weight.dtype == torch.bfloat16
    (out / "model.safetensors").rename(out / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"holds no model\*\.safetensors"):
        OmniHumanForVideo.from_pretrained(out)
    (out / "other.safetensors").rename(out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    config["model"]["num_dual_layers"] += 1
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"do not fit its config.*Missing key.*transformer_blocks\.2\.attn\.to_q\.weight"
    ):
        OmniHumanForVideo.from_pretrained(out)
    config["model"]["audio"]["heads"] = config["model"]["audio"].pop("num_heads")
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: missing \['num_heads'\], unknown \['heads'\]"):
        OmniHumanForVideo.from_pretrained(out)
    with pytest.raises(FileNotFoundError, match="omnihuman export"):
        OmniHumanForVideo.from_pretrained(tmp_path)


@pytest.mark.parametrize("form", ["torch", "diffusers"])
def test_files_of_two_exports_are_no_export(run, tmp_path, form):
    """The same model at another step has the same names, shapes and sizes: only what the files say of it tells."""
    for step in (STEP, STEP - 4):
        export.export_run(run, tmp_path / str(step), form=form, step=step, max_shard_bytes=60_000)
    out = tmp_path / str(STEP)
    assert model_sources.open_omnihuman(out).tensors
    shard = sorted(out.glob("*-00002-of-*.safetensors"))[0]
    shutil.copy(tmp_path / str(STEP - 4) / shard.name, shard)
    readers = [model_sources.open_omnihuman, *([OmniHumanForVideo.from_pretrained] if form == "torch" else [])]
    for read in readers:
        with pytest.raises(ValueError, match=re.escape(str(shard)) + ": of another export"):
            read(out)
    # All shards of the other, and not the file that describes them.
    for path in out.glob("*.safetensors"):
        shutil.copy(tmp_path / str(STEP - 4) / path.name, path)
    for read in readers:
        with pytest.raises(ValueError, match=r"of another export than config\.json"):
            read(out)


def test_a_path_may_hold_what_means_something_in_a_url(run, tmp_path):
    for name in ("a%20b", "run #3?"):
        moved = shutil.copytree(run, tmp_path / name / "run")
        export.export_run(moved, tmp_path / "out" / name)
    files = [(tmp_path / "out" / name / "model.safetensors").read_bytes() for name in ("a%20b", "run #3?")]
    assert files[0] == files[1]


def test_an_older_step_on_request(run, tmp_path):
    assert export.export_run(run, tmp_path / "out", step=STEP - 4).step == STEP - 4
    with pytest.raises(FileNotFoundError, match="has no step 99; it has 3, 7"):
        export.export_run(run, tmp_path / "other", step=99)
    assert not (tmp_path / "other").exists()


def test_an_earlier_export_is_replaced_and_nothing_else_is(run, tmp_path):
    out = tmp_path / "out"
    export.export_run(run, out, max_shard_bytes=20_000)
    export.export_run(run, out)
    assert len(list(out.glob("*.safetensors*"))) == 1  # no shard of the first is left
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"photos.*not empty"):
        export.export_run(run, tmp_path / "photos")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["config.json"]


def test_bad_input_is_one_line_with_the_cure(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoints; give the run folder"):
        export.export_run(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"dtype 'fp8': choose fp32 or bf16"):
        export.export_run(run, tmp_path / "out", dtype="fp8")
    with pytest.raises(ValueError, match=r"weights 'best': choose ema or raw"):
        export.export_run(run, tmp_path / "out", weights="best")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_middle_leaves_nothing(run, tmp_path):
    def fail(done: int, total: int) -> None:
        if done > total // 2:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        export.export_run(run, tmp_path / "out", progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_killed_in_the_middle_leaves_no_half_folder(run, tmp_path):
    code = textwrap.dedent(
        f"""
        import time, pathlib
        from omnihuman_jax.commands import export
        def pause(done, total):
            if done > total // 2:
                print("half", flush=True)
                time.sleep(60)
        export.export_run(pathlib.Path({str(run)!r}), pathlib.Path({str(tmp_path / "out")!r}), progress=pause)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    export.export_run(run, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_command(run, tmp_path, capsys):
    assert export.main([str(run), "--to", str(tmp_path / "out"), "--weights", "raw", "--dtype", "bf16"]) == 0
    printed = capsys.readouterr().out
    assert f"step {STEP}, raw weights" in printed and "of bf16" in printed
    assert weights_export.is_export(tmp_path / "out")
