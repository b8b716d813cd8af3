"""What a run shows of itself while it trains: fixed windows and driving signals, sampled with the averaged weights on
the run's own mesh, and evaluators' numbers. It reads the weights and writes files: no bit of the training changes.

RUN/training_samples/
    samples.json                     what is sampled: name -> window or signal, split, conditions
    step_<finished steps>/NAME.mp4   with the driving sound, where there is one
    step_<finished steps>/NAME.png   its middle frame
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from omnihuman_jax import sharding
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.config import ExperimentConfig, compute_dtype
from omnihuman_jax.data import packing
from omnihuman_jax.data.joined_records import Records
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation import sheet
from omnihuman_jax.models import mmdit
from omnihuman_jax.runtime import files, processes
from omnihuman_jax.runtime.locations import local, location
from omnihuman_jax.sampling import driving, trained_run, window_inputs
from omnihuman_jax.sampling.clip_sounds import ClipSounds
from omnihuman_jax.sampling.evaluators import Evaluator, evaluators
from omnihuman_jax.sampling.sampler import sampler_for
from omnihuman_jax.sampling.window_inputs import SampledData
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.windows_omnihuman import segment_schedule
from omnihuman_jax.training.sample_budget import SampleBudget, SamplesConfig
from omnihuman_jax.typing import FPS, Params

logger = logging.getLogger(__name__)

FOLDER = "training_samples"
PICTURES = (".png", ".jpg", ".jpeg", ".heic")
SOUNDS = (".wav", ".mp3", ".flac", ".m4a")

Show = Callable[[int, str, Path, Path], None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FixedSample:
    """What is sampled in every round: its input, its sound (float32 [N] at the data set's rate), and what it is."""

    name: str
    window: packing.PackInput
    wave: np.ndarray | None
    about: Mapping[str, str]


class TrainingSamples:
    """Of one attempt at a run, on every process; open it before anything is trained, it refuses what cannot be.

    Args:
        run: the run's own mesh, config and data; its `params` say where weights lie, and need not exist.
        config: of the rounds.
        folder: of the run.
        source: of the records.

    Raises:
        ValueError, FileNotFoundError: one line that names the field and the cure.
    """

    def __init__(self, run: trained_run.TrainedRun, config: SamplesConfig, folder: Path, source: Records):
        self.config, self._run, self._folder = config, run, folder / FOLDER
        sampling = sampling_of(run.config, config)
        data = window_inputs.data_of(run.drawn_from, source)
        # Codecs, encoders and readouts work on one device of each process, whatever the mesh around the steps is.
        with jax.set_mesh(trained_run.one_device()):
            subjects = [*window_subjects(run, config, data), *signal_subjects(run, config, sampling)]
            self.evaluators: list[Evaluator] = evaluators(run, data, config, sampling)
        if not subjects and not self.evaluators:
            raise ValueError(
                "samples.interval is set, but there is nothing to sample: samples.windows is 0 or no window has a "
                "reference, and samples.signals is empty"
            )
        self.subjects = [
            dataclasses.replace(subject, window=dataclasses.replace(subject.window, slot=slot))
            for slot, subject in enumerate(subjects)
        ]
        inputs = [subject.window for subject in self.subjects]
        self.sampler = sampler_for(run, sampling, inputs, config.batch) if inputs else None
        self._budget = SampleBudget(config.max_share, time.monotonic())
        self._failed = False

    def first(self, params: Params, step: int, show: Show) -> None:
        """The round that compiles everything, before the first step of this start; the time counts from its end."""
        self._round(params, step, show)
        self._describe()
        self._budget = SampleBudget(self.config.max_share, time.monotonic())

    def due(self, done: int) -> bool:
        """Whether `done` finished steps are to be shown: process 0 looks at its clock, all do as it does."""
        if done % self.config.interval:
            return False
        return bool(processes.gather(self._budget.allows(time.monotonic()))[0])

    def __call__(self, params: Params, step: int, show: Show) -> dict[str, float]:
        """A round: samples into the folder and to `show`, and the evaluators' numbers."""
        began = time.monotonic()
        values = self._round(params, step, show)
        self._budget.spend(time.monotonic() - began)
        return values

    def _round(self, params: Params, step: int, show: Show) -> dict[str, float]:
        inputs = [subject.window for subject in self.subjects]
        latents = self.sampler.all_of(inputs, self.config.seed, params=params) if self.sampler else []
        if jax.process_index() == 0:
            self._write(latents, step, show)
        values: dict[str, float] = {}
        for evaluator in self.evaluators:
            with jax.set_mesh(self._run.mesh):
                values |= evaluator(params)
        return values

    def _write(self, latents: Sequence[np.ndarray], step: int, show: Show) -> None:
        """Decodes and writes, on process 0 alone: a full disk, say, is a word and not the end of the run."""
        try:
            with jax.set_mesh(trained_run.one_device()):
                for subject, latent in zip(self.subjects, latents, strict=True):
                    frames = sheet.to_uint8(trained_run.decode_pictures(self._run, latent))
                    video = self._folder / f"step_{step:08d}" / f"{subject.name}.mp4"
                    rate = self._run.spec.sample_rate_hz
                    media_omnihuman.write_video(video, frames, FPS, audio=subject.wave, sample_rate=rate)
                    sheet.write_png(video.with_suffix(".png"), frames[len(frames) // 2])
                    show(step, subject.name, video, video.with_suffix(".png"))
        except Exception as error:
            level = logging.DEBUG if self._failed else logging.WARNING
            self._failed = True
            logger.log(level, "samples of step %d are not written (%s); the run goes on", step, error)

    def _describe(self) -> None:
        if jax.process_index() == 0:
            about = {subject.name: dict(subject.about) for subject in self.subjects}
            files.write_text(self._folder / "samples.json", json.dumps(about, indent=1) + "\n")


def open_training_samples(
    config: ExperimentConfig, mesh: Mesh, places: Params, source: Records, folder: Path
) -> TrainingSamples | None:
    """Of a run that is about to train on `mesh`, its weights placed as `places` says; None without
    `samples.interval`.
    """
    if not config.samples.interval:
        return None
    spec, shapes = source.spec, mmdit.abstract_params(config.model)[0]
    with jax.set_mesh(trained_run.one_device()):
        codec = trained_run.open_codec(spec, spec.codec)
    run = trained_run.TrainedRun(
        directory=folder,
        config=config,
        spec=spec,
        dataset=location(config.data.first),
        mesh=mesh,
        params=jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
        ),
        weights="ema",
        step=0,
        encode=codec.encode,
        decode=codec.decode,
        dtype=compute_dtype(config, sharding.platform_of(mesh)),
    )
    return TrainingSamples(run, config.samples, folder, source)


def sampling_of(config: ExperimentConfig, samples: SamplesConfig) -> SamplingConfig:
    """How the samples of a run's training are made."""
    guidance = config.sampling.guidance
    if samples.guidance_scale:
        guidance = guidance.with_overrides(samples.guidance_scale, None, None)
    steps = samples.steps or config.sampling.num_steps
    return dataclasses.replace(config.sampling, num_steps=steps, guidance=guidance)


def usable(run: trained_run.TrainedRun) -> ConditionSet:
    """The conditions that the model has an input for."""
    branches = ((Condition.AUDIO, run.config.model.audio), (Condition.POSE, run.config.model.pose))
    return ConditionSet.of(*Condition).without(*(condition for condition, branch in branches if branch is None))


def window_subjects(
    run: trained_run.TrainedRun, config: SamplesConfig, data: Sequence[SampledData]
) -> Iterator[FixedSample]:
    """Windows of the data sets, as many of each, under all that each is eligible for; held-out ones where there are
    any.
    """
    found = [_windows_of(run, config, one) for one in data]
    if config.windows and config.split and not any(len(rows) for _, rows in found):
        known = ", ".join(sorted({name for one in data for name in one.catalog.split.tolist()}))
        raise ValueError(f"samples.split {config.split!r} has no window with a reference; the data set has {known}")
    sounds = ClipSounds(local(config.clips, "samples.clips")) if config.clips and config.windows else None
    for one, (split, rows), count in zip(data, found, window_inputs.shares(config.windows, len(data)), strict=True):
        for row in window_inputs.spread(one.catalog, rows, count):
            record = one.records[int(one.catalog.record[row])]
            if record is None:
                continue
            active = ConditionSet(record.eligible) & usable(run)
            wave = None
            if sounds is not None and Condition.AUDIO in active:
                start = int(one.catalog.start_frame[row])
                wave = sounds.of(record.clip_id, start, record.frames, run.spec.sample_rate_hz)
            about = {"window": record.window_id, "split": split, "driven_by": active.label}
            yield FixedSample(
                name=files.safe_name(f"{one.name}-{record.window_id}" if len(data) > 1 else record.window_id),
                window=window_inputs.driven_window(run.spec, record, active, 0),
                wave=wave,
                about=about | ({"dataset": one.name} if len(data) > 1 else {}),
            )


def _windows_of(run: trained_run.TrainedRun, config: SamplesConfig, data: SampledData) -> tuple[str, np.ndarray]:
    """(split, rows) that can be sampled."""
    for needed in (usable(run), ConditionSet.of(Condition.REFERENCE)):
        split, rows = window_inputs.held_out(data.catalog, config.split, needed)
        if len(rows):
            break
    return split, rows


def signal_subjects(
    run: trained_run.TrainedRun, config: SamplesConfig, sampling: SamplingConfig
) -> Iterator[FixedSample]:
    """What lies in `samples.signals`, a picture each, one segment long at most."""
    if not config.signals:
        return
    folder = local(config.signals, "samples.signals")
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise FileNotFoundError(f"samples.signals {folder}: no picture ({', '.join(PICTURES)}) to animate there")
    longest = driving.segment_frames_of(run, sampling)
    for picture in found:
        request = request_of(picture, run)
        request.validate()
        signals = driving.read_signals(run, request, longest)
        segment = segment_schedule(min(signals.frames, longest), longest)[0]
        window = signals.window(segment, None, run.spec.margin)
        arrays = {field.name: getattr(window, field.name) for field in dataclasses.fields(window)}
        yield FixedSample(
            name=files.safe_name(picture.stem),
            window=packing.PackInput(**arrays, active=signals.active),
            wave=signals.wave,
            about={"signal": picture.name, "driven_by": signals.active.label},
        )


def request_of(picture: Path, run: trained_run.TrainedRun) -> driving.Request:
    """The signals beside a picture: files of its name."""
    beside = {path.suffix.lower(): path for path in picture.parent.glob(f"{picture.stem}.*")}
    audio = next((beside[suffix] for suffix in SOUNDS if suffix in beside), None)
    pose, text = beside.get(".npz"), beside.get(".txt")
    allowed = usable(run)
    return driving.Request(
        image=picture,
        audio=audio if Condition.AUDIO in allowed else None,
        pose=pose if Condition.POSE in allowed else None,
        text=text.read_text(encoding="utf-8").strip() if text else None,
    )
