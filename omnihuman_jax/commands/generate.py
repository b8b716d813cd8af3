"""`omnihuman generate`: a voice, a pose, a prompt and an image of the person, or some of them, become a video.

Audio-driven: all conditions but pose. Pose-driven: all but audio. Both: all [S]. Text and audio are guided, with a
scale that anneals [S]. What is longer than a segment is chained through 5 motion frames [S].
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from omnihuman_jax.conditions import ConditionSet
from omnihuman_jax.data import packing
from omnihuman_jax.diffusion import long_video
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation.sheet import to_uint8
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.runtime.worker_share import WorkerShare
from omnihuman_jax.sampling import trained_range, trained_run
from omnihuman_jax.sampling.driving import Encoders, Request, Signals, read_signals, segment_frames_of
from omnihuman_jax.sampling.sampler import Samplers, finite
from omnihuman_jax.sampling.video_jobs import JobsReport, read_manifest
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.windows_omnihuman import Segment, segment_schedule
from omnihuman_jax.typing import FPS, SPATIAL_STRIDE


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Generated:
    """What came out: the path, its frames and size, the conditions that were active, and the seams between segments."""

    path: Path
    frames: int
    height: int
    width: int
    active: ConditionSet
    guided: bool
    segments: int
    compilations: int
    seams: tuple[long_video.Seam, ...]


def window_of(
    run: trained_run.TrainedRun, signals: Signals, segment: Segment, motion_THW3: np.ndarray | None
) -> packing.PackInput:
    """A segment as the model is to see it; the 5 motion frames are encoded as the first 2 latents."""
    motion = None if motion_THW3 is None else trained_run.encode_pictures(run, motion_THW3)
    window = signals.window(segment, motion, run.spec.margin)
    arrays = {field.name: getattr(window, field.name) for field in dataclasses.fields(window)}
    return packing.PackInput(**arrays, active=signals.active)


def generate(
    run: trained_run.TrainedRun,
    request: Request,
    out: Path,
    *,
    config: SamplingConfig | None = None,
    samplers: Samplers | None = None,
    encoders: Encoders | None = None,
    previews: Path | None = None,
    on_progress: Callable[[float, int], None] = lambda done, total: None,
) -> Generated:
    """Makes the video `out` (mp4, with the driving sound); nothing is left behind if it fails.

    Args:
        run: of `inference.open_run`.
        request: what drives it.
        out: an .mp4 path.
        config: steps, guidance and segment length; the run's own by default.
        samplers, encoders: shared with other videos of the same run and config; own ones by default.
        previews: folder that gets each segment's new frames as a video of its own, as soon as it is sampled.
        on_progress: hears (segments done, fractions included; segments in all).

    Raises:
        FileNotFoundError, ValueError: one line that names the input and the cure.
    """
    request.validate()
    config = config or run.config.sampling
    config.validate()
    if out.suffix != ".mp4":
        raise ValueError(f"--out {out}: give a name that ends in .mp4")
    warnings = trained_range.check_model(run, request.active)
    segment_frames = segment_frames_of(run, config)
    signals = read_signals(run, request, segment_frames, encoders)
    segments = segment_schedule(signals.frames, segment_frames)
    height, width = (SPATIAL_STRIDE * side for side in signals.latent_shape[:2])
    for warning in [*warnings, *trained_range.check_range(run, (height, width), segments[0].frames)]:
        print(f"warning: {warning}", file=sys.stderr)
    first = window_of(run, signals, segments[0], None)
    sampler = (samplers or Samplers(run, config)).for_window(first)
    seams: list[long_video.Seam] = []

    def sample_segment(segment: Segment, motion_THW3: np.ndarray | None) -> np.ndarray:
        done = 0.0

        def advance(share: float) -> None:
            nonlocal done
            done += share
            on_progress(segment.index + done, len(segments))

        (latents,) = finite(sampler([window_of(run, signals, segment, motion_THW3)], request.seed, advance))
        return trained_run.decode_pictures(run, latents)

    def frames() -> Iterator[np.ndarray]:
        left = signals.frames
        for pictures, seam in long_video.chain(segments, sample_segment):
            seams.extend([seam] if seam else [])
            new = to_uint8(pictures[:left])
            if previews is not None and len(new):
                _write_preview(previews, new, signals.frames - left, signals.wave, run.spec.sample_rate_hz)
            yield from new
            left -= len(new)

    media_omnihuman.write_video(out, frames(), FPS, audio=signals.wave, sample_rate=run.spec.sample_rate_hz)
    return Generated(
        path=out,
        frames=signals.frames,
        height=height,
        width=width,
        active=signals.active,
        guided=bool(sampler.branches),
        segments=len(segments),
        compilations=sampler.compilations(),
        seams=tuple(seams),
    )


def _write_preview(folder: Path, frames: np.ndarray, start: int, wave: np.ndarray | None, sample_rate: int) -> None:
    """What a segment adds, under the number of its first frame."""
    per_frame = sample_rate // FPS
    sound = None if wave is None else wave[start * per_frame : (start + len(frames)) * per_frame]
    media_omnihuman.write_video(folder / f"from_frame_{start:06d}.mp4", frames, FPS, sound, sample_rate)


def parse_size(text: str) -> tuple[int, int]:
    """`HEIGHTxWIDTH` in pixels."""
    try:
        height, width = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, e.g. 96x80") from None
    return height, width


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="omnihuman generate",
        description="A voice, a pose, a prompt and an image of the person, or some of them, become a video.",
        epilog="example: omnihuman generate --run runs/mine/run --image face.png --audio voice.wav --out talking.mp4",
    )
    trained_run.add_run_arguments(parser)
    parser.add_argument(
        "--image",
        type=local,
        help=(
            "reference image of the person: a picture file, or a video (its first frame); without it the model makes a"
            " person up, and nothing holds on to that person over the segments of a long video but 5 motion frames"
        ),
    )
    parser.add_argument("--audio", type=local, help="driving audio: a sound file, or a video with sound")
    parser.add_argument(
        "--pose", type=local, help="driving pose: a video of a person, or keypoints (.npz) of `omnihuman data pose`"
    )
    parser.add_argument("--text", help="prompt; without it the text condition is off")
    parser.add_argument(
        "--seconds", type=float, help="default: as long as the audio or the pose, or one segment without either"
    )
    parser.add_argument(
        "--size",
        type=parse_size,
        metavar="HxW",
        help=(
            "frame size in pixels, multiples of 16; default: the aspect ratio of the image, or of the pose, or the size"
            " of most windows of the dataset"
        ),
    )
    parser.add_argument(
        "--segment-frames",
        type=int,
        metavar="N",
        help="frames of a segment, 1 + 4n; default: the longest window trained on",
    )
    parser.add_argument("--text-encoder", metavar="DIR", help="folder or hub id; default: the dataset's")
    parser.add_argument("--speech-encoder", metavar="DIR", help="folder or hub id; default: the dataset's")
    parser.add_argument(
        "--manifest",
        type=local,
        metavar="FILE",
        help=(
            "many videos: a line of JSON each, with name and any of image, audio, pose, text, seconds, size (HxW) and"
            " seed; --out is a folder then. What is there already is kept, a bad line is reported and passed over"
        ),
    )
    parser.add_argument(
        "--worker",
        type=WorkerShare.parse,
        metavar="I/N",
        help="of --manifest, the I-th share of N of the lines: a process a device, or a machine each",
    )
    parser.add_argument(
        "--previews", type=local, metavar="DIR", help="each segment of a long video as soon as it is sampled"
    )
    parser.add_argument("--out", required=True, type=local, help="the .mp4 to write; with --manifest, the folder")
    return parser


def describe(made: Generated) -> list[str]:
    """What was made, a line, and a line a seam."""
    lines = [
        f"{made.path}: {made.frames} frames ({made.frames / FPS:.2f} s) of {made.height}x{made.width}, "
        f"driven by {made.active.label}{', guided' if made.guided else ''}, {made.segments} segment(s)"
    ]
    for seam in made.seams:
        lines.append(
            f"  seam at {seam.frame / FPS:.2f} s: motion frames kept to {seam.overlap_psnr_db:.1f} dB, "
            f"jump {seam.jump:.4f} (typical frame step {seam.typical_jump:.4f})"
        )
    return lines


def main(argv: Sequence[str]) -> int:
    """`omnihuman generate`."""
    options = _parser().parse_args(argv)
    if options.manifest is not None:
        return _generate_all(options)
    if options.worker is not None:
        raise ValueError("--worker shares the lines of --manifest; give both, or neither")
    request = Request(
        image=options.image,
        audio=options.audio,
        pose=options.pose,
        text=options.text,
        seconds=options.seconds,
        size=options.size,
        seed=options.seed,
        text_encoder=options.text_encoder,
        speech_encoder=options.speech_encoder,
    )
    request.validate()
    run = trained_run.open_run(
        options.run, weights=options.weights, step=options.step, dataset=options.dataset, codec=options.codec
    )
    config = trained_run.sampling_config(run.config.sampling, options)
    with progress_bar("share") as bar:
        task = bar.add_task("sampling", total=None)

        def on_progress(done: float, total: int) -> None:
            bar.update(task, completed=done, total=total, text=f"segment {min(total, int(done) + 1)}/{total}")

        made = generate(run, request, options.out, config=config, previews=options.previews, on_progress=on_progress)
    print(f"{options.run} step {run.step}, {run.weights} weights, {config.num_steps} steps")
    print("\n".join(describe(made)))
    return 0


def _generate_all(options: argparse.Namespace) -> int:
    """The videos of a manifest: 0, or 1 if a line of it could not be made."""
    of_one = ("image", "audio", "pose", "text", "seconds", "size", "previews")
    if given := [f"--{name}" for name in of_one if getattr(options, name) is not None]:
        raise ValueError(f"{', '.join(given)}: of one video; leave it out, or leave out --manifest")
    jobs = read_manifest(
        options.manifest,
        seed=options.seed,
        text_encoder=options.text_encoder,
        speech_encoder=options.speech_encoder,
    )
    run = trained_run.open_run(
        options.run, weights=options.weights, step=options.step, dataset=options.dataset, codec=options.codec
    )
    config = trained_run.sampling_config(run.config.sampling, options)
    if options.worker is not None:
        jobs = options.worker.of(jobs)
    samplers, encoders = Samplers(run, config), Encoders()
    report = JobsReport(options.out, run, config, options.worker)
    with progress_bar("share") as bar:
        task = bar.add_task("videos", total=len(jobs))
        for number, job in enumerate(jobs):
            bar.update(task, completed=number, text=f"{number + 1}/{len(jobs)} {job.name}")
            if job.error or report.keeps(job):
                report.add(job, "failed" if job.error else "kept", job.error)
                continue
            try:
                assert job.request is not None  # without an error
                made = generate(
                    run, job.request, report.video(job), config=config, samplers=samplers, encoders=encoders
                )
            except (ValueError, FileNotFoundError) as error:
                report.add(job, "failed", str(error))
            else:
                report.add(job, "made", frames=made.frames)
    print(f"{report.summary()}; {samplers.compilations()} program(s) compiled; {report.path}")
    for line in report.failures():
        print(line, file=sys.stderr)
    return 1 if report.failures() else 0
