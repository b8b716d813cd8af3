"""Every config file loads, validates, fits its mesh, and says what it said when someone last looked.

After a change on purpose: `python -m tests.test_configs` writes the golden files again; the diff is what a reviewer
    reads.
"""

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from omnihuman_jax import sharding
from omnihuman_jax.config import from_json, load_config, to_json
from omnihuman_jax.models import mmdit
from omnihuman_jax.models.flops import count_parameters
from omnihuman_jax.training.train_state import group_labels

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "golden" / "configs"
# Config -> devices that it is meant for.
CONFIGS = {"demo": 8, "theatre": 1, "ablations": 1, "omnihuman_1b": 8, "omnihuman_7b": 256, "omnihuman_13b": 256}


def describe(name: str) -> dict[str, Any]:
    """The resolved config, and the number of parameters of each group."""
    config = load_config(ROOT / "configs" / f"{name}.py")
    shapes, axes = mmdit.abstract_params(config.model)
    counts = dict.fromkeys(("base", "audio", "pose"), 0)
    for leaf, label in zip(jax.tree.leaves(shapes), jax.tree.leaves(group_labels(axes)), strict=True):
        counts[label] += leaf.size
    assert sum(counts.values()) == count_parameters(shapes)
    return {"parameters": counts, "config": to_json(config)}


def test_the_theatre_has_bodies_too() -> None:
    config = load_config(f"{ROOT / 'configs' / 'theatre.py'}:bodies")
    config.validate()
    assert config.model.pose is not None and config.model.pose.samples == 4
    with pytest.raises(ValueError, match="no theatre 'hands'; there are faces, large_faces, bodies, speaking"):
        load_config(f"{ROOT / 'configs' / 'theatre.py'}:hands")


@pytest.mark.parametrize(("name", "height", "width", "windows"), [("large_faces", 64, 64, 4), ("speaking", 128, 96, 2)])
def test_larger_pictures_have_the_model_of_faces(name: str, height: int, width: int, windows: int) -> None:
    """So that weights of one fit the other; sequences hold whole windows of 25 frames and their references."""
    larger, faces = (load_config(f"{ROOT / 'configs' / 'theatre.py'}{of}") for of in (f":{name}", ""))
    larger.validate()
    assert larger.model == faces.model and larger.data.dataset != faces.data.dataset
    plan, tokens = larger.data.plan, (7 + 1) * (height // 16) * (width // 16)
    assert (plan.windows, plan.latent_tokens, plan.latent_frames) == (windows, windows * tokens, windows * 7)


def test_the_ablations_of_bodies_train_their_theatre_s_model() -> None:
    """With the pose input that was kept there, not that of faces."""
    arm, bodies = (load_config(f"{ROOT / 'configs' / name}") for name in ("ablations.py:pose_50", "theatre.py:bodies"))
    assert (arm.model, arm.data.plan.latent_tokens) == (bodies.model, bodies.data.plan.latent_tokens)
    assert load_config(f"{ROOT / 'configs' / 'ablations.py'}:audio_50").model != bodies.model


def test_no_config_is_forgotten() -> None:
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__"} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_golden(name: str) -> None:
    assert describe(name) == json.loads((GOLDEN / f"{name}.json").read_text()), (
        "on purpose? python -m tests.test_configs"
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_json_round_trip(name: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}.py")
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(("name", "devices"), CONFIGS.items())
def test_every_parameter_and_batch_splits_over_the_mesh(name: str, devices: int) -> None:
    config = load_config(ROOT / "configs" / f"{name}.py")
    mesh: Any = jax.sharding.AbstractMesh(config.mesh.shape(devices), sharding.MESH_AXES)
    shapes, axes = mmdit.abstract_params(config.model)
    jax.tree.map(lambda leaf, axis: sharding.named_sharding(mesh, axis, leaf.shape), shapes, axes)
    plan = config.data.plan
    sharding.named_sharding(mesh, ("batch", "tokens"), (plan.sequences_per_step, plan.latent_tokens))
    assert plan.latent_tokens % 512 == 0 or name in ("demo", "theatre", "ablations")  # a block of the attention kernels


def test_sizes_are_what_the_names_say() -> None:
    billions = {name: sum(describe(name)["parameters"].values()) / 1e9 for name in CONFIGS}
    assert describe("omnihuman_13b")["parameters"]["base"] == pytest.approx(12.82e9, rel=0.01)  # HunyuanVideo's
    assert billions["demo"] < 0.05 and 0.9 < billions["omnihuman_1b"] < 1.4 and 6.5 < billions["omnihuman_7b"] < 8.5


def main() -> None:
    for name in CONFIGS:
        (GOLDEN / f"{name}.json").write_text(json.dumps(describe(name), indent=1) + "\n")


if __name__ == "__main__":
    main()
