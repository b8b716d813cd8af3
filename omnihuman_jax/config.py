"""ExperimentConfig: the components' own dataclasses side by side, read from a file, overridden by flags, checked as a
whole.

A config file has `get_config() -> ExperimentConfig`. Overrides are applied after construction, so derived values are
properties and every check is in `validate()`. The resolved config goes, as JSON, into the run directory and into
every checkpoint, and a resume compares.
"""

import copy
import dataclasses
import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from omnihuman_jax.checkpoint.writer import CheckpointConfig
from omnihuman_jax.data.plan import PlanConfig
from omnihuman_jax.data.records import DatasetSpec
from omnihuman_jax.data.weighted_datasets import WeightedDataset, check_rows
from omnihuman_jax.diffusion.flow_matching import FlowMatchingConfig
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.models.mmdit import MMDiTConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.plain_values import UnknownFieldsError, check_finite, structure, to_json
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import Location, check_scheme, local
from omnihuman_jax.runtime.watchdog import WatchdogConfig
from omnihuman_jax.sharding import MeshConfig
from omnihuman_jax.stages import StageSchedule
from omnihuman_jax.telemetry.metrics import LoggingConfig
from omnihuman_jax.training.numerics import NumericsConfig
from omnihuman_jax.training.optimizer import EmaConfig, OptimizerConfig, trainable_groups
from omnihuman_jax.training.sample_budget import SamplesConfig
from omnihuman_jax.training.train_step import StepConfig
from omnihuman_jax.typing import PackedShape

COMPUTE_DTYPES = ("auto", "float32", "bfloat16")

# May differ between a run and its resume: none of these changes what the steps to come compute (another mesh or
# platform changes it by rounding only).
FREE_ON_RESUME = (
    "name", "data.dataset", "data.datasets[*].path",
    "data.read_threads", "data.retries", "data.retry_delay_s", "data.plan.repeat_warning",
    "mesh", "step", "execution", "checkpoint",
    "logging", "sampling", "samples", "watchdog",
    "numerics.max_skipped", "numerics.max_rollbacks", "numerics.repeat_interval",
)  # fmt: skip

# Fields that said, in `model`, how it is computed -> where they are now: run folders and checkpoints have the old ones.
MOVED = {
    "model.remat": "execution.remat",
    "model.attention": "execution.attention.kernel",
    "model.attention_block_q": "execution.attention.block_q",
    "model.attention_block_kv": "execution.attention.block_kv",
    "model.attention_fused_backward": "execution.attention.fused_backward",
    "model.context_parallel": "execution.attention.context_parallel",
    "model.ulysses_ways": "execution.attention.ulysses_ways",
}


@dataclasses.dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where the data lies and how batches are laid out.

    dataset: folder of `omnihuman encode`; FOLDER@2 for its second generation. Without: the one that the run began
        with, of a new run the newest
    datasets: several of them with weights, in place of `dataset`
    plan: sizes of the packed sequences and of a step
    read_threads: threads that read records ahead
    retries, retry_delay_s: how often storage that does not answer is asked again, after doubling pauses from the delay
        on
    """

    dataset: str = ""
    datasets: tuple[WeightedDataset, ...] = ()
    plan: PlanConfig = dataclasses.field(default_factory=PlanConfig)
    read_threads: int = 4
    retries: int = 6
    retry_delay_s: float = 1.0

    def validate(self) -> None:
        """ValueError on a number that nothing can be read with."""
        if self.read_threads < 1:
            raise ValueError(f"data.read_threads must be >= 1, not {self.read_threads}")
        if self.retries < 0 or self.retry_delay_s < 0:
            raise ValueError(f"data.retries {self.retries} and retry_delay_s {self.retry_delay_s} must be >= 0")
        if self.dataset and self.datasets:
            raise ValueError(
                f"data.dataset is {self.dataset} and data.datasets has {len(self.datasets)} rows; set one of the two"
            )
        check_rows(self.datasets)
        self.plan.validate()

    @property
    def rows(self) -> tuple[WeightedDataset, ...]:
        """The data sets, also if it is one; () where none is set."""
        return self.datasets or ((WeightedDataset(path=self.dataset),) if self.dataset else ())

    @property
    def first(self) -> str:
        """The data set of what takes one, such as samples and exports: the only one, or the first; "" where none is
        set.
        """
        return self.rows[0].path if self.rows else ""

    @property
    def label(self) -> str:
        """What messages call the data: the only path, or all."""
        return ", ".join(row.path for row in self.rows)


class Fork(NamedTuple):
    """What `fork` names: a run, a folder or a bucket's, and a finished step of it."""

    run: str
    step: int


