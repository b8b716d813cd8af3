"""A team's whole way: a model of diffusers' own class is imported, sampled as it is, trained, and sampled again."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from omnihuman_jax import cli, config
from omnihuman_jax.commands import train
from omnihuman_jax.data.plan import PlanConfig
from omnihuman_jax.sampling import trained_run
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.sharding import MeshConfig
from omnihuman_jax.stages import Stage, StageSchedule
from omnihuman_jax.telemetry.metrics import LoggingConfig
from tests.sampling import tiny_run


def run_config(tiny: tiny_run.TinyRun, weights: Path) -> config.ExperimentConfig:
    """Two steps of everything, from imported weights."""
    return dataclasses.replace(
        tiny.config,
        data=config.DataConfig(
            dataset=str(tiny.dataset),
            plan=PlanConfig(
                sequences_per_step=8, latent_tokens=64, text_tokens=32, windows=2, margin=2, chunk_steps=2, block=40
            ),
        ),
        stages=StageSchedule(rows=(Stage(name="all", steps=2, text=0.5, reference=0.5, audio=0.5, pose=0.5),)),
        mesh=MeshConfig(data=2, fsdp=4),
        initial_weights=str(weights),
        logging=LoggingConfig(interval=1, tensorboard=False),
    )


def save_original(folder: Path, sizes: config.ExperimentConfig) -> None:
    """A random model of those sizes, in diffusers' layout."""
    model = sizes.model
    torch.manual_seed(3)
    HunyuanVideoTransformer3DModel(
        in_channels=model.latent_channels,
        out_channels=model.latent_channels,
        num_attention_heads=model.num_heads,
        attention_head_dim=model.head_dim,
        num_layers=model.num_dual_layers,
        num_single_layers=model.num_single_layers,
        num_refiner_layers=model.num_refiner_layers,
        mlp_ratio=model.mlp_ratio,
        guidance_embeds=model.guidance_embed,
        text_embed_dim=model.text_width,
        pooled_projection_dim=model.pooled_width,
        rope_theta=model.rope_theta,
        rope_axes_dim=model.rope_axes,
    ).save_pretrained(folder)


@pytest.mark.slow
def test_import_sample_train_sample(tiny, talking, tmp_path, capsys):
    save_original(tmp_path / "transformer", tiny.config)
    imported, file = tmp_path / "imported", tmp_path / "sizes.py"
    sizes = json.dumps(config.to_json(tiny.config))
    file.write_text(
        "import json\nfrom omnihuman_jax import config\ndef get_config():\n    return"
        f" config.from_json(json.loads({sizes!r}))\n"
    )
    command = [
        "import",
        "hunyuan-video",
        "--from",
        str(tmp_path / "transformer"),
        "--to",
        str(imported),
        "--config",
        str(file),
    ]
    assert cli.main(command) == 0

    def generate(run: Path, *options: str) -> int:
        driven = ["--image", str(talking), "--audio", str(talking), "--text", "a man speaks", "--seconds", "0.36"]
        return cli.main(
            ["generate", "--run", str(run), "--out", str(run / "out.mp4"), *driven, "--steps", "2", *options]
        )

    assert generate(imported) != 0
    assert "--dataset" in capsys.readouterr().err, "an import does not know what data it will be trained on"
    assert generate(imported, "--dataset", str(tiny.dataset)) == 0
    assert media_omnihuman.read_video(imported / "out.mp4").shape[0] == 9

    train.train(run_config(tiny, imported), tmp_path / "run", progress=False)
    assert generate(tmp_path / "run") == 0
    before = trained_run.open_run(imported, dataset=tiny.dataset).params
    after = trained_run.open_run(tmp_path / "run", weights="raw").params
    assert trained_run.open_run(tmp_path / "run").step == 2
    moved = np.abs(np.asarray(after["proj_out"]["kernel"]) - np.asarray(before["proj_out"]["kernel"]))
    assert 0 < moved.max() < 0.01, "trained from the imported weights, not from others"
