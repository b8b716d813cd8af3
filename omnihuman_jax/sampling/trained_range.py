"""What a run has been trained on, and warnings where it is asked for something far from that.

Outside of it a model answers too, in silence and badly: one trained on 64 x 48 pixels turns 48 x 96 into grey blocks.
"""

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data import window_index
from omnihuman_jax.data.catalog import Catalog, has_catalog
from omnihuman_jax.sampling.trained_run import TrainedRun
from omnihuman_jax.typing import FPS

# A height, width or length is far from another from this factor on [D].
FAR = 1.25


def check_model(run: TrainedRun, active: ConditionSet) -> list[str]:
    """Warnings of conditions that no stage has trained yet; ValueError where the run's model has no input for one."""
    for condition, branch, cure in (
        (Condition.AUDIO, run.config.model.audio, "audio adapter (model.audio is None): leave out --audio"),
        (Condition.POSE, run.config.model.pose, "pose guider (model.pose is None): leave out --pose"),
    ):
        if condition in active and branch is None:
            raise ValueError(f"the model of {run.directory} has no {cure}, or train with one")
    untrained = active.without(*run.config.stages.introduced(max(0, run.step - 1)))
    return [f"step {run.step} has not been trained on {untrained.label} yet: it will do little"] if untrained else []


def trained_windows(run: TrainedRun) -> np.ndarray:
    """int [n, 3]: (height, width, frames) of the windows that the stages up to the run's step draw, each once; none
    where the datasets are not there.
    """
    stages, found = run.config.stages, [np.zeros((0, 3), int)]
    last, _ = stages.stage_at(min(max(0, run.step - 1), stages.total_steps - 1))
    for drawn in run.drawn_from:
        if has_catalog(drawn.path):
            catalog = Catalog.load(drawn.path)
            indices = [window_index.build(catalog, stage) for stage in stages.rows[: last + 1]]
            rows = np.unique(np.concatenate([index.rows for index in indices]))
            found.append(np.stack([catalog.height[rows], catalog.width[rows], catalog.frames[rows]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def check_range(run: TrainedRun, size: tuple[int, int], frames: int) -> list[str]:
    """Warnings where pictures of `size`, or segments of `frames`, are far from all that the run was trained on."""
    trained = trained_windows(run)
    if not len(trained):
        return []
    warnings = []
    off = np.abs(np.log(trained[:, :2] / np.array(size))).max(1)
    if off.min() > np.log(FAR):
        height, width, _ = trained[int(off.argmin())]
        warnings.append(
            f"{size[0]}x{size[1]} pixels are far from all {len(np.unique(trained[:, :2], axis=0))} sizes trained on "
            f"(the nearest is {height}x{width}): expect bad pictures, or give --size {height}x{width}"
        )
    near = trained[off <= max(off.min(), np.log(FAR))][:, 2]
    if np.abs(np.log(near / frames)).min() > np.log(FAR):
        nearest = near[np.abs(np.log(near / frames)).argmin()]
        warnings.append(
            f"segments of {frames} frames ({frames / FPS:.2f} s) are far from all lengths trained on at about this "
            f"size (the nearest is {nearest}): expect bad motion, or give --segment-frames {max(9, nearest)}"
        )
    return warnings
