"""Overrides reach every field, mistakes are told in one line with the cure, and a resume knows which fields matter."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from omnihuman_jax.attention.dispatch import AttentionStrategy
from omnihuman_jax.config import (
    MOVED,
    ExperimentConfig,
    changed_fields,
    data_rows,
    from_json,
    load_config,
    packed_shape,
    read_config,
    to_json,
)
from omnihuman_jax.data.records import DatasetSpec
from omnihuman_jax.models.execution import ExecutionConfig

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.py"
BEFORE_EXECUTION = Path(__file__).parent / "golden" / "run_folders" / "config_before_execution.json"


def spec(**changes: object) -> DatasetSpec:
    """What the demo's encoders give."""
    values = {
        "codec": "dct", "latent_channels": 48, "text_encoder": "t", "text_width": 384, "pooled_width": 384,
        "speech_encoder": "s",
        "speech_layers": (0, 2, 4), "speech_width": 384, "keypoint_names": tuple(map(str, range(75))), "margin": 4,
    }  # fmt: skip
    values |= changes
    empty = {"empty_text_SE": np.zeros((1, values["text_width"])), "empty_pooled_E": np.zeros(values["pooled_width"])}
    return DatasetSpec(**values, **empty)


@pytest.mark.parametrize(
    ("flag", "field"),
    [
        ("--config.optimizer.learning_rate=nan", "optimizer.learning_rate"),
        ("--config.sampling.guidance.scale=inf", "sampling.guidance.scale"),
        ("--config.stages.rows[1].learning_rate_scale=inf", r"stages.rows\[1\].learning_rate_scale"),
        ("--config.data.retry_delay_s=nan", "data.retry_delay_s"),
        ("--config.watchdog.step_s=inf", "watchdog.step_s"),
        ("--config.flow.shift_max=-inf", "flow.shift_max"),
    ],
)
def test_a_number_that_is_none_is_refused_wherever_it_stands(flag: str, field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be a finite number, not -?(nan|inf)"):
        load_config(DEMO, [flag])


def test_overrides_of_every_kind() -> None:
    config = load_config(
        DEMO,
        [
            "--config.model.width=512",
            "--config.model.rope_axes=(32,48,48)",
            "--config.model.audio.neighbours=2",
            "--config.execution.attention.block_q=128",
            "--config.stages.rows[1].steps=7",
            "--config.stages.rows[1].text=0.85",
            "--config.optimizer.decay=constant",
            "--noconfig.logging.tensorboard",
            "--config.data.dataset=/data/x",
        ],
    )
    assert (config.model.width, config.model.head_dim, config.model.rope_axes) == (512, 128, (32, 48, 48))
    assert config.model.audio is not None and config.model.audio.tokens == 8
    assert (config.execution.remat, config.execution.attention.block_q) == ("attention", 128)
    assert (config.stages.rows[1].steps, config.stages.rows[1].text) == (7, 0.85)
    assert config.optimizer.decay == "constant" and not config.logging.tensorboard
    assert [(row.path, row.weight) for row in data_rows(config)] == [("/data/x", 1.0)]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.model.wdith=3", "did you mean 'model.width'"),
        ("--config.data.plan.window=3", "did you mean 'data.plan.windows'"),
        ("--config.model.width=wide", "--config.model.width=wide"),
        ("--config.model.width=250", "width 250 is not a multiple of|rope_axes"),
        ("--config.stages.rows[0].text=1.2", r"ratio text = 1.2 outside \[0, 1\]"),
        ("--config.stages.rows[0].steps=0", "steps = 0"),
        ("--config.stages.rows[9].steps=1", r"rows\[9\].steps=1: tuple index out of range"),
        ("--config.optimizer.learning_rate=-1", "optimizer.learning_rate must be finite and > 0, not -1"),
        ("--config.compute_dtype=float8", "auto, float32, bfloat16"),
        ("--config.ema.decay=1", "ema.decay"),
        ("--config.checkpoint.interval=0", "interval 0"),
        ("--config.sampling.num_steps=0", "sampling.num_steps"),
        ("--config.execution.remat=full", "execution.remat 'full' is unknown; it is one of 'none', 'block'"),
        ("--config.execution.attention.blok_q=1", "did you mean 'execution.attention.block_q'"),
        ("--config.seed=-1", "seed must be >= 0"),
        ("--learning_rate=1", "unknown argument '--learning_rate=1'"),
    ],
)
def test_a_mistake_is_one_line_with_the_cure(flag: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_config(DEMO, [flag])
    assert "\n" not in str(error.value)


# A value of each component that its own `validate` refuses; a component without a row here fails the test below.
WRONG = {
    "data": ("retries", -1), "model": ("num_heads", 0), "flow": ("shift_tokens", 0), "stages": ("rows", ()),
    "optimizer": ("beta1", 1.0), "ema": ("decay", 1.0), "mesh": ("fsdp", 0), "step": ("micro_batches", 0),
    "checkpoint": ("keep", 0), "logging": ("interval", 0), "numerics": ("max_skipped", 0),
    "watchdog": ("step_s", -1.0), "sampling": ("num_steps", 0), "execution": ("remat", "full"),
    "samples": ("interval", -1),
}  # fmt: skip
COMPONENTS = [
    field.name
    for field in dataclasses.fields(ExperimentConfig)
    if dataclasses.is_dataclass(getattr(ExperimentConfig(), field.name))
]


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_wrong_value_in_any_component_is_refused(name: str) -> None:
    config = load_config(DEMO)
    config.validate()
    setattr(getattr(config, name), *WRONG[name])
    with pytest.raises(ValueError, match=r"must|empty|>= 1|at least|unknown"):
        config.validate()


def test_a_wrong_value_inside_a_component_is_refused() -> None:
    assert {"numerics", "watchdog", "data"} <= set(COMPONENTS) == set(WRONG)
    config = load_config(DEMO)
    config.data.plan.windows = 0
    with pytest.raises(ValueError, match=r"plan\.windows must be >= 1, not 0"):
        config.validate()
    with pytest.raises(ValueError, match=r"max_skipped 0 must be >= 1"):
        load_config(DEMO, ["--config.numerics.max_skipped=0"])


def test_a_file_that_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"configs/demo\.py"):
        load_config(tmp_path / "none.py")
    (tmp_path / "dict.py").write_text("def get_config():\n    return dict(a=1)\n")
    with pytest.raises(ValueError, match="not ExperimentConfig"):
        load_config(tmp_path / "dict.py")
    with pytest.raises(FileNotFoundError, match="give the run directory"):
        read_config(tmp_path)
    with pytest.raises(ValueError, match=r"--config.data.dataset=DIR"):
        data_rows(ExperimentConfig())


