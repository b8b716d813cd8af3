"""`omnihuman import`: diffusers' own files in, the same function out, bit-identical on the way back; whatever is wrong
is said.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from safetensors.torch import load_file, save_file

from omnihuman_jax import config as experiment
from omnihuman_jax.checkpoint.reader import CheckpointReader, load_weights
from omnihuman_jax.commands import export, import_weights
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.config import ExperimentConfig
from omnihuman_jax.interop import additions, file_hashes, hunyuan_video, model_sources, weights_export
from omnihuman_jax.interop import key_table as kt
from omnihuman_jax.interop.sharded_params import ShardedParams
from omnihuman_jax.models import mmdit
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.runtime import platform_flags
from tests.interop.cases import Window, packed_batch, random_tensors, shape_for
from tests.parity.test_mmdit_diffusers import FRAMES, config_of, inputs, oracle, ours, relative_error, theirs

BASE = config_of(guidance_embed=True)
AUDIO = AudioAdapterConfig(features=5, width=12, neighbours=1, num_heads=3, head_dim=4)
POSE = PoseGuiderConfig(keypoints=3, width=8, neighbours=1)
FULL = dataclasses.replace(BASE, audio=AUDIO, pose=POSE)
CONFIG = ExperimentConfig(name="extended", seed=3, model=FULL)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[HunyuanVideoTransformer3DModel, Path]:
    """A random model of diffusers' own class, and the pipeline's folder that holds it: sharded, as it saves itself."""
    folder = tmp_path_factory.mktemp("hub") / "HunyuanVideo"
    model = oracle(BASE)
    model.save_pretrained(folder / "transformer", max_shard_size="150KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    return model, folder


@pytest.fixture(scope="module")
def imported(original, tmp_path_factory) -> Path:
    """Its import, with additions, written by the command's own code over eight devices."""
    to = tmp_path_factory.mktemp("runs") / "imported"
    import_weights.import_weights(model_sources.open_hunyuan_video(original[1]), to, config=CONFIG)
    return to


def _params(run: Path, model: mmdit.MMDiTConfig) -> dict:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes, _ = mmdit.abstract_params(model)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
    return load_weights(run / "checkpoints", shapes)[0]


def test_the_imported_model_computes_what_the_original_does(original, imported, measured):
    params = {
        name: tree for name, tree in _params(imported, FULL).items() if name not in ("audio_adapter", "pose_guider")
    }
    for stack in ("dual_blocks", "single_blocks"):
        params[stack] = {name: tree for name, tree in params[stack].items() if name != "audio_attention"}
    x = inputs()
    expected = theirs(original[0], x, 1.0, FRAMES)
    found = ours(BASE, params, x, sequences=1, frames=FRAMES, guidance=1.0)
    measured(
        "velocity, imported checkpoint against the diffusers model that was read", relative_error(found, expected), 1e-5
    )


