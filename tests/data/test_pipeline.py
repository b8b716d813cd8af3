"""The pipeline on a real dataset on disk: content, hosts, resume, damage, and data that does not belong together."""

import dataclasses
import logging
import shutil

import jax
import numpy as np
import pytest

from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.packing import pack_sequence, window_latents
from omnihuman_jax.data.pipeline import make_loader, window_input
from omnihuman_jax.data.plan import Plan
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.serving.pictures_omnihuman import unpatchify
from omnihuman_jax.stages import paper_stages
from tests.data import synthetic

TABLE = synthetic.catalog(40)
CONFIG = synthetic.plan_config(chunk_steps=8)
SHAPE = synthetic.shape(CONFIG)
SCHEDULE = paper_stages(steps=(6, 5, 9))
DAMAGED = 0  # the one window that is certain to be eligible for everything, so it comes often


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return synthetic.write_dataset(tmp_path_factory.mktemp("dataset"), TABLE, num_shards=2)


@pytest.fixture(scope="module")
def damaged(directory, tmp_path_factory):
    copy = shutil.copytree(directory, tmp_path_factory.mktemp("damaged") / "dataset")
    synthetic.damage(copy, TABLE, DAMAGED)
    return copy


def loader(directory, index=0, count=1, start=0, *, threads=2, shape=SHAPE, config=CONFIG):
    records = open_records(directory)
    plan = Plan(Catalog.load(directory), SCHEDULE, config, seed=3)
    return make_loader(plan, records, records.spec, shape, index, count, start, threads)


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def joined(parts):
    """The rows of several hosts."""
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


@pytest.fixture(scope="module")
def batches(directory):
    return list(loader(directory))


def test_every_step_once_in_the_batch_layout(batches):
    assert len(batches) == SCHEDULE.total_steps
    for batch in batches:
        found = jax.tree.map(lambda array: (array.shape, array.dtype), batch)
        assert dataclasses.asdict(found) == dataclasses.asdict(
            jax.tree.map(lambda spec: (spec.dims, spec.dtype), SHAPE.arrays(4))
        )
        assert batch.latents_BLC.dtype == batch.text_BSE.dtype == batch.audio_BTE.dtype == np.float16  # as stored


def test_batches_hold_what_the_plan_says_and_the_records_contain(batches):
    plan = Plan(TABLE, SCHEDULE, CONFIG, seed=3)
    spec = synthetic.spec()
    for step, batch in enumerate(batches):
        for b, sequence in enumerate(plan.batch(step).sequences):
            for g, placed in enumerate(sequence):
                assert batch.window_BG[b, g] == placed.row and batch.slot_BG[b, g] == placed.slot
                assert tuple(batch.active_BG4[b, g]) == placed.active.mask() and batch.motion_BG[b, g] == placed.motion
                record = synthetic.record(TABLE, placed.row)
                np.testing.assert_array_equal(window_latents(batch, batch.latents_BLC, b, g), record.latents_FHWC)
                text = batch.text_BSE[b][batch.text_segment_ids_BS[b] == g + 1]
                has_text = Condition.TEXT in placed.active
                np.testing.assert_array_equal(text, record.text_SE if has_text else spec.empty_text_SE)
                np.testing.assert_array_equal(
                    batch.pooled_BGE[b, g], record.pooled_E if has_text else spec.empty_pooled_E
                )
            assert (batch.window_BG[b, len(sequence) :] == -1).all()


def test_the_chosen_reference_is_the_one_packed():
    plan = Plan(TABLE, SCHEDULE, CONFIG, seed=3)
    chosen = [w for step in range(6) for w in plan.batch(step).windows if w.reference >= 0]
    assert {w.reference for w in chosen} == {0, 1, 2}
    for placed in chosen:
        record = synthetic.record(TABLE, placed.row)
        out = pack_sequence([window_input(record, placed, synthetic.spec())], SHAPE)
        reference = unpatchify(out.latents_BLC[out.is_reference_BL], *record.latents_FHWC.shape[1:3])
        np.testing.assert_array_equal(reference[0], record.references_RHWC[placed.reference])


@pytest.mark.parametrize("count", [2, 4])
def test_hosts_read_their_rows_of_the_same_global_batch(directory, batches, count):
    hosts = [loader(directory, index, count) for index in range(count)]
    for whole in batches:
        parts = [next(host) for host in hosts]
        assert_equal(joined(parts), whole)


@pytest.mark.parametrize("start", [1, 6, 8, 11, 19])
def test_resuming_at_a_step_gives_the_batches_that_were_to_come(directory, batches, start):
    made = list(loader(directory, start=start, threads=1))
    assert len(made) == len(batches) - start
    for left, right in zip(made, batches[start:]):
        assert_equal(left, right)


