"""The plan: batch(k) from k alone, ratios as configured, little skipped, nothing bigger than a sequence, speed."""

import dataclasses
import re
import time

import numpy as np
import pytest

from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.equal_work import work_of
from omnihuman_jax.data.plan import DEMANDS, VERSION, Plan, demands, format_report, version_of
from omnihuman_jax.stages import Stage, StageSchedule, paper_stages
from tests.data import synthetic

CATALOG = synthetic.catalog(300)
SCHEDULE = paper_stages(steps=(70, 64, 90), base_steps=20)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(CATALOG, SCHEDULE, synthetic.plan_config(), seed=5)


@pytest.fixture(scope="module")
def batches(plan):
    return [plan.batch(step) for step in range(SCHEDULE.total_steps)]


def one_stage(**values) -> StageSchedule:
    return StageSchedule(rows=(Stage(**({"name": "s", "steps": 100, "audio": 0.5, "pose": 0.25} | values)),))


def realised(batches) -> np.ndarray:
    """Share of windows on which each condition is active, counted from the batches themselves."""
    return np.asarray([w.active.mask() for b in batches for w in b.windows]).mean(axis=0)


def test_a_batch_alone_is_the_batch_in_order_in_every_stage(batches):
    """Also at the borders of chunks (32 steps) and stages (20, 90, 154), from plans that saw nothing else."""
    for step in (0, 19, 20, 51, 52, 89, 90, 153, 154, 186, 243):
        assert Plan(CATALOG, SCHEDULE, synthetic.plan_config(), seed=5).batch(step) == batches[step]
    backwards = Plan(CATALOG, SCHEDULE, synthetic.plan_config(), seed=5)
    for step in range(SCHEDULE.total_steps - 1, -1, -7):
        assert backwards.batch(step) == batches[step]


def test_stages_appended_later_leave_the_batches_before_as_they_are(batches):
    longer = StageSchedule(rows=(*SCHEDULE.rows, Stage(name="more", steps=40, audio=0.1, mode="keep")))
    plan = Plan(CATALOG, longer, synthetic.plan_config(), seed=5)
    for step in (0, 60, 120, 243):
        assert plan.batch(step) == batches[step]
    assert plan.batch(244).stage == 4


def test_the_seed_changes_the_batches_and_the_fingerprint(plan, batches):
    other = Plan(CATALOG, SCHEDULE, synthetic.plan_config(), seed=6)
    assert other.batch(30) != batches[30] and other.fingerprint() != plan.fingerprint()
    assert Plan(CATALOG, SCHEDULE, synthetic.plan_config(), seed=5).fingerprint() == plan.fingerprint()
    assert Plan(CATALOG, SCHEDULE, synthetic.plan_config(block=200), seed=5).fingerprint() != plan.fingerprint()
    shifted = paper_stages(steps=(70, 64, 90), base_steps=20, pose=0.26)
    assert Plan(CATALOG, shifted, synthetic.plan_config(), seed=5).fingerprint() != plan.fingerprint()


def test_a_fingerprint_says_the_version_of_the_plan(plan):
    assert version_of(plan.fingerprint()) == VERSION == 3
    assert version_of("ab" * 32) == 1  # as the first version left it in checkpoints


def test_every_sequence_keeps_to_every_limit(plan, batches):
    capacity = plan.config.capacity
    for batch in batches:
        assert len(batch.sequences) == 4
        for sequence in batch.sequences:
            rows = np.asarray([w.row for w in sequence], int)
            active = np.asarray([w.active.bits for w in sequence], int)
            assert (demands(CATALOG, plan.config, rows, active).sum(axis=0) <= capacity).all()


def test_neighbouring_sequences_share_the_work_of_a_step():
    """Halves and quarters of a step's sequences, against the same sequences in any order."""
    config = synthetic.plan_config(sequences_per_step=32, chunk_steps=8)
    plan = Plan(CATALOG, one_stage(steps=16), config, seed=0)
    work = np.zeros((16, 32))
    for step in range(16):
        for number, sequence in enumerate(plan.batch(step).sequences):
            row, active = np.asarray([(window.row, window.active.bits) for window in sequence]).T
            work[step, number] = work_of(demands(CATALOG, config, row, active)).sum()
    shuffled = np.random.default_rng(0).permuted(work, axis=1)
    for groups in (2, 4, 8):
        even, any_order = (part.reshape(16, groups, -1).sum(axis=2) for part in (work, shuffled))
        assert np.ptp(even, axis=1).mean() < 0.25 * np.ptp(any_order, axis=1).mean()