def test_untrained_additions_change_nothing(imported):
    """Audio and pose active, their first layers random, their last ones zero: the same bits as without them."""
    params = _params(imported, FULL)
    added = kt.key_table(FULL).only(("audio", "pose"))
    flat = kt.flatten(params)
    zero = {"/".join(path) for path in added.shapes if not np.asarray(flat[path]).any()}
    assert zero >= {f"{stack}/audio_attention/out/kernel" for stack in ("dual_blocks", "single_blocks")} | {
        "pose_guider/embed/kernel"
    }
    for path in added.shapes:  # and the rest is drawn, each layer anew
        if path[-1] == "kernel" and "/".join(path) not in zero:
            layers = np.asarray(flat[path])
            assert layers.std() > 0
            assert path[0] not in ("dual_blocks", "single_blocks") or not np.array_equal(layers[0], layers[1])
    everything = ConditionSet.of(*Condition)
    window = Window(latents=2, height=3, width=2, text_tokens=4, active=everything)
    batch = packed_batch(shape_for(FULL), [[window]])
    run = jax.jit(lambda params, batch: mmdit.apply(FULL, params, batch.latents_BLC, jnp.full((1, 4), 0.5), batch))
    with_all = np.asarray(run(params, batch))
    without = dataclasses.replace(batch, active_BG4=batch.active_BG4 & np.array([True, True, False, False]))
    assert batch.active_BG4.sum() == without.active_BG4.sum() + 2
    np.testing.assert_array_equal(with_all, np.asarray(run(params, without)))
    embed = params["pose_guider"]["embed"]
    embed["kernel"] = jax.random.normal(jax.random.key(0), embed["kernel"].shape)
    assert np.abs(np.asarray(run(params, batch)) - with_all).max() > 1e-3, (
        "the additions are never reached: nothing was tested"
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_round_trip_is_bit_identical_and_loads_in_diffusers(original, tmp_path, dtype, measured):
    folder, back = tmp_path / "original", tmp_path / "back"
    model = HunyuanVideoTransformer3DModel.from_pretrained(original[1] / "transformer")
    model.to(torch.float32 if dtype == "fp32" else torch.bfloat16).save_pretrained(folder)
    import_weights.main(["hunyuan-video", "--from", str(folder), "--to", str(tmp_path / "run")])
    assert export.main([str(tmp_path / "run"), "--to", str(back), "--format", "diffusers", "--dtype", dtype]) == 0
    before, after = (load_file(path / "diffusion_pytorch_model.safetensors") for path in (folder, back))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), name
    stated, written = (json.loads((path / "config.json").read_text()) for path in (folder, back))
    assert {k: v for k, v in written.items() if k[0] != "_"} == {k: v for k, v in stated.items() if k[0] != "_"}
    if dtype == "fp32":
        again = HunyuanVideoTransformer3DModel.from_pretrained(back)
        x = inputs()
        error = relative_error(theirs(again, x, 1.0, FRAMES), theirs(model, x, 1.0, FRAMES))
        measured("velocity, diffusers' class on a folder that we exported, against the original", error, 1e-5)


