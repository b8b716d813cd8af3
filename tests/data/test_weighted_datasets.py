"""Several data sets in one run: shares as the weights say, a step from its number alone, and what cannot be mixed."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from omnihuman_jax import cli
from omnihuman_jax.conditions import ConditionSet
from omnihuman_jax.config import DataConfig, ExperimentConfig, changed_fields, from_json, to_json
from omnihuman_jax.data import joined_records
from omnihuman_jax.data.draws import StageDraws
from omnihuman_jax.data.joined_catalog import JoinedCatalog
from omnihuman_jax.data.joined_records import joined_spec, open_datasets
from omnihuman_jax.data.pipeline import make_loader
from omnihuman_jax.data.plan import Plan, format_report
from omnihuman_jax.data.stage_windows import StageWindows
from omnihuman_jax.data.weighted_datasets import WeightedDataset, check_rows, load_catalog
from omnihuman_jax.stages import MODES, Stage, StageSchedule
from tests.data import synthetic

TALKS, SONGS, WALKS = synthetic.catalog(300), synthetic.catalog(120, seed=1), synthetic.catalog(200, seed=2)
WALKS = dataclasses.replace(
    WALKS, eligible=WALKS.eligible & ConditionSet.from_labels(["text", "reference", "pose"]).bits
)


def joined(*weights: float) -> JoinedCatalog:
    """Talks and songs serve every set; walks, no set with audio."""
    return JoinedCatalog(["talks", "songs", "walks"][: len(weights)], weights, [TALKS, SONGS, WALKS][: len(weights)])


def stage(**values) -> Stage:
    return Stage(**({"name": "s", "steps": 100, "audio": 0.5, "pose": 0.25} | values))


def planned(catalog, *stages: Stage, **config) -> Plan:
    return Plan(catalog, StageSchedule(rows=stages or (stage(),)), synthetic.plan_config(**config), seed=5)


def draws(catalog: JoinedCatalog, made: Stage) -> StageDraws:
    return StageDraws(catalog, made, 0, StageWindows.of(catalog, made), 3, 400)


PINNED = {
    "product": "047b435630e1ac581efd5e2f482f831b1456998b4ed1d18d0c6acea822d3f540",
    "nested": "0f7e50d8a04f0f9bda1259fe6398f918ccfeeb7feb9de618ee4fe08ec59436a7",
    "keep": "1cce0331bc812661d2af9c5e080304cd226125113ef3718f09e52128ac480567",
}


@pytest.mark.parametrize("mode", MODES)
def test_the_bits_of_a_plan_change_with_its_version_alone(mode):
    """Pinned at version 3; also of one data set with a weight, by itself."""
    rows = (
        Stage(name="a", steps=40, audio=0.5, pose=0.25, mode=mode),
        Stage(name="b", steps=33, audio=0.3, mode=mode, min_frames=5),
    )
    for table in (TALKS, JoinedCatalog(["talks"], [0.3], [TALKS])):
        plan = planned(table, *rows)
        batches = [plan.batch(step) for step in range(73)]
        told = [
            [(w.row, w.active.bits, w.motion, w.reference, w.slot) for w in batch.windows]
            + [[len(sequence) for sequence in batch.sequences]]
            for batch in batches
        ]
        assert hashlib.sha256(json.dumps(told).encode()).hexdigest() == PINNED[mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weights", [(0.3, 0.7), (5.0, 1.0, 2.0), (0.001, 0.999)])
def test_each_active_set_is_drawn_from_the_data_sets_by_their_weights(mode, weights):
    """Over 100 blocks: half a point in all; and of a set, half a point and what a handful of draws make."""
    catalog, made = joined(*weights), stage(mode=mode)
    windows = StageWindows.of(catalog, made)
    drawn = draws(catalog, made).range(0, 40_000)
    of = catalog.dataset_of(drawn.row)
    seen = np.bincount(of, minlength=len(weights)) / len(of)
    np.testing.assert_allclose(seen, windows.target(made), atol=0.005)
    assert not (drawn.active & ~catalog.eligible[drawn.row]).any()
    if mode == "keep":
        return
    for bits in np.unique(drawn.active):
        mine = of[drawn.active == bits]
        share = np.bincount(mine, minlength=len(weights)) / len(mine)
        np.testing.assert_allclose(share, windows.shares(made)[bits], atol=0.005 + 8 / len(mine))
        if bits & 4 and len(weights) == 3:
            assert share[2] == 0  # no walk has sound: talks and songs have its share, 5 to 1
            np.testing.assert_allclose(windows.shares(made)[bits], [5 / 6, 1 / 6, 0])


def test_a_block_alone_has_the_shares_rounded_up_or_down():
    drawn = draws(joined(0.3, 0.7), stage())
    for number in (0, 7, 12_345):
        block = drawn.block(number)
        of = joined(0.3, 0.7).dataset_of(block.row)
        for bits in np.unique(block.active):
            mine = of[block.active == bits]
            assert abs((mine == 0).sum() - 0.3 * len(mine)) < 1


def test_windows_of_a_data_set_are_used_up_before_any_comes_back():
    """A quarter of the draws go through the smaller data set, window by window."""
    small, large = (synthetic.catalog(n, latent_frames=(5,)) for n in (100, 900))
    catalog = JoinedCatalog(["small", "large"], [1, 3], [small, large])
    made = stage(text=1.0, reference=1.0, audio=0.0, pose=0.0)
    rows = draws(catalog, made).range(0, 4000).row
    for part, size in ((rows[rows < 100], 100), (rows[rows >= 100], 900)):
        for number in range(len(part) // size):
            assert len(set(part[size * number : size * (number + 1)])) == size
    assert (rows < 100).sum() == 1000


def test_a_batch_alone_is_the_batch_in_order():
    rows = (stage(steps=50), stage(name="u", mode="keep", steps=20))
    plan = planned(joined(5, 1, 2), *rows)
    batches = [plan.batch(step) for step in range(70)]
    for step in (33, 49, 69):
        assert planned(joined(5, 1, 2), *rows).batch(step) == batches[step]


def test_the_fingerprint_sees_names_weights_and_order_but_not_the_weights_scale():
    made = planned(joined(1, 2)).fingerprint()
    assert made == planned(joined(2, 4)).fingerprint() != planned(joined(2, 1)).fingerprint()
    for other in (
        JoinedCatalog(["talks", "songs2"], [1, 2], [TALKS, SONGS]),
        JoinedCatalog(["songs", "talks"], [2, 1], [SONGS, TALKS]),
        TALKS,
    ):
        assert planned(other).fingerprint() != made


def test_the_report_has_shares_and_repeats_by_data_set_and_warns_of_them():
    plan = planned(joined(1, 99), stage(steps=200))
    (report,) = plan.report()
    talks, songs = report.datasets
    assert (talks.target, songs.target) == pytest.approx((0.01, 0.99))
    assert songs.realised == pytest.approx(0.99, abs=0.005) and talks.realised + songs.realised == pytest.approx(1)
    asked = sum((one.feasibility.eligible_repeats * one.feasibility.counts).sum() for one in report.datasets)
    assert asked == pytest.approx(report.windows)
    assert (report.feasibility.eligible_repeats * report.feasibility.counts).sum() == pytest.approx(report.windows)
    text = format_report([report])
    assert f"data set songs: {songs.realised:.2%} of the windows (target 99.00%)" in text
    told = [line for line in report.warnings if "windows of data set 'songs' eligible for" in line]
    assert told and all("lower its weight" in line and " of them for " in line for line in told)
    assert not any("'talks'" in line for line in report.warnings), "300 windows, a hundredth of the draws"
    shares = plan.dataset_shares(range(50, 60))
    of = plan.catalog.dataset_of(np.asarray([w.row for step in range(50, 60) for w in plan.batch(step).windows]))
    assert shares == {
        "dataset/talks": (of == 0).mean(),
        "dataset/songs": (of == 1).mean(),
        "dataset_target/talks": pytest.approx(0.01),
        "dataset_target/songs": pytest.approx(0.99),
    }
    assert planned(TALKS).dataset_shares(range(3)) == {}


def test_a_set_that_no_data_set_serves_is_an_error_with_the_numbers():
    silent = dataclasses.replace(SONGS, eligible=SONGS.eligible & 3)
    with pytest.raises(ValueError) as error:
        planned(JoinedCatalog(["walks", "silent"], [1, 1], [WALKS, silent]))
    message = str(error.value)
    assert "\n" not in message and "but 0 of 320 training windows (by data set: walks 200, silent 120)" in message


def test_a_data_set_that_is_never_drawn_is_warned_of():
    empty = dataclasses.replace(SONGS, eligible=SONGS.eligible * 0)
    (report,) = planned(JoinedCatalog(["talks", "empty"], [1, 1], [TALKS, empty])).report()
    assert any("no window of data set 'empty' is ever drawn" in line for line in report.warnings)
    assert report.datasets[0].realised == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", 0.0, "")], r"data.datasets\[0\].weight of 'a' must be a finite number above 0, not 0"),
        ([("a", 1.0, ""), ("b", -1.0, "")], r"data.datasets\[1\].weight of 'b' .* not -1"),
        ([("a", float("nan"), "")], "not nan"),
        ([("a", float("inf"), "")], "not inf"),
        ([("", 1.0, "x")], r"data.datasets\[0\].path is not set"),
        ([("x/a", 1.0, ""), ("y/a/", 1.0, "")], "two data sets are called 'a'; give each a `name`"),
        ([("x", 1.0, "n"), ("y", 1.0, "n")], "two data sets are called 'n'"),
        ([("ftp://x/y", 1.0, "")], r"data.datasets\[0\].path is ftp://x/y: ftp:// is not supported"),
        ([(f"d{n}", 1.0, "") for n in range(257)], "257 rows; a run draws from at most 256"),
    ],
)
def test_rows_that_nothing_can_be_drawn_by_are_one_line(rows, message):
    with pytest.raises(ValueError, match=message) as error:
        check_rows([WeightedDataset(path=path, weight=weight, name=name) for path, weight, name in rows])
    assert "\n" not in str(error.value)


def test_one_data_set_or_several_but_not_both():
    row = WeightedDataset(path="a")
    with pytest.raises(ValueError, match=r"data\.dataset is b and data\.datasets has 1 rows; set one of the two"):
        DataConfig(dataset="b", datasets=(row,)).validate()
    assert DataConfig(dataset="b").rows == (WeightedDataset(path="b"),) and DataConfig().rows == ()
    assert DataConfig(datasets=(row, WeightedDataset(path="c"))).first == "a" and DataConfig().first == ""


def test_a_resume_may_find_the_data_sets_elsewhere_but_not_weighted_otherwise():
    def config(**row) -> dict:
        rows = (WeightedDataset(**({"path": "x", "name": "a"} | row)), WeightedDataset(path="y"))
        made = ExperimentConfig(data=DataConfig(datasets=rows))
        assert from_json(to_json(made)) == made
        return to_json(made)

    assert changed_fields(config(), config(path="z")) == []
    assert changed_fields(config(), config(weight=2.0)) == ["data.datasets[0].weight: 1.0 -> 2.0"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("codec", "wan"),
        ("latent_channels", 8),
        ("text_encoder", "other"),
        ("speech_encoder", "other"),
        ("speech_layers", (0, 1)),
        ("margin", 3),
        ("max_text_tokens", 64),
        ("codec_options", {"tile": 4}),
        ("keypoint_names", ("a", "b", "c", "d")),
    ],
)
def test_data_sets_of_other_features_are_refused_in_one_line(field, value):
    other = dataclasses.replace(synthetic.spec(), **{field: value})
    with pytest.raises(ValueError, match=f"data sets 'a' and 'b' cannot be trained on together: .*{field}") as error:
        joined_spec(["a", "b"], [synthetic.spec(), other])
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """Two data sets whose windows have the same ids, and rows for them."""
    tables = synthetic.catalog(40, latent_frames=(1, 3)), synthetic.catalog(24, seed=1, latent_frames=(1, 3))
    folders = [synthetic.write_dataset(tmp_path_factory.mktemp(name), table) for name, table in zip("ab", tables)]
    rows = [WeightedDataset(path=str(folder), weight=w, name=n) for folder, w, n in zip(folders, (1.0, 3.0), "ab")]
    return tables, folders, rows


def load(rows, index: int = 0, count: int = 1):
    records, catalog = open_datasets(rows)
    config = synthetic.plan_config(sequences_per_step=4, chunk_steps=8)
    plan = Plan(catalog, StageSchedule(rows=(stage(steps=16),)), config, seed=11)
    return plan, make_loader(plan, records, records.spec, synthetic.shape(config), index, count, read_threads=2)


def test_batches_have_the_windows_of_the_data_set_that_was_drawn(on_disk):
    tables, _, rows = on_disk
    plan, loader = load(rows)
    seen = 0
    for step, batch in enumerate(loader):
        for number, sequence in enumerate(plan.batch(step).sequences):
            for group, placed in enumerate(sequence):
                number_of, row = plan.catalog.place(placed.row)
                text = synthetic.record(tables[number_of], row).text_SE
                own = batch.text_segment_ids_BS[number] == group + 1
                if placed.active.bits & 1:
                    np.testing.assert_array_equal(batch.text_BSE[number][own], text)
                    seen += number_of
    assert seen > 50


def test_two_hosts_make_the_batches_of_one(on_disk):
    *_, rows = on_disk
    alone = list(load(rows)[1])
    halves = [list(load(rows, index, 2)[1]) for index in range(2)]
    for whole, *parts in zip(alone, *halves, strict=True):
        for field in dataclasses.fields(whole):
            merged = np.concatenate([getattr(part, field.name) for part in parts])
            np.testing.assert_array_equal(merged, getattr(whole, field.name))


def test_a_record_that_cannot_be_read_is_told_with_its_data_set(tmp_path, caplog):
    table = synthetic.catalog(24, seed=1, latent_frames=(1, 3))
    rows = [
        WeightedDataset(path=str(synthetic.write_dataset(tmp_path / name, table)), weight=weight, name=name)
        for name, weight in (("good", 1.0), ("bad", 3.0))
    ]
    synthetic.damage(tmp_path / "bad", table, 5)
    plan, loader = load(rows)
    records = loader._batches.records
    for _ in loader:
        pass
    assert list(loader.placeholders) == ["bad/w5"] and loader.placeholders["bad/w5"] > 1
    (key,) = records.unreadable
    assert plan.catalog.row_of(key) == 24 + 5 and records.locate(key) == (tmp_path / "bad", 5)
    assert f"record 5 (window bad/w5) of {tmp_path / 'bad'} is left out" in caplog.text


def test_records_of_another_data_set_are_refused(on_disk, tmp_path):
    """The catalogs are those of the rows, in their order; a mixed-up one names its folder."""
    tables, folders, rows = on_disk
    records, _ = open_datasets(rows)
    wrong = JoinedCatalog(["a", "b"], [1, 3], [tables[0], tables[0]])
    with pytest.raises(ValueError, match=f"{folders[1]}: the catalog names record 39, there are 24"):
        records.covers(wrong)


def test_one_row_is_the_data_set_itself(on_disk):
    tables, _, rows = on_disk
    assert load_catalog(rows[:1]).fingerprint() == tables[0].fingerprint()
    records, catalog = open_datasets(rows[:1])
    assert not isinstance(records, joined_records.JoinedRecords) and not isinstance(catalog, JoinedCatalog)


CONFIG = """
from omnihuman_jax.data.weighted_datasets import WeightedDataset
from tests.training import tiny_config


def get_config():
    config = tiny_config.get_config()
    config.data.datasets = tuple(WeightedDataset(path=path, name=name) for path, name in {rows!r})
    return config
"""


def test_omnihuman_plan_tells_shares_and_repeats_by_data_set(on_disk, tmp_path, capsys):
    *_, rows = on_disk
    (tmp_path / "mix.py").write_text(CONFIG.format(rows=[(row.path, row.name) for row in rows]))
    flags = ["plan", "--config", str(tmp_path / "mix.py"), "--config.data.datasets[1].weight=3"]
    assert cli.main(flags) == 0
    told = capsys.readouterr().out
    assert told.count("data set a: ") == told.count("data set b: ") == 2 and "(target 75.00%)" in told
    assert "    drawn for: " in told and "    eligible: text+reference " in told
    assert cli.main([*flags, "--config.data.datasets[0].weight=0"]) != 0
    assert "data.datasets[0].weight of 'a' must be a finite number above 0, not 0" in capsys.readouterr().err
