"""A step's record: means over the interval, realised ratios beside the configured ones."""

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.stages import Stage
from omnihuman_jax.training.log_line import summarise
from omnihuman_jax.training.numerics import Health
from omnihuman_jax.training.train_state import NUM_SETS, Counters

TEXT, BOTH = ConditionSet.of(Condition.TEXT), ConditionSet.of(Condition.TEXT, Condition.AUDIO)


def test_summary() -> None:
    windows, losses = np.zeros(NUM_SETS, np.int32), np.zeros(NUM_SETS, np.float32)
    windows[[TEXT.bits, BOTH.bits, 0]] = 5, 3, 2
    losses[[TEXT.bits, BOTH.bits, 0]] = 10, 1.5, 8
    counters = Counters(
        stage_windows=4 * windows,
        interval_windows=windows,
        interval_losses=losses,
        interval_loss=np.float32(6),
        interval_tokens=np.float32(100),
        interval_steps=np.int32(3),
        placeholders=np.int32(4),
        health=Health.zeros()._replace(skipped=np.int32(5), interval_nonfinite=np.int32(1)),  # the mean is of two steps
    )
    record = summarise(counters, Stage(name="s", steps=1, text=0.9, audio=0.25))
    assert record["loss"] == 3
    assert {k: v for k, v in record.items() if k.startswith("loss/")} == {
        "loss/none": 4,
        "loss/text": 2,
        "loss/text+audio": 0.5,
    }
    assert [record[f"ratio/{c.label}"] for c in Condition] == [0.8, 0, 0.3, 0]
    assert [record[f"ratio_target/{c.label}"] for c in Condition] == [0.9, 0.7, 0.25, 0]
