"""The table of the field's measures: numbers with their n, and rows without a number that say why."""

import json

import numpy as np
import pytest

from omnihuman_jax.data.keypoints import NUM_KEYPOINTS
from omnihuman_jax.evaluation import field_table
from omnihuman_jax.evaluation.field_table import Pair
from omnihuman_jax.reporting import pairs_page

T = 30


def video(seed: int, *, amount: float = 1.0, without: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Arrays of a video whose face and body move by `amount`."""
    rng = np.random.default_rng(seed)
    still = np.random.default_rng(0).uniform(100, 200, (1, 478, 3))
    body = np.random.default_rng(1).uniform(0, 200, (T, NUM_KEYPOINTS, 3))
    body[..., 2] = 0.8
    body[..., :2] += amount
    arrays = {
        "mesh_TK3": still + amount * rng.standard_normal((T, 478, 3)),
        "keypoints_TJ3": body,
        "height": np.array(200),
        "loudness_T": rng.uniform(size=T),
        "silent_T": np.arange(T) % 10 > 6,
        "identity_N128": 0.1 * rng.standard_normal((3, 128)),
        "sync_3": np.array([5.0 * amount, 8.0, 0.0]),
        "inception_ND": rng.standard_normal((6, 8)) + amount,
        "i3d_ND": rng.standard_normal((2, 4)),
        "psnr_db": np.array(20.0 + amount),
    }
    return {name: array for name, array in arrays.items() if name not in without}


def pairs(count: int = 8, **made: object) -> list[Pair]:
    return [
        Pair(name=f"w{i}", person=f"p{i % 4}", made=video(100 + i, **made), true=video(i))  # type: ignore[arg-type]
        for i in range(count)
    ]


NO_SCORERS = {f"score_{name}": "no network" for name in field_table.SCORERS}


def by_name(rows: list[field_table.FieldRow]) -> dict[str, field_table.FieldRow]:
    return {row.name: row for row in rows}


def test_every_number_has_its_interval_and_n():
    rows = by_name(field_table.table(pairs(), NO_SCORERS))
    measured = [row for row in rows.values() if not row.missing]
    assert len(measured) == len(field_table.MEASURES) + 2
    for row in measured:
        assert row.made is not None and row.made.low <= row.made.value <= row.made.high, row.name
        assert (row.made.windows, row.made.people) == (8, 4), row.name
        assert row.true is None or (row.true.low <= row.true.value <= row.true.high and row.true.windows == 8)
    assert rows["PSNR"].made.value == pytest.approx(21) and rows["PSNR"].true is None
    assert rows["Sync-C"].made.value == rows["Sync-C"].true.value == 5 and rows["Sync-C"].closeness.value == 1
    assert rows["FID"].note == "48 made and 48 true frames: biased upwards below 2048, compare only with as many"
    assert "16 made and 16 true clips of 16 frames" in rows["FVD"].note
    assert rows["HKC (ours)"].made.value == pytest.approx(0.8)
    json.dumps([row.to_json() for row in rows.values()])


def test_a_stiff_face_is_far_from_the_truth():
    rows = by_name(field_table.table(pairs(amount=0.5), NO_SCORERS))
    # Half the motion: a quarter of the variance, half of the change from frame to frame.
    assert rows["lip dynamics (THEval)"].closeness.value == pytest.approx(0.25, abs=0.03)
    assert rows["eyebrow dynamics (THEval)"].closeness.value == pytest.approx(0.5, abs=0.05)
    assert rows["Sync-C"].closeness.value == 0.5
    assert rows["AKD"].made.value == pytest.approx(100 * 0.5 * 2**0.5 / 200)


def test_what_is_missing_has_a_reason_and_no_number():
    missing = NO_SCORERS | {"inception_ND": "needs weights", "sync_3": "needs SyncNet"}
    rows = by_name(field_table.table(pairs(without=("inception_ND", "sync_3")), missing))
    for name, reason in (("FID", "needs weights"), ("Sync-C", "needs SyncNet"), ("IQA", "no network")):
        assert rows[name].missing == reason and rows[name].made is None and rows[name].true is None
        assert pairs_page.cells(rows[name].to_json())[1:] == ["-", "-", "-", "-", reason]
    assert rows["FVD"].made is not None


def test_windows_that_show_nothing_are_counted():
    some = pairs(6)
    some[0] = Pair(name="x", person="p0", made=video(7, without=("loudness_T",)), true=video(0))
    some[1].made["mesh_TK3"][:] = np.nan  # type: ignore[index]
    rows = by_name(field_table.table(some, NO_SCORERS))
    assert rows["lip-loudness gap (ours)"].made.windows == 4
    assert rows["lip-loudness gap (ours)"].note == "4 of 6 windows show what it needs"
    assert rows["lip dynamics (THEval)"].made.windows == 5
    silent = [Pair(name=p.name, person=p.person, made=video(9, without=("loudness_T",)), true=p.true) for p in some]
    assert "face, hand, sound" in by_name(field_table.table(silent, NO_SCORERS))["silent-lip movement (ours)"].missing


def test_an_adapter_gets_its_row():
    scored = pairs(4)
    for pair in scored:
        pair.made["score_IQA"], pair.true["score_IQA"] = np.array(3.0), np.array(4.0)  # type: ignore[index]
        pair.made["score_mine"], pair.true["score_mine"] = np.array(1.0), np.array(1.0)  # type: ignore[index]
    missing = {name: reason for name, reason in NO_SCORERS.items() if name != "score_IQA"}
    rows = by_name(field_table.table(scored, missing, ["IQA", "mine"]))
    assert rows["IQA"].made.value == 3 and rows["IQA"].closeness.value == 0.75 and rows["mine"].made.value == 1
    assert rows["ASE"].missing == "no network"


def test_no_pairs_is_an_error():
    with pytest.raises(ValueError, match="no pair of videos"):
        field_table.table([], {})