def test_slots_number_the_windows_of_a_step(batches):
    for batch in batches:
        assert [w.slot for w in batch.windows] == list(range(len(batch.windows)))


def test_motion_and_reference_are_given_only_where_they_can_be(batches):
    for window in (w for b in batches for w in b.windows):
        assert not window.motion or CATALOG.latent_frames[window.row] > 2
        if Condition.REFERENCE in window.active:
            assert 0 <= window.reference < CATALOG.num_references[window.row]
        else:
            assert window.reference == -1
        assert window.active.bits & ~CATALOG.eligible[window.row] == 0


@pytest.mark.parametrize("mode", ["product", "nested"])
@pytest.mark.parametrize(("windows", "steps"), [(40, 30), (40, 300), (3000, 300)])
def test_ratios_hold_over_a_stage_whatever_the_data(mode, windows, steps):
    """Within 0.5 percentage points, from a handful of pose-eligible windows as from thousands, from 200 draws on."""
    table = synthetic.catalog(windows, strong=0.1)
    plan = Plan(table, one_stage(mode=mode, steps=steps), synthetic.plan_config(), seed=0)
    made = [plan.batch(step) for step in range(steps)]
    np.testing.assert_allclose(realised(made), [0.9, 0.7, 0.5, 0.25], atol=0.005)
    (report,) = plan.report(max_chunks=100)
    assert report.chunks_seen == report.chunks == -(-steps // 32)
    np.testing.assert_allclose(report.realised, realised(made))
    long = [w.motion for b in made for w in b.windows if table.latent_frames[w.row] > 2]
    assert report.motion == pytest.approx(np.mean(long)) and np.mean(long) == pytest.approx(0.5, abs=0.01)
    assert report.skipped <= 0.01
    assert max(report.fill.values()) > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_every_stage_holds_its_ratios_and_skips_at_most_one_percent(seed):
    plan = Plan(CATALOG, SCHEDULE, synthetic.plan_config(), seed=seed)
    reports = plan.report()
    for report, stage in zip(reports, SCHEDULE.rows):
        np.testing.assert_allclose(report.realised, stage.ratios, atol=0.005)
        assert report.skipped <= 0.01 and max(report.fill.values()) > 0.9
        assert set(report.fill) == set(DEMANDS) and max(report.fill.values()) <= 1
    text = format_report(reports)
    assert re.search(
        r"stage pose: 90 steps, \d+ windows, 0\.\d\d% skipped .*\n  ratios: .*pose 2[45]\.\d\d% \(target 25\.00%\)",
        text,
    )
    assert "fill: latent_tokens 9" in text


def test_skipped_windows_are_those_missing_from_the_batches():
    """The report's share, against the index range that the chunks own."""
    plan = Plan(CATALOG, one_stage(steps=200), synthetic.plan_config(), seed=1)
    (report,) = plan.report(max_chunks=100)
    placed = sum(len(plan.batch(step).windows) for step in range(200))
    assert report.skipped == pytest.approx(1 - placed / report.windows)
    assert 0 < report.skipped <= 0.01


@pytest.mark.parametrize(
    ("sequences", "chunk_steps", "limits"),
    [
        (2, 4, {}),
        (1, 8, {"latent_tokens": 512}),
        (8, 16, {"windows": 3}),
        (8, 16, {"frames": 90}),
        (8, 16, {"text_tokens": 24}),
    ],
)
def test_small_chunks_and_any_binding_limit_skip_little(sequences, chunk_steps, limits):
    config = synthetic.plan_config(sequences_per_step=sequences, chunk_steps=chunk_steps, **limits)
    (report,) = Plan(CATALOG, one_stage(steps=300), config, seed=0).report(max_chunks=100)
    assert report.skipped <= 0.01 and max(report.fill.values()) > 0.8
    np.testing.assert_allclose(report.realised, report.target, atol=0.005)
    if limits:
        assert max(report.fill, key=report.fill.get) == next(iter(limits))


def test_keep_reports_what_the_data_gives_beside_the_ratio():
    plan = Plan(CATALOG, one_stage(mode="keep", steps=300), synthetic.plan_config(), seed=0)
    (report,) = plan.report()
    assert report.target[Condition.POSE] < 0.2
    np.testing.assert_allclose(report.realised, report.target, atol=0.03)


def test_weak_tasks_are_served_by_strong_windows_too(batches):
    """Principle 1: a window that passed every filter is also drawn for text alone."""
    weakest = {w.row for b in batches for w in b.windows if not w.active.bits >> 2}
    assert any(CATALOG.eligible[row] == synthetic.ELIGIBLE["all"] for row in weakest)


def test_limits_of_a_stage_and_other_splits_are_kept_out():
    split = np.asarray(CATALOG.split.tolist(), object)
    split[::2] = "test"
    table = dataclasses.replace(CATALOG, split=split)
    schedule = one_stage(min_frames=17, max_frames=17, max_tokens=120, audio=0.1, pose=0.05)
    plan = Plan(table, schedule, synthetic.plan_config(), seed=0)
    rows = np.asarray([w.row for step in range(20) for w in plan.batch(step).windows])
    assert (rows % 2 == 1).all() and (table.frames[rows] == 17).all() and (table.window_tokens[rows] <= 120).all()


def test_an_infeasible_stage_is_refused_when_the_plan_is_made():
    silent = dataclasses.replace(CATALOG, eligible=CATALOG.eligible & ~4)
    with pytest.raises(ValueError, match=r"stage 'audio': the active set .*audio.* 0 of 300 training .*audio 0"):
        Plan(silent, SCHEDULE, synthetic.plan_config(), seed=0)
    with pytest.raises(ValueError, match=r"stage 's': 0 of the 0 training windows \(min_frames 101\)"):
        Plan(CATALOG, one_stage(min_frames=101), synthetic.plan_config(), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_tokens": 150}, r"needs 192 latent_tokens, a sequence has 150; raise plan.latent_tokens"),
        ({"text_tokens": 8}, r"needs 11 text_tokens, a sequence has 8"),
        ({"latent_frames": 6}, r"needs 7 latent_frames, a sequence has 6"),
        ({"frames": 34}, r"needs 35 frames, a sequence has 34"),
        ({"windows": 0}, r"plan.windows must be >= 1, not 0"),
        ({"latent_tokens": float("nan")}, r"plan.latent_tokens"),
    ],
)
def test_a_window_bigger_than_a_sequence_is_an_error_with_the_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        Plan(CATALOG, one_stage(), synthetic.plan_config(**changes), seed=0)