def test_the_end_of_the_schedule_is_the_end(directory):
    ended = loader(directory, start=SCHEDULE.total_steps)
    assert ended.step == SCHEDULE.total_steps and list(ended) == []


def test_closing_stops_it(directory):
    made = loader(directory)
    next(made)
    made.close()
    with pytest.raises(StopIteration):
        next(made)


def test_a_damaged_record_is_a_counted_empty_slot_and_nothing_else_moves(directory, damaged, batches, caplog):
    made = loader(damaged)
    with caplog.at_level(logging.WARNING):
        got = list(made)
    expected = 0
    for batch, whole in zip(got, batches):
        lost = whole.window_BG == DAMAGED
        expected += int(lost.sum())
        assert (batch.window_BG[lost] == -2).all() and not batch.active_BG4[lost].any()
        for name in ("window_BG", "slot_BG", "active_BG4", "motion_BG", "pooled_BGE"):
            left, right = getattr(batch, name), getattr(whole, name)
            np.testing.assert_array_equal(left[~lost], right[~lost], err_msg=name)
        for b, g in zip(*np.nonzero(whole.window_BG >= 0)):
            if lost[b, g]:
                assert (
                    not (batch.segment_ids_BL[b] == g + 1).any() and not (batch.text_segment_ids_BS[b] == g + 1).any()
                )
            else:
                left, right = (window_latents(x, x.latents_BLC, b, g) for x in (batch, whole))
                np.testing.assert_array_equal(left, right)
                own = [x.token_BL[b][x.segment_ids_BL[b] == g + 1] for x in (batch, whole)]
                np.testing.assert_array_equal(*own)  # the noise of a window stays
    assert expected > 3 and made.placeholders == {"w0": expected}
    (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert "window w0" in line and "hash mismatch" in line


def test_a_damaged_record_is_the_same_hole_on_every_number_of_hosts(damaged):
    whole = list(loader(damaged))
    hosts = [loader(damaged, index, 2) for index in range(2)]
    for batch in whole:
        parts = [next(host) for host in hosts]
        assert_equal(joined(parts), batch)
    lost = sum((host.placeholders for host in hosts), start=type(hosts[0].placeholders)())
    alone = loader(damaged)
    list(alone)
    assert lost == alone.placeholders


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_tokens": 161}, "text_tokens 161, not 160"),
        ({"text_width": 7}, "text_width 7, not 6"),
        ({"audio_width": 7}, "audio_width 7, not 6"),
        ({"keypoints": 5}, "keypoints 5, not 4"),
        ({"patch_channels": 12}, "patch_channels 12, not 16"),
        ({"pooled_width": 4}, "pooled_width 4, not 5"),
    ],
)
def test_a_layout_that_does_not_fit_the_data_is_refused_at_once(directory, changes, message):
    with pytest.raises(ValueError, match=message):
        loader(directory, shape=dataclasses.replace(SHAPE, **changes))


def test_wrong_hosts_steps_and_margins_are_refused(directory, caplog):
    for index, count in ((0, 3), (2, 2), (-1, 2)):
        with pytest.raises(ValueError, match="4 sequences a step"):
            loader(directory, index, count)
    with pytest.raises(ValueError, match=r"start_step 21 outside the schedule's \[0, 20\]"):
        loader(directory, start=21)
    with pytest.raises(ValueError, match="read_threads"):
        loader(directory, threads=0)
    with pytest.raises(ValueError, match=r"plan\.margin is 2, windows take 5"):
        loader(directory, config=dataclasses.replace(CONFIG, margin=2))
    with caplog.at_level(logging.WARNING):
        loader(directory, shape=dataclasses.replace(SHAPE, audio_tokens=4 + 2 * 7))
    assert "7 frames on each side of a window, but the dataset stores 5" in caplog.text


def test_a_catalog_of_another_dataset_is_refused(directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "dataset")
    more = synthetic.catalog(41)
    more.save(copy)
    with pytest.raises(ValueError, match="names record 40, there are 40"):
        loader(copy)
    dataclasses.replace(TABLE, window_id=[f"other{i}" for i in range(40)]).save(copy)
    with pytest.raises(ValueError, match=r"is window w\d+, but the catalog says other\d+"):
        list(loader(copy))
    dataclasses.replace(TABLE, empty_text_tokens=3).save(copy)
    with pytest.raises(ValueError, match="empty_text_tokens"):
        loader(copy)