def stored_tensors(path: Path) -> tuple[dict, bytes]:
    """Names, types, shapes and bytes of a safetensors file; which export it is of, its metadata says."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert len(header.pop("__metadata__")["export"]) == 32
    return header, data[8 + length :]


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("torch", "fp32"),
        ("diffusers", "bf16"),
        pytest.param("torch", "bf16", marks=pytest.mark.slow),
        pytest.param("diffusers", "fp32", marks=pytest.mark.slow),
    ],
)
def test_additions_make_the_round_trip_too(imported, tmp_path, form, dtype):
    first, second = tmp_path / "first", tmp_path / "second"
    export.export_run(imported, first, form=form, dtype=dtype, max_shard_bytes=100_000)
    import_weights.import_weights(model_sources.open_omnihuman(first), tmp_path / "run", config=CONFIG)
    export.export_run(tmp_path / "run" / "checkpoints" / "0", second, form=form, dtype=dtype, max_shard_bytes=100_000)
    files = sorted(path.name for path in first.glob("*.safetensors"))
    assert len(files) > 2 and files == sorted(path.name for path in second.glob("*.safetensors"))
    for name in files:
        assert stored_tensors(first / name) == stored_tensors(second / name), name
    if dtype == "fp32":
        before, after = _params(imported, FULL), _params(tmp_path / "run", FULL)
        jax.tree.map(np.testing.assert_array_equal, before, after)


def test_files_are_recorded_and_checked(original, imported, tmp_path):
    folder = original[1] / "transformer"
    with CheckpointReader(imported / "checkpoints") as checkpoints:
        origin = checkpoints.record(0).origin
    names = {path.name for path in folder.iterdir()}
    assert origin["files"] == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    assert origin["kind"] == "hunyuan-video" and json.loads((imported / "origin.json").read_text()) == origin
    listed = tmp_path / "SHA256SUMS"
    lines = [f"{digest}  {name}" for name, digest in origin["files"].items()]
    listed.write_text("\n".join(lines))
    assert file_hashes.read_hashes(listed) == origin["files"]
    wrong = {**origin["files"], "config.json": "0" * 64, "other.safetensors": "1" * 64}
    source = model_sources.open_hunyuan_video(folder)
    with pytest.raises(
        ValueError, match=r"other.safetensors is listed but not there; config.json has sha256 .*, expected 0000"
    ):
        import_weights.import_weights(source, tmp_path / "run", expected=wrong)
    (tmp_path / "more").mkdir()
    shutil.copytree(folder, tmp_path / "more" / "transformer")
    source = model_sources.open_hunyuan_video(tmp_path / "more" / "transformer")
    (source.folder / "notes.json").write_text("{}")
    unread = {**origin["files"], "notes.json": "2" * 64}
    with pytest.raises(ValueError, match=r"notes\.json has sha256 44136fa.*, expected 2222"):
        import_weights.import_weights(source, tmp_path / "run", expected=unread)
    assert not (tmp_path / "run").exists()
    unread["notes.json"] = hashlib.sha256(b"{}").hexdigest()
    import_weights.import_weights(source, tmp_path / "run", config=CONFIG, expected=unread)
    assert json.loads((tmp_path / "run" / "origin.json").read_text())["files"] == origin["files"]
    listed.write_text("abc config.json")
    with pytest.raises(ValueError, match="line 1"):
        file_hashes.read_hashes(listed)


def test_everything_that_does_not_fit_is_one_error(original, tmp_path):
    folder = tmp_path / "transformer"
    model = HunyuanVideoTransformer3DModel.from_pretrained(original[1] / "transformer")
    model.save_pretrained(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["proj_out.bias"]
    tensors |= {"lora.weight": torch.zeros(3), "norm_out.linear.bias": torch.zeros(61)}
    save_file(tensors, file)
    with pytest.raises(kt.KeyTableError) as error:
        import_weights.import_weights(model_sources.open_hunyuan_video(folder), tmp_path / "run")
    for line in (
        "missing proj_out.bias [12]",
        "unknown lora.weight [3]",
        "norm_out.linear.bias is [61] instead of [88]",
    ):
        assert line in str(error.value)
    assert not (tmp_path / "run").exists()
    tensors = {
        name: tensor.to(torch.int32) if name == "proj_out.weight" else tensor
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"proj_out.weight is int32"):
        import_weights.import_weights(model_sources.open_hunyuan_video(folder), tmp_path / "run")
    file.rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"diffusion_pytorch_model.bin are pickles, .* convert once with .*from_pretrained"
    ):
        model_sources.open_hunyuan_video(folder)


def test_large_buffers_are_mapped_by_import_and_export(original, imported, tmp_path, monkeypatch):
    """Else freed slices stay with the process: a model streams through in many times the memory."""
    calls: list[str] = []
    monkeypatch.setattr(platform_flags, "map_large_buffers", lambda: calls.append("mapped"))
    monkeypatch.setattr(import_weights, "import_mesh", lambda model: calls.append("reads") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        import_weights.import_weights(model_sources.open_hunyuan_video(original[1]), tmp_path / "run", config=CONFIG)
    monkeypatch.setattr(export, "CheckpointLeaves", lambda *_: calls.append("reads") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.export_run(imported, tmp_path / "out")
    assert calls == ["mapped", "reads"] * 2


def test_an_export_of_an_import_says_which_weights_it_has(imported, tmp_path, capsys):
    """No average has been taken yet: what is asked for by default is not what is there. And no dataset: no pipeline."""
    out = tmp_path / "out"
    assert export.main([str(imported), "--to", str(out), "--weights", "ema"]) == 0
    assert "raw weights" in (printed := capsys.readouterr().out) and "ema" not in printed
    assert json.loads((out / "config.json").read_text())["export"]["weights"] == "raw"
    text = (out / "README.md").read_text()
    assert "raw weights" in text and "does not run from this export" in text and "--image" not in text


def test_configs_that_do_not_fit_are_refused(original, imported, tmp_path):
    folder = tmp_path / "transformer"
    shutil.copytree(original[1] / "transformer", folder)
    source = model_sources.open_hunyuan_video(folder)
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(FULL, num_dual_layers=7, rope_theta=10.0))
    with pytest.raises(
        ValueError, match=r"model.num_dual_layers is 7 instead of 2; model.rope_theta is 10.0 instead of 256"
    ):
        import_weights.import_weights(source, tmp_path / "run", config=config)
    with pytest.raises(FileExistsError, match=r"holds checkpoints already"):
        import_weights.import_weights(source, imported, config=CONFIG)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**stated, "patch_size": 4, "image_condition_type": "latent_concat", "depth": 3})
    )
    with pytest.raises(ValueError, match=r"depth is not a field.*patch_size is 4, only 2.*'latent_concat', only None"):
        model_sources.open_hunyuan_video(folder)
    (folder / "config.json").write_text(json.dumps({**stated, "_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(ValueError, match="describes a FluxTransformer2DModel"):
        model_sources.open_hunyuan_video(folder)
    for name, value in {
        "num_layers": "2", "num_single_layers": None, "mlp_ratio": "4", "rope_axes_dim": 3, "attention_head_dim": "x",
        "guidance_embeds": 1, "out_channels": "16",
    }.items():  # fmt: skip
        (folder / "config.json").write_text(json.dumps({**stated, name: value}))
        with pytest.raises(ValueError, match=rf"config\.json: .*{name} is {value!r}, not .*: fetch the file again"):
            model_sources.open_hunyuan_video(folder)
    exported = weights_export.module_config(FULL, {})
    for name, value in {
        "num_dual_layers": "2",
        "num_refiner_layers": None,
        "rope_axes": [1],
        "mlp_ratio": "4",
        "audio": 5,
    }.items():
        (folder / "config.json").write_text(json.dumps({**exported, "model": {**exported["model"], name: value}}))
        with pytest.raises(
            ValueError,
            match=rf"config\.json: (model\.{name} is .*, not|its part 'model' cannot).*; fetch the file again",
        ):
            model_sources.open_omnihuman(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no config.json"):
        model_sources.open_hunyuan_video(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"pooled_width is 0.*--format torch"):
        hunyuan_video.diffusers_config(dataclasses.replace(BASE, pooled_width=0))


def test_full_size_config_is_the_public_one():
    """The public checkpoint's config.json is diffusers' defaults; the 13 B config has exactly these base sizes."""
    with torch.device("meta"):
        reference = HunyuanVideoTransformer3DModel()
    model = experiment.load_config("configs/omnihuman_13b.py").model
    stated = json.loads(json.dumps(dict(reference.config)))
    written = hunyuan_video.diffusers_config(model)
    assert {k: v for k, v in written.items() if k[0] != "_"} == {k: v for k, v in stated.items() if k[0] != "_"}
    base = kt.key_table(model).only(("base",))
    base.check_torch(
        {name: tuple(tensor.shape) for name, tensor in reference.state_dict().items()}, "diffusers' HunyuanVideo"
    )
    parameters = sum(int(np.prod(entry.shape)) for entry in base.entries)
    assert parameters == sum(p.numel() for p in reference.parameters())
    assert round(parameters / 1e9, 2) == 12.82


@pytest.mark.slow
@pytest.mark.parametrize("block_bytes", [1, 3000])
def test_blocks_of_any_size_fill_sharded_leaves_exactly(block_bytes):
    table = kt.key_table(BASE)
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in random_tensors(table).items()}
    mesh = additions.import_mesh(BASE)
    assert mesh.shape["fsdp"] == 4 and mesh.shape["data"] == 2  # 44 does not split eight ways
    leaves = ShardedParams(additions.abstract_leaves(BASE, mesh), block_bytes)
    for part, values in table.parts_from_torch(tensors.__getitem__):
        leaves.write(part, values)
    params = leaves.params()
    spread = params["dual_blocks"]["video"]["attention"]["q"]["kernel"]
    assert spread.addressable_shards[0].data.shape[1] == 11
    jax.tree.map(np.testing.assert_array_equal, params, table.from_torch(tensors.__getitem__))
    with pytest.raises(AssertionError, match="slices were written"):
        leaves.write(part, values)
        leaves.params()