def test_the_largest_window_alone_just_fits():
    """One window a sequence: what a large model at full length trains on."""
    table = synthetic.catalog(50, latent_frames=(7,))
    config = synthetic.plan_config(latent_tokens=192, windows=1, latent_frames=7, frames=35, text_tokens=11)
    plan = Plan(table, one_stage(steps=70), config, seed=0)
    assert all(len(sequence) == 1 for step in range(70) for sequence in plan.batch(step).sequences)
    (report,) = plan.report()
    assert report.skipped == 0 and report.fill["windows"] == 1


def test_few_windows_drawn_often_are_warned_of():
    plan = Plan(synthetic.catalog(40, strong=0.0), one_stage(steps=200), synthetic.plan_config(), seed=0)
    (report,) = plan.report()
    assert any("the 1 windows eligible for text+reference+audio+pose are drawn" in line for line in report.warnings)
    assert report.warnings[0] in format_report([report])


def test_steps_outside_the_schedule_and_bad_seeds_are_refused(plan):
    for step in (-1, SCHEDULE.total_steps):
        with pytest.raises(IndexError):
            plan.batch(step)
    with pytest.raises(ValueError, match="seed -1"):
        Plan(CATALOG, SCHEDULE, synthetic.plan_config(), seed=-1)


def test_a_million_windows_are_planned_at_speed(record_property, capsys):
    table = synthetic.catalog(1_000_000)
    config = synthetic.plan_config(
        sequences_per_step=64, latent_tokens=4096, text_tokens=1024, windows=64, latent_frames=256, frames=1600
    )
    start = time.process_time()
    plan = Plan(table, one_stage(steps=100_000), config, seed=0)
    plan.batch(54_321)
    first_s = time.process_time() - start
    start = time.process_time()
    windows = sum(len(plan.batch(step).windows) for step in range(70_016, 70_048))
    rate = windows / (time.process_time() - start)
    with capsys.disabled():
        print(f"\n1e6 windows: first batch after {first_s:.1f} s, then {rate:,.0f} windows/s")
    # A pod with 64 sequences a step asks for some thousand windows a second; ten times that is easily met on one core.
    assert first_s < 60 and rate > 5000
