"""Stages: ratios to active sets, feasibility with the numbers, the schedule's arithmetic."""

import warnings

import numpy as np
import pytest

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.stages import CONTAINS, NUM_SETS, Stage, StageSchedule, paper_stages, v2_stages


def stage(**values) -> Stage:
    return Stage(**({"name": "s", "steps": 10} | values))


def test_product_has_the_ratios_as_marginals_and_independent_conditions():
    made = stage(audio=0.5, pose=0.25).distribution()
    np.testing.assert_allclose(made @ CONTAINS, [0.9, 0.7, 0.5, 0.25], atol=1e-12)
    assert made[ConditionSet.of(Condition.AUDIO, Condition.POSE).bits] == pytest.approx(0.1 * 0.3 * 0.5 * 0.25)


def test_nested_never_activates_a_condition_without_all_weaker_ones():
    made = stage(audio=0.5, pose=0.25, mode="nested").distribution()
    np.testing.assert_allclose(made @ CONTAINS, [0.9, 0.7, 0.5, 0.25], atol=1e-12)
    assert set(np.flatnonzero(made)) == {0, 1, 3, 7, 15}


def test_keep_activates_what_the_data_allows():
    hours = np.zeros(NUM_SETS)
    hours[3], hours[15] = 3.0, 1.0
    kept = stage(audio=0.5, pose=0.2, mode="keep")
    assert kept.expected(hours).sum() == pytest.approx(1)
    np.testing.assert_allclose(kept.target(hours), [0.9, 0.7, 0.125, 0.05])
    with pytest.raises(ValueError, match="keep"):
        kept.distribution()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"audio": 1.5}, r"audio = 1.5 outside \[0, 1\]"),
        ({"text": float("nan")}, "text = nan"),
        ({"motion": -0.1}, "motion"),
        ({"steps": 0}, "steps = 0"),
        ({"mode": "joint"}, "product, nested, keep"),
        ({"mode": "nested", "reference": 0.2, "audio": 0.5}, "audio 0.5 > reference 0.2"),
        ({"frozen": ("vae",)}, "vae"),
        ({"min_frames": 17, "max_frames": 5}, "17, 5"),
        ({"learning_rate_scale": -1.0}, "learning_rate_scale"),
    ],
)
def test_impossible_rows_are_refused_with_their_numbers(values, message):
    with pytest.raises(ValueError, match=message):
        stage(**values).validate()


def test_ratios_that_grow_with_strength_warn_and_falling_ones_do_not():
    with pytest.warns(UserWarning, match=r"pose 0.8 > audio 0.5"):
        stage(audio=0.5, pose=0.8).validate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paper_stages(steps=10, base_steps=5).validate()
        v2_stages(steps=10).validate()


def test_presets_are_the_papers():
    rows = paper_stages(steps=(1, 2, 3), base_steps=4).rows
    assert [tuple(row.ratios) for row in rows] == [
        (0.9, 0, 0, 0),
        (0.9, 0.7, 0, 0),
        (0.9, 0.7, 0.5, 0),
        (0.9, 0.7, 0.5, 0.25),
    ]
    assert [row.steps for row in rows] == [4, 1, 2, 3]
    assert v2_stages(steps=1).rows[-1].pose == 0.5


def test_schedule_finds_the_stage_of_a_step_and_what_was_introduced():
    schedule = paper_stages(steps=(3, 2, 4))
    assert schedule.total_steps == 9 and schedule.starts == (0, 3, 5)
    assert [schedule.stage_at(step)[0] for step in range(9)] == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    for step in (-1, 9):
        with pytest.raises(IndexError, match=r"\[0, 9\)"):
            schedule.stage_at(step)
    assert Condition.AUDIO not in schedule.introduced(2) and Condition.AUDIO in schedule.introduced(3)
    assert schedule.introduced(9) == schedule.introduced(8) == ConditionSet(15)
    # A later stage without a condition keeps what was introduced: its weights go on being trained.
    again = StageSchedule(rows=(*schedule.rows, stage(name="again", audio=0.0)))
    assert again.introduced(again.total_steps - 1) == ConditionSet(15)


def test_schedule_without_rows_or_with_equal_names_is_refused():
    with pytest.raises(ValueError, match="empty"):
        StageSchedule().validate()
    with pytest.raises(ValueError, match="s, s"):
        StageSchedule(rows=(stage(), stage())).validate()


def test_infeasible_stage_names_the_active_set_and_the_eligible_counts():
    counts = np.zeros(NUM_SETS, int)
    counts[3], counts[7] = 40, 6
    with pytest.raises(ValueError) as error:
        stage(audio=0.5, pose=0.25).check(counts, counts / 3600)
    message = str(error.value)
    assert "\n" not in message
    assert "active set text+reference+audio+pose is wanted for 7.9% of the windows" in message
    assert "0 of 46 training windows" in message
    assert "text 46, reference 46, audio 6, pose 0" in message and "text+reference+audio 6" in message


def test_an_active_set_that_is_never_asked_for_needs_no_window():
    counts = np.zeros(NUM_SETS, int)
    counts[3] = 5
    stage().check(counts, counts / 3600)
    stage(audio=0.5, pose=0.5, mode="keep").check(counts, counts / 3600)
    with pytest.raises(ValueError, match="0 training windows"):
        stage().check(np.zeros(NUM_SETS, int), np.zeros(NUM_SETS))


def test_repeats_add_up_to_the_draws_and_warn_above_the_limit():
    counts = np.zeros(NUM_SETS, int)
    counts[3], counts[15] = 90, 10
    for mode in ("product", "nested", "keep"):
        report = stage(audio=0.5, pose=0.25, mode=mode).check(counts, counts / 3600, windows=1000)
        assert (report.eligible_repeats * counts).sum() == pytest.approx(1000)
        assert report.expected.sum() == pytest.approx(1)
    report = stage(audio=0.5, pose=0.25).check(counts, counts / 3600, windows=1000)
    # Audio or pose is asked of 62.5 % of the draws, all of which fall on the 10 windows, and a tenth of the others do.
    assert report.eligible_repeats[15] == pytest.approx((0.625 + 0.0375) * 1000 / 10)
    (line,) = report.warnings(50)
    assert "10 windows eligible for text+reference+audio+pose" in line and "66 times" in line
    assert not report.warnings(70)
