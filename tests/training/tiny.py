"""A model and windows small enough to train in a test, in the layout of the real ones."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax import sharding
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.packing import PackInput, pack_batch
from omnihuman_jax.diffusion.flow_matching import FlowMatchingConfig
from omnihuman_jax.models import mmdit
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.training import optimizer as optim
from omnihuman_jax.training import placement, train_state
from omnihuman_jax.training.train_step import Controls, Objective, StepConfig, make_train_step, place_controls
from omnihuman_jax.typing import PackedBatch, PackedShape

SEQUENCES = 8
MARGIN = 2
ALL = ConditionSet.of(*Condition)


def model_config(*, dual: int = 1, single: int = 0, refiner: int = 0) -> mmdit.MMDiTConfig:
    """Audio and pose in any case; one dual block is all that most tests need, and compiles in a third of the time."""
    return mmdit.MMDiTConfig(
        width=32,
        num_heads=2,
        num_dual_layers=dual,
        num_single_layers=single,
        mlp_ratio=2.0,
        latent_channels=4,
        text_width=8,
        pooled_width=8,
        num_refiner_layers=refiner,
        rope_axes=(4, 6, 6),
        audio=AudioAdapterConfig(features=6, width=16, neighbours=1, num_heads=2, head_dim=8),
        pose=PoseGuiderConfig(keypoints=3, width=16, neighbours=1),
    )


def packed_shape() -> PackedShape:
    return PackedShape(
        latent_tokens=64, text_tokens=8, windows=3, latent_frames=8, frames=32, patch_channels=16, text_width=8,
        pooled_width=8, audio_width=6, audio_tokens=6, keypoints=3, pose_frames=6, floats="float16",
    )  # fmt: skip


def window(
    index: int, *, active: ConditionSet = ALL, motion: bool = False, latent_frames: int = 3, size: int = 4
) -> PackInput:
    """A window of random arrays that depend on `index` alone."""
    rng = np.random.default_rng(index)
    rows = 1 + 4 * (latent_frames - 1) + 2 * MARGIN
    noise = lambda *dims: rng.standard_normal(dims, np.float32)  # noqa: E731
    keypoints = np.concatenate([rng.uniform(0, size / 2, (rows, 3, 2)), np.ones((rows, 3, 1))], axis=-1).astype(
        np.float32
    )
    return PackInput(
        latents_FHWC=noise(latent_frames, size, size, 4),
        reference_HWC=noise(size, size, 4),
        text_SE=noise(2, 8),
        pooled_E=noise(8),
        audio_TE=noise(rows, 6),
        audio_valid_T=np.ones(rows, bool),
        keypoints_TJ3=keypoints,
        keypoints_valid_T=np.ones(rows, bool),
        margin=MARGIN,
        active=active,
        motion=motion,
        slot=index,
        window=index,
    )


def batch_of(rows: Sequence[Sequence[PackInput | None]]) -> PackedBatch[np.ndarray]:
    return pack_batch(rows, packed_shape())


def some_batch(
    first: int = 0, sets: Sequence[ConditionSet] = (ALL, ConditionSet.of(Condition.TEXT))
) -> PackedBatch[np.ndarray]:
    """Eight sequences of two windows each, of alternating active sets; every third has motion frames."""
    windows = [window(first + i, active=sets[i % len(sets)], motion=i % 3 == 0) for i in range(2 * SEQUENCES)]
    return batch_of([windows[2 * i : 2 * i + 2] for i in range(SEQUENCES)])


def random_params(config: mmdit.MMDiTConfig, seed: int = 0) -> dict:
    """Noise in every parameter, zero-initialised ones above all: a path that starts at zero would hide its errors."""
    shapes, _ = mmdit.abstract_params(config)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [0.2 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


def objective(config: mmdit.MMDiTConfig, execution: ExecutionConfig | None = None) -> Objective:
    """Without remat, which compiles faster, unless `execution` says otherwise."""
    execution = execution or ExecutionConfig(remat="none")
    return Objective(model=config, execution=execution, flow=FlowMatchingConfig(), seed=7, dtype=jnp.float32)


class Trainer:
    """State, step and placement on one mesh."""

    def __init__(
        self,
        mesh: sharding.MeshConfig | None = None,
        *,
        config: mmdit.MMDiTConfig | None = None,
        execution: ExecutionConfig | None = None,
        step: StepConfig | None = None,
        devices: Sequence[jax.Device] | None = None,
        **optimizer: Any,
    ):
        self.config = config or model_config()
        self.mesh_config = mesh or sharding.MeshConfig()
        self.mesh = sharding.create_mesh(self.mesh_config, devices)
        self.optimizer_config = optim.OptimizerConfig(**{"learning_rate": 1e-2, "warmup_steps": 0, **optimizer})
        shapes, self.axes = mmdit.abstract_params(self.config)
        self.labels = train_state.group_labels(self.axes)
        self.optimizer = optim.create_optimizer(self.optimizer_config, self.labels, self.axes)
        self.shardings = train_state.state_shardings(
            self.mesh, shapes, self.axes, self.optimizer, (step or StepConfig()).offload
        )
        self.objective = objective(self.config, execution)
        self.batch_shardings = sharding.batch_shardings(self.mesh, packed_shape(), SEQUENCES)
        self.step_fn = make_train_step(
            self.objective, self.optimizer, self.optimizer_config, optim.EmaConfig(decay=0.9), self.labels,
            mesh=self.mesh, shape=packed_shape(), batch=SEQUENCES, shardings=self.shardings, config=step,
        )  # fmt: skip

    def initial(self, seed: int = 0) -> train_state.TrainState:
        """Step 0 with random parameters, put together on the host: no program to compile."""
        params = random_params(self.config, seed)
        moments = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(self.optimizer.init, params)
        )
        counters = jax.tree.map(np.asarray, train_state.Counters.zeros())
        state = train_state.TrainState(
            params=params, opt_state=moments, ema=params, step=np.int32(0), counters=counters
        )
        return jax.device_put(state, self.shardings)

    def place(self, batch: PackedBatch[np.ndarray]) -> PackedBatch[jax.Array]:
        rows = placement.local_rows(self.mesh, SEQUENCES)
        own = jax.tree.map(lambda array: array[rows.start : rows.stop], batch)
        return placement.place_batch(own, self.batch_shardings, rows, SEQUENCES)

    def step(
        self, state, batch, *, trainable=("base", "audio", "pose"), stage_start=False, interval_start=False, rate=None
    ):
        controls = Controls(
            learning_rate=self.optimizer_config.learning_rate if rate is None else rate,
            trainable={group: group in trainable for group in optim.present_groups(self.labels)},
            stage_start=stage_start,
            interval_start=interval_start,
        )
        with jax.set_mesh(self.mesh):
            state, metrics = self.step_fn(state, self.place(batch), place_controls(controls))
            return state, jax.device_get(metrics)