def parse_fork(text: str) -> Fork:
    """RUN@STEP; ValueError for other text."""
    run, _, step = text.rpartition("@")
    if not run or not re.fullmatch(r"[0-9]+", step):
        raise ValueError(f"fork {text!r}: write RUN@STEP, such as runs/theatre/run@800")
    if int(step) == 0:
        raise ValueError(f"fork {text!r}: step 0 is weights alone; start from them with --config.initial_weights={run}")
    check_scheme(run, "fork")
    return Fork(run, int(step))


@dataclasses.dataclass(kw_only=True, slots=True)
class ExperimentConfig:
    """Everything that a run depends on beside its data.

    seed: of the plan, the initial weights, noise and timesteps
    initial_weights: run whose averaged weights are step 0; "": random ones
    fork: RUN@STEP, whose whole state the run goes on from (`omnihuman train --fork`)
    model, execution: what the model is, and how its blocks are computed
    compute_dtype: of the blocks' matrix products; `auto` is bfloat16 on accelerators and float32 on CPU. Parameters,
        EMA, gradients, their sum over micro-batches, norms, softmax and loss are float32 either way
    """

    name: str = "experiment"
    seed: int = 0
    initial_weights: str = ""
    fork: str = ""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: MMDiTConfig = dataclasses.field(default_factory=MMDiTConfig)
    execution: ExecutionConfig = dataclasses.field(default_factory=ExecutionConfig)
    flow: FlowMatchingConfig = dataclasses.field(default_factory=FlowMatchingConfig)
    stages: StageSchedule = dataclasses.field(default_factory=StageSchedule)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    ema: EmaConfig = dataclasses.field(default_factory=EmaConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    step: StepConfig = dataclasses.field(default_factory=StepConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)
    numerics: NumericsConfig = dataclasses.field(default_factory=NumericsConfig)
    watchdog: WatchdogConfig = dataclasses.field(default_factory=WatchdogConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig)
    compute_dtype: str = "auto"

    def validate(self) -> None:
        """ValueError, with the field's path and the numbers, on anything that does not fit together."""
        check_finite(self)
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, not {self.seed}")
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(
                f"compute_dtype {self.compute_dtype!r} is unknown; it is one of {', '.join(COMPUTE_DTYPES)}"
            )
        for field in dataclasses.fields(self):
            part: Any = getattr(self, field.name)
            is_component = dataclasses.is_dataclass(part)
            if is_component:
                part.validate()
        self.samples.check_interval(self.logging.interval)
        self._check_fork()
        for stage in self.stages.rows:
            trainable_groups((), stage.frozen)

    def _check_fork(self) -> None:
        if not self.fork:
            return
        step = parse_fork(self.fork).step
        if self.initial_weights:
            raise ValueError(
                f"fork {self.fork} brings its own weights: leave out initial_weights {self.initial_weights}"
            )
        if step >= self.stages.total_steps:
            raise ValueError(
                f"fork {self.fork}: nothing is left to train, the stages end at step {self.stages.total_steps}; steps"
                " are counted from the beginning of the run forked from: give the stages more"
            )


def packed_shape(config: ExperimentConfig, spec: DatasetSpec) -> PackedShape:
    """The layout of a batch for this model on this dataset; ValueError lists every width that differs between the two.

    A model without an audio or pose branch is fed that condition's smallest layout and never reads it.
    """
    model = config.model
    pairs = {
        "model.latent_channels": (model.latent_channels, spec.latent_channels),
        "model.text_width": (model.text_width, spec.text_width),
    }
    if model.pooled_width:
        pairs["model.pooled_width"] = (model.pooled_width, spec.pooled_width)
    if model.audio is not None:
        pairs["model.audio.features"] = (model.audio.features, spec.audio_width)
    if model.pose is not None:
        pairs["model.pose.keypoints"] = (model.pose.keypoints, spec.num_keypoints)
    wrong = [f"{name} is {has}, the dataset has {wants}" for name, (has, wants) in pairs.items() if has != wants]
    if wrong:
        raise ValueError(f"the model does not fit the dataset {config.data.label!r}: {'; '.join(wrong)}")
    return dataclasses.replace(
        planned_shape(config),
        text_width=spec.text_width,
        pooled_width=spec.pooled_width,
        audio_width=spec.audio_width,
        keypoints=spec.num_keypoints,
    )


def planned_shape(config: ExperimentConfig) -> PackedShape:
    """The layout of a batch on a dataset that has just the model's own widths: for planning without any data."""
    model, plan = config.model, config.data.plan
    audio, pose = model.audio or AudioAdapterConfig(neighbours=0), model.pose or PoseGuiderConfig(neighbours=0)
    return PackedShape(
        latent_tokens=plan.latent_tokens,
        text_tokens=plan.text_tokens,
        windows=plan.windows,
        latent_frames=plan.latent_frames,
        frames=plan.frames,
        patch_channels=model.patch_channels,
        text_width=model.text_width,
        pooled_width=model.pooled_width or 1,
        audio_width=audio.features if model.audio else 1,
        audio_tokens=audio.tokens,
        keypoints=pose.keypoints if model.pose else 1,
        pose_frames=pose.frames,
        floats="float16",
    )


def compute_dtype(config: ExperimentConfig, platform: str | None = None) -> Any:
    """The blocks' dtype: bfloat16 on accelerators, float32 on CPU (`platform`: the default backend's), unless the
    config says.
    """
    if config.compute_dtype == "auto":
        return jnp.float32 if (platform or jax.default_backend()) == "cpu" else jnp.bfloat16
    return jnp.dtype(config.compute_dtype)


def data_rows(config: ExperimentConfig) -> tuple[WeightedDataset, ...]:
    """The data sets, one or several; ValueError with the flag that sets it."""
    if not config.data.rows:
        raise ValueError(
            "data.dataset is not set; name the folder that `omnihuman encode` wrote with --config.data.dataset=DIR"
        )
    if config.data.dataset:
        check_scheme(config.data.dataset, "data.dataset")
    return config.data.rows


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The config of a file, with overrides applied and checked.

    Args:
        path: a config file, with an argument for its `get_config` after a colon if it takes one.
        overrides: flags like `--config.model.width=256` or `--config.stages.rows[0].steps=100`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown field (with the nearest known one), a value of the wrong type, or one that `validate`
            refuses.
    """
    from absl import flags
    from ml_collections import config_flags

    file = str(path).split(":", 1)[0]
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"{file} does not exist; the configs of this repository are in configs/, e.g. configs/demo.py"
        )
    foreign = [flag for flag in overrides if not re.match(r"--?(no)?config\.", flag)]
    if foreign:
        raise ValueError(f"unknown argument {foreign[0]!r}; config fields are set with --config.FIELD=VALUE")
    values = flags.FlagValues()
    arguments = ["omnihuman", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments[1:], lock_config=False)
    try:
        values(arguments)
    except (flags.Error, KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(_override_message(file, overrides, error)) from error
    config = values["config"].value
    if not isinstance(config, ExperimentConfig):
        raise ValueError(f"{file}: get_config() returned {type(config).__name__}, not ExperimentConfig")
    config.validate()
    return config


def from_json(data: Mapping[str, Any], kind: type = ExperimentConfig) -> Any:
    """The config behind `to_json`, of today or of before `execution`; ValueError names a field that does not fit."""
    try:
        return structure(kind, upgraded(data) if kind is ExperimentConfig else data, kind.__name__)
    except UnknownFieldsError as error:
        raise ValueError(
            f"{error.path}: unknown fields {', '.join(error.names)}; written by another version of this package?"
        ) from error


def upgraded(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config as JSON in today's form, also if it was written when `model` said how it is computed, or when a run drew
    from one data set only.
    """
    model, of_data = (data.get(name) if isinstance(data, Mapping) else None for name in ("model", "data"))
    if isinstance(of_data, Mapping) and "datasets" not in of_data:
        data = {**data, "data": {**of_data, "datasets": []}}
    if not isinstance(model, Mapping) or not any(old.removeprefix("model.") in model for old in MOVED):
        return data
    new: dict[str, Any] = copy.deepcopy(dict(data))
    for old, path in MOVED.items():
        if (name := old.removeprefix("model.")) in model:
            *parents, last = path.split(".")
            node = new
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = new["model"].pop(name)
    return new


def changed_fields(
    old: Mapping[str, Any], new: Mapping[str, Any], *, free: Sequence[str] = FREE_ON_RESUME
) -> list[str]:
    """`path: old -> new` of every field that differs between two configs as JSON, without those that may."""
    before, after = _flat(upgraded(old)), _flat(upgraded(new))
    lines = []
    for name in sorted(before.keys() | after.keys()):
        any_row = re.sub(r"\[\d+\]", "[*]", name)
        is_free = any(
            one == prefix or one.startswith((prefix + ".", prefix + "[")) for prefix in free for one in (name, any_row)
        )
        if not is_free and before.get(name, _ABSENT) != after.get(name, _ABSENT):
            lines.append(f"{name}: {before.get(name, _ABSENT)} -> {after.get(name, _ABSENT)}")
    return lines


def write_config(config: ExperimentConfig, run_dir: Location) -> None:
    """`config.json` of a run, all or nothing."""
    files.write_text(run_dir / "config.json", json.dumps(to_json(config), indent=2) + "\n")


def read_config(run_dir: Path | str) -> ExperimentConfig:
    """The resolved config of a run directory."""
    path = local(run_dir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the run directory of `omnihuman train`")
    return from_json(json.loads(path.read_text(encoding="utf-8")))


_ABSENT = "absent"


def _override_message(file: str, overrides: Sequence[str], error: BaseException) -> str:
    """One line that says which flag is wrong and what it may have meant."""
    text = (str(error).strip("'\"") if isinstance(error, KeyError) else str(error)).strip() or type(error).__name__
    if isinstance(error, IndexError):
        text = f"{', '.join(flag for flag in overrides if '[' in flag)}: {text}"
    known = sorted(
        _flat(to_json(ExperimentConfig(model=MMDiTConfig(audio=AudioAdapterConfig(), pose=PoseGuiderConfig()))))
    )
    for flag in overrides:
        name = re.sub(r"^--?(no)?config\.", "", flag.split("=", 1)[0])
        if name in MOVED:
            return f"{file}: {flag}: {name} is now {MOVED[name]}; set --config.{MOVED[name]}"
        if name not in known and "[" not in name and (near := difflib.get_close_matches(name, known, 1)):
            return f"{file}: {flag}: there is no field {name!r}; did you mean {near[0]!r}?"
    if (word := re.search(r"(?:unexpected keyword argument|has no attribute) '(\w+)'", text)) and "MMDiTConfig" in text:
        old = f"model.{word[1]}"
        if old in MOVED:
            return f"{file}: {old} is now {MOVED[old]}; set it in ExperimentConfig's `execution`"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # ml_collections heads the error of a config file's own code with a line that says only that there was one.
    return f"{file}: {lines[-1] if lines[0].endswith(':') else lines[0]}"


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, Mapping) and data:
        return {
            key: value
            for name, item in data.items()
            for key, value in _flat(item, f"{prefix}.{name}" if prefix else name).items()
        }
    if isinstance(data, list | tuple) and data:
        return {key: value for i, item in enumerate(data) for key, value in _flat(item, f"{prefix}[{i}]").items()}
    return {prefix: data}