def test_a_typo_in_a_config_file_is_an_error() -> None:
    with pytest.raises(AttributeError):
        load_config(DEMO).model.wdith = 3  # type: ignore[attr-defined]


def test_shape_of_a_batch_and_widths_that_differ() -> None:
    config = load_config(DEMO)
    shape = packed_shape(config, spec())
    audio, pose = config.model.audio, config.model.pose
    assert audio is not None and pose is not None
    assert (shape.patch_channels, shape.audio_width, shape.keypoints) == (192, 1152, 75)
    assert (shape.audio_tokens, shape.pose_frames) == (4 + 2 * audio.neighbours, 4 + 2 * pose.neighbours)
    assert shape.latent_tokens == config.data.plan.latent_tokens
    with pytest.raises(
        ValueError, match=r"text_width is 384, the dataset has 768; model.audio.features is 1152, the dataset has 768"
    ):
        packed_shape(config, spec(text_width=768, speech_layers=(0, 2)))
    config.model.audio = None
    assert packed_shape(config, spec(speech_layers=(0, 2))).audio_tokens == 4


OTHER_EXECUTION = ExecutionConfig(
    remat="attention_offload",
    attention=AttentionStrategy(
        kernel="splash",
        block_q=512,
        block_kv=1024,
        fused_backward=True,
        context_parallel="ulysses_ring",
        ulysses_ways=2,
    ),
)


