"""Samples while a run trains: they change no bit, are compiled once, have sound, are counted, and are kept cheap."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from omnihuman_jax import sharding
from omnihuman_jax.commands.train import train
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.joined_records import open_datasets
from omnihuman_jax.data.plan import PlanConfig
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import shard_path, write_dataset_metadata, write_shard
from omnihuman_jax.data.weighted_datasets import WeightedDataset
from omnihuman_jax.models import mmdit
from omnihuman_jax.runtime import files
from omnihuman_jax.sampling import training_samples, window_inputs
from omnihuman_jax.sampling.evaluators import ConditionGain
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.stages import Stage, StageSchedule
from omnihuman_jax.telemetry.goodput import read_goodput
from omnihuman_jax.telemetry.metrics import LoggingConfig
from omnihuman_jax.training.optimizer import EmaConfig, OptimizerConfig
from omnihuman_jax.training.sample_budget import SampleBudget, SamplesConfig
from tests import quick_xla
from tests.data import synthetic
from tests.sampling.tiny_run import TinyRun
from tests.training import runs
from tests.training.tiny import random_params

# The files of the tiny run's windows.
CLIPS = (files.safe_name("clip0/0"), files.safe_name("clip1/0"))


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly() -> Iterator[None]:
    with quick_xla.compiled_quickly():
        yield


@pytest.fixture(scope="module")
def signals(tmp_path_factory: pytest.TempPathFactory, talking: Path) -> Path:
    """A picture and a voice of one name."""
    folder = tmp_path_factory.mktemp("signals")
    frames = media_omnihuman.read_image(talking)
    from PIL import Image

    Image.fromarray(frames).save(folder / "face.png")
    wave = media_omnihuman.read_audio(talking, required=True)
    assert wave is not None
    import soundfile

    soundfile.write(folder / "face.wav", wave, 16_000)
    return folder


def config_of(tiny: TinyRun, **samples: Any):
    """Six steps on all 8 devices, a line each; rounds as the test says."""
    config = dataclasses.replace(tiny.config, data=dataclasses.replace(tiny.config.data))
    config.data.plan = PlanConfig(
        sequences_per_step=8, latent_tokens=64, text_tokens=32, windows=2, latent_frames=8, frames=40, margin=2,
        chunk_steps=2, block=8,
    )  # fmt: skip
    config.data.read_threads = 1
    config.mesh = sharding.MeshConfig(data=4, fsdp=2)
    rows = (
        Stage(name="audio", steps=2, text=0.9, reference=0.8, audio=0.5),
        Stage(name="all", steps=4, text=0.9, reference=0.8, audio=0.5, pose=0.25),
    )
    config.stages = StageSchedule(rows=rows)
    config.logging = LoggingConfig(interval=1, tensorboard=False)
    config.optimizer = OptimizerConfig(learning_rate=2e-2, warmup_steps=1)
    config.ema = EmaConfig(decay=0.5)
    config.samples = SamplesConfig(max_share=1.0, steps=2, guidance_scale=1.0, batch=2, **samples)
    return config


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny: TinyRun, signals: Path) -> tuple[Path, Path]:
    """The same run without samples and with them; both states have equal bits."""
    root = tmp_path_factory.mktemp("runs")
    plain = train(config_of(tiny), root / "plain", progress=False)
    expected = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(plain)]
    seen = train(
        config_of(tiny, interval=2, windows=2, gain_windows=4, signals=str(signals)), root / "seen", progress=False
    )
    assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(seen)] == expected
    return root / "plain", root / "seen"


@pytest.mark.slow
def test_training_is_the_same_to_the_last_bit(pair: tuple[Path, Path]) -> None:
    plain, seen = (runs.records(run) for run in pair)
    assert len(plain) == 6 and all(np.isfinite(line["loss"]) for line in plain)
    measured = [{name for name in line if name.startswith(("gain/", "harm/"))} for line in seen]
    assert measured[1] == measured[5] >= {"gain/audio", "gain/audio_low", "harm/audio", "gain/pose", "harm/pose"}
    assert measured[0] == measured[2] == set()
    assert [{k: v for k, v in line.items() if not k.startswith(("gain/", "harm/"))} for line in seen] == plain


@pytest.mark.slow
def test_the_run_folder_has_every_round_with_its_sound(pair: tuple[Path, Path]) -> None:
    folder = pair[1] / training_samples.FOLDER
    about = json.loads((folder / "samples.json").read_text())
    assert set(about) == {*CLIPS, "face"} and about["face"]["driven_by"] == "reference+audio"
    assert about[CLIPS[0]]["split"] == "train"
    rounds = sorted(path.name for path in folder.glob("step_*"))
    assert rounds == [f"step_{step:08d}" for step in (0, 2, 4, 6)]
    for name in rounds:
        written = sorted(path.name for path in (folder / name).iterdir())
        assert written == sorted(f"{subject}.{kind}" for subject in about for kind in ("mp4", "png"))
    probe = media_omnihuman.probe(folder / rounds[-1] / "face.mp4")
    assert (probe.frames, probe.audio_rate) == (9, 16_000)
    wave = media_omnihuman.read_audio(folder / rounds[-1] / "face.mp4")
    assert wave is not None and np.abs(wave).max() > 0.1
    first, last = ((folder / name / "face.png").read_bytes() for name in (rounds[0], rounds[-1]))
    assert first != last, "the averaged weights have moved"


@pytest.mark.slow
def test_rounds_are_counted(pair: tuple[Path, Path]) -> None:
    plain, seen = (read_goodput(run) for run in pair)
    assert plain.seconds["samples"] == 0.0 < seen.seconds["samples"]
    assert sum(seen.seconds.values()) == pytest.approx(seen.wall)
    assert [attempt.last for attempt in seen.attempts] == [6]


def opened(
    tiny: TinyRun, datasets: tuple[WeightedDataset, ...] = (), **changes: Any
) -> tuple[training_samples.TrainingSamples, Any]:
    """Of the tiny run on one device, and its weights; on these data sets instead of its own, where there are any."""
    config = config_of(tiny, interval=1, **changes)
    if datasets:
        config.data.dataset, config.data.datasets = "", datasets
    records, _ = open_datasets(config.data.rows)
    mesh = sharding.create_mesh(sharding.MeshConfig(data=1), jax.devices()[:1])
    shapes, axes = mmdit.abstract_params(config.model)
    places = jax.tree.map(lambda leaf, axis: sharding.named_sharding(mesh, axis, leaf.shape), shapes, axes)
    with jax.set_mesh(mesh):
        samples = training_samples.open_training_samples(config, mesh, places, records, tiny.run)
        params = jax.device_put(random_params(config.model), places)
    assert samples is not None
    return samples, params


def test_a_mix_is_sampled_from_all_its_data_sets(tiny: TinyRun, tmp_path: Path) -> None:
    """The second has the same windows under other ids, turned upside down."""
    source, catalog = open_records(tiny.dataset), Catalog.load(tiny.dataset)
    windows = [
        dataclasses.replace(r, window_id=f"song-{r.window_id}", clip_id=f"song-{r.clip_id}", audio_TE=-r.audio_TE)
        for index in range(len(source))
        if (r := source[index]) is not None
    ]
    songs = tmp_path / "songs"
    shard = write_shard(shard_path(songs, 0, 1), windows, source.spec)
    write_dataset_metadata(songs, source.spec, [shard])
    names = {name: [getattr(window, name) for window in windows] for name in ("window_id", "clip_id")}
    dataclasses.replace(catalog, **names).save(songs)
    mix = (WeightedDataset(path=str(tiny.dataset), name="talks"), WeightedDataset(path=str(songs), weight=3.0))
    samples, _ = opened(tiny, mix, windows=3, gain_windows=4)
    about = {subject.name: subject.about for subject in samples.subjects}
    assert [one["dataset"] for one in about.values()] == ["talks", "talks", "songs"]
    assert all(name.startswith(one["dataset"]) for name, one in about.items())
    assert [one["window"].startswith("song-") for one in about.values()] == [False, False, True]
    heard = [subject.window.audio_TE for subject in samples.subjects]
    assert heard[0] is not None and heard[2] is not None and np.array_equal(heard[0], -heard[2])
    gains = [one for one in samples.evaluators if isinstance(one, ConditionGain)]
    assert [one.people for one in gains] == [["clip0", "clip1", "song-clip0", "song-clip1"]] * 2
    with pytest.raises(ValueError, match=r"samples.split 'unseen' has no window .*; the data set has train"):
        opened(tiny, mix, windows=3, split="unseen")


@pytest.mark.slow
def test_one_program_and_the_same_numbers_for_the_same_weights(
    tiny: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples, params = opened(tiny, windows=2, gain_windows=2)
    samples._folder = tmp_path
    shown: list[tuple[int, str]] = []
    show = lambda step, name, video, picture: shown.append((step, name))  # noqa: E731
    samples.first(params, 0, show)
    other = jax.tree.map(lambda leaf: leaf + 0.05, params)
    first, second, third = samples(params, 1, show), samples(other, 2, show), samples(params, 3, show)
    assert first == third != second
    assert samples.sampler is not None and samples.sampler.compilations() == 1
    assert [evaluator.compilations() for evaluator in samples.evaluators] == [1, 1]
    assert shown == [(step, name) for step in range(4) for name in CLIPS]
    before, again = ((tmp_path / f"step_{step:08d}" / f"{CLIPS[0]}.png").read_bytes() for step in (1, 3))
    assert before == again

    # A folder that cannot be written: one warning, and numbers all the same.
    samples._folder = tmp_path / "step_00000001" / f"{CLIPS[0]}.png"
    with caplog.at_level(logging.WARNING):
        assert samples(params, 4, show) == samples(params, 5, show) == first
    assert caplog.text.count("are not written") == 1


def test_the_mouth_is_measured_against_the_truth(tiny: TinyRun, tmp_path: Path) -> None:
    from tests.commands.test_evaluate_theatre import write_truth

    catalog = Catalog.load(tiny.dataset)
    names = np.array([f"{clip}-001" for clip in catalog.clip_id], object)
    dataset = tmp_path / "dataset"
    import shutil

    shutil.copytree(tiny.dataset, dataset)
    dataclasses.replace(catalog, clip_id=names).save(dataset)
    for clip, row in (("clip0", 0), ("clip1", 2)):
        write_truth(tmp_path / "truth", clip, int(catalog.height[row]), int(catalog.width[row]))
    config = dataclasses.replace(tiny.config, data=dataclasses.replace(tiny.config.data, dataset=str(dataset)))
    moved = dataclasses.replace(tiny, dataset=dataset, config=config)
    samples, params = opened(moved, windows=0, gain_windows=0, truth=str(tmp_path / "truth"), mouth_windows=4)
    values = samples(params, 1, lambda *_: None)
    assert set(values) == {"mouth/correlation", "mouth/correlation_low", "mouth/correlation_high", "mouth/ceiling"}
    assert -1 <= values["mouth/correlation_low"] <= values["mouth/correlation"] <= values["mouth/correlation_high"] <= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"windows": 0, "gain_windows": 0}, "there is nothing to sample"),
        ({"split": "held_out"}, "samples.split 'held_out' has no window with a reference; the data set has train"),
        ({"signals": "nowhere"}, "samples.signals nowhere: no picture"),
    ],
)
def test_what_cannot_be_sampled_is_said_before_training(tiny: TinyRun, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        opened(tiny, **changes)


def test_an_interval_between_lines_is_refused(tiny: TinyRun) -> None:
    config = config_of(tiny, interval=15)
    config.logging.interval = 10
    with pytest.raises(ValueError, match=r"samples.interval 15 must be a multiple of logging.interval 10"):
        config.validate()
    with pytest.raises(ValueError, match=r"samples.max_share must be in \(0, 1\], not 0"):
        SamplesConfig(max_share=0).validate()


def test_rounds_stay_below_their_share_of_the_time(caplog: pytest.LogCaptureFixture) -> None:
    budget, made, now = SampleBudget(0.05, 0.0), [], 0.0
    with caplog.at_level(logging.WARNING):
        for step in range(1, 401):
            now += 1.0
            if step % 10 == 0 and budget.allows(now):
                now += 2.0
                budget.spend(2.0)
                made.append(step)
    assert made[0] == 10 and 2.0 * len(made) / now <= 0.05 < 2.0 * (len(made) + 2) / now
    assert caplog.text.count("left out until") == 1
    assert all(SampleBudget(0.05, 0.0).allows(1e9) for _ in range(2))


def test_held_out_windows_come_first_and_are_spread() -> None:
    catalog = synthetic.catalog(40, latent_frames=(3, 5), strong=1.0)
    splits = np.array(["train"] * 20 + ["unseen"] * 12 + ["rare"] * 8, object)
    catalog = dataclasses.replace(catalog, split=splits)
    needed = ConditionSet.of(Condition.AUDIO, Condition.REFERENCE)
    split, rows = window_inputs.held_out(catalog, "", needed)
    assert split == "unseen" and set(catalog.frames[rows]) == {17} and (catalog.split[rows] == "unseen").all()
    chosen = window_inputs.spread(catalog, rows, 3)
    assert len(chosen) == 3 == len({catalog.clip_id[row] for row in chosen})
    chosen = window_inputs.spread(catalog, rows, 2)
    assert [catalog.clip_id[row] for row in chosen] == [min(catalog.clip_id[rows]), max(catalog.clip_id[rows])]
    assert window_inputs.held_out(catalog, "rare", needed)[0] == "rare"
    only = dataclasses.replace(catalog, split=np.array(["train"] * 40, object))
    assert window_inputs.held_out(only, "", needed)[0] == "train"