def test_no_value_of_the_other_execution_is_the_default() -> None:
    """Or the tests of what moved would not see it."""
    default = to_json(ExecutionConfig())
    flat = {**to_json(OTHER_EXECUTION), **to_json(OTHER_EXECUTION.attention)}
    assert not [name for name, value in {**default, **default["attention"]}.items() if flat[name] == value]


def test_a_config_from_before_execution_is_read() -> None:
    """As run folders and checkpoints hold it: `model` said how it is computed."""
    stored = json.loads(BEFORE_EXECUTION.read_text())
    assert "execution" not in stored and stored["model"]["ulysses_ways"] == 2
    config = from_json(stored)
    expected = dataclasses.replace(load_config(DEMO), execution=OTHER_EXECUTION)
    expected.data.plan.repeat_warning = 100.0  # the default of that time
    assert config == expected
    added = ["fork: absent -> ", "model.pose.samples: absent -> 2"]
    assert changed_fields(stored, to_json(config)) == added  # a resume compares in today's form
    today = to_json(from_json(stored))
    assert changed_fields(today, to_json(config)) == []
    assert changed_fields(today, to_json(load_config(DEMO))) == [], "a resume may compute in another way"
    config.model.width = 512
    assert changed_fields(today, to_json(config)) == ["model.width: 256 -> 512"]


def test_a_run_folder_from_before_execution_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(BEFORE_EXECUTION.read_text())
    assert read_config(tmp_path).execution == OTHER_EXECUTION


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_flag_that_moved_is_told_where_to(old: str, new: str) -> None:
    with pytest.raises(ValueError, match=f"{old} is now {new}; set --config.{new}") as error:
        load_config(DEMO, [f"--config.{old}=1"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line", ['model=MMDiTConfig(remat="none")', 'seed=(m := MMDiTConfig(), setattr(m, "remat", 1))']
)
def test_a_config_file_that_sets_what_moved_is_told_where_to(line: str, tmp_path: Path) -> None:
    file = tmp_path / "old.py"
    file.write_text(
        "from omnihuman_jax.config import ExperimentConfig\nfrom omnihuman_jax.models.mmdit import MMDiTConfig\n"
        f"def get_config():\n    return ExperimentConfig({line})\n"
    )
    with pytest.raises(ValueError, match=r"model\.remat is now execution\.remat; set it in") as error:
        load_config(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"seed": "x"}, r"ExperimentConfig.seed: expects a whole number, not 'x'"),
        ({"seed": True}, r"ExperimentConfig.seed: expects a whole number, not True"),
        ({"model": {"rope_axes": [1, 2]}}, r"ExperimentConfig.model.rope_axes: expects 3 values, not 2"),
        ({"model": {"audio": 4}}, r"ExperimentConfig.model.audio: expects a mapping, not 4"),
        ({"stages": {"rows": [{"name": "a"}]}}, r"ExperimentConfig.stages.rows\[0\].steps is missing"),
        ([], r"ExperimentConfig: expects a mapping, not \[\]"),
    ],
)
def test_json_that_does_not_fit_names_the_field(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(data)  # type: ignore[arg-type]


def test_json_knows_unknown_fields() -> None:
    data = to_json(load_config(DEMO))
    data["model"]["depth"] = 3
    with pytest.raises(ValueError, match=r"ExperimentConfig.model: unknown fields depth"):
        from_json(data)


def test_what_may_change_between_a_run_and_its_resume() -> None:
    config = load_config(DEMO)
    old = to_json(config)
    config.name, config.data.dataset, config.data.read_threads, config.mesh.fsdp = "b", "elsewhere", 9, 2
    config.checkpoint.interval, config.logging.interval, config.sampling.num_steps = 7, 3, 2
    config.step.micro_batches, config.execution = 4, OTHER_EXECUTION
    assert changed_fields(old, to_json(config)) == []
    config.flow.shift_max, config.data.plan.windows = 2.0, 7
    config.stages.rows = (dataclasses.replace(config.stages.rows[0], frozen=("base",)), *config.stages.rows[1:])
    assert [line.split(":")[0] for line in changed_fields(old, to_json(config))] == [
        "data.plan.windows", "flow.shift_max", "stages.rows[0].frozen", "stages.rows[0].frozen[0]",
    ]  # fmt: skip
