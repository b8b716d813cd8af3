"""An image, and a voice and / or a pose and a prompt, to a video with sound, in PyTorch: what stands around
`OmniHumanForVideo`.

    python pipeline_omnihuman.py --image face.png --audio voice.wav --text "A woman speaks." --out talking.mp4

or, with this folder on the path,

    from pipeline_omnihuman import OmniHumanPipeline
    pipeline = OmniHumanPipeline.from_pretrained(".", device="cuda")
    pipeline(image="face.png", audio="voice.wav", out="talking.mp4")

Needs torch, safetensors, numpy, av, soundfile, Pillow (pillow-heif for HEIC pictures);
transformers and tokenizers for a voice or a prompt; diffusers for a
video autoencoder. No JAX: but the same seed gives what `omnihuman generate` gives. The networks beside the model are
read from the folders that the training data were encoded with, named in config.json, or given.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import media_omnihuman as media
import numpy as np
import torch
from batch_omnihuman import pack, without
from encoders_omnihuman import DCT_FILE, Codec, load_codec, load_speech_encoder, load_text_encoder, network_folder
from folders_omnihuman import check_export, check_weights, read_config
from guidance_omnihuman import (
    FlowMatchingConfig,
    GuidanceConfig,
    add_guidance_arguments,
    branch_scales,
    guidance_branches,
    timesteps,
)
from modeling_omnihuman import OmniHumanForVideo
from pictures_omnihuman import SPATIAL_STRIDE, check_size, fit_size, lay_keypoints, lay_picture, unpatchify
from poses_omnihuman import read_keypoints
from safetensors.numpy import load_file
from sampling_omnihuman import sample, slots, token_noise, video_tokens
from torch import Tensor
from windows_omnihuman import (
    FPS,
    MOTION_FRAMES,
    SAMPLE_RATE_HZ,
    SOUND_CONTEXT_S,
    TEMPORAL_STRIDE,
    Segment,
    Signals,
    frames_to_make,
    segment_schedule,
)

EMPTY_PROMPT_FILE = "empty_prompt.safetensors"


@dataclasses.dataclass(kw_only=True)
class ServingConfig:
    """The part "serving" of config.json: what the model was trained on, and how it is sampled.

    max_text_tokens: that a prompt is cut to
    segment_frames, area: of the longest window, and of the median picture, trained on; 0: they have to be given
    size: (height, width) that most windows had: of a video without an image
    solver: one of `guidance_omnihuman.SOLVERS`
    *_sha256: file -> sha256 of the networks' weights and configs; none for a codec without weights
    """

    codec: str
    codec_sha256: dict[str, str]
    codec_options: dict[str, Any]
    text_encoder: str
    text_sha256: dict[str, str]
    speech_encoder: str
    speech_sha256: dict[str, str]
    speech_layers: list[int]
    margin: int
    num_steps: int
    segment_frames: int
    area: int
    flow: FlowMatchingConfig
    guidance: GuidanceConfig
    max_text_tokens: int = 128
    size: tuple[int, int] = (0, 0)
    solver: str = "euler"

    @classmethod
    def from_json(cls, path: Path) -> "ServingConfig":
        """ValueError if the folder was exported without it."""
        values = read_config(path.parent).get("serving")
        if values is None:
            raise ValueError(
                f"{path}: has no part 'serving': export a run that has its dataset.json beside its checkpoints"
            )
        parts = {"flow": FlowMatchingConfig(**values.pop("flow")), "guidance": GuidanceConfig(**values.pop("guidance"))}
        return cls(**values, **parts)


class OmniHumanPipeline:
    """Model, codec and encoders of one exported folder. The encoders are loaded when they are first needed."""

    def __init__(
        self,
        model: OmniHumanForVideo,
        config: ServingConfig,
        codec: Codec,
        empty: Mapping[str, np.ndarray],
        device: torch.device,
    ) -> None:
        self.config, self.codec, self.empty, self.device = config, codec, empty, device
        self.sizes = model.config
        self.model: Callable[..., Tensor] = model
        """Replace it with `torch.compile(pipeline.model)` at will: all segments but a short video's have one shape."""
        self._speech: Any = None
        self._text: Any = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        codec: str | None = None,
        text_encoder: str | None = None,
        speech_encoder: str | None = None,
    ) -> "OmniHumanPipeline":
        """The pipeline of a folder that `omnihuman export` wrote.

        Args:
          folder: the exported folder.
          device: of the model and of everything around it.
          dtype: of the model; None keeps that of its file.
          codec, text_encoder, speech_encoder: folders or hub ids; None for those named in config.json.
        """
        folder, device = Path(folder), torch.device(device)
        config = ServingConfig.from_json(folder / "config.json")
        config.codec = codec or config.codec
        config.text_encoder = text_encoder or config.text_encoder
        config.speech_encoder = speech_encoder or config.speech_encoder
        if config.codec_sha256:
            check_weights("codec", network_folder("codec", config.codec), config.codec_sha256)
        model = OmniHumanForVideo.from_pretrained(folder, dtype=dtype, device=device)
        export = read_config(folder).get("export_id")
        for name in (EMPTY_PROMPT_FILE, *([DCT_FILE] if config.codec == "dct" else [])):
            check_export(folder / name, export)
        empty = load_file(str(folder / EMPTY_PROMPT_FILE))
        if wrong := [name for name, array in empty.items() if not np.isfinite(array).all()]:
            raise ValueError(f"{folder / EMPTY_PROMPT_FILE}: {wrong[0]} is not finite; copy the whole folder again")
        return cls(model, config, load_codec(config.codec, folder, device, config.codec_options), empty, device)

    def __call__(
        self,
        *,
        out: str | Path,
        image: str | Path | None = None,
        audio: str | Path | None = None,
        pose: str | Path | None = None,
        text: str | None = None,
        seconds: float | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        num_steps: int | None = None,
        segment_frames: int | None = None,
        guidance: GuidanceConfig | None = None,
        solver: str | None = None,
        on_step: Callable[[int, int], Any] = lambda done, total: None,
    ) -> int:
        """Writes `out`, an mp4 with the driving sound, and returns its number of frames.

        Args:
          out: an .mp4 path.
          image: who: a picture file, or a video's first frame; None: a person that the model makes up.
          audio: what is said: a sound file, or a video with sound.
          pose: how they move: keypoints (.npz) of `omnihuman data pose`, or a .npz with keypoints_TJ3 in pixels, height
              and width.
          text: a prompt; None: the text condition is off.
          seconds: None for as long as audio or pose, or one segment without either.
          size: (height, width) in pixels, multiples of 16; None for the image's own shape, or that of the pose.
          seed: of the noise.
          num_steps, segment_frames, guidance, solver: None for those that the run was configured with.
          on_step: hears (sampling steps done, steps in all).

        Raises:
          FileNotFoundError, ValueError: one line that names the input and the cure.
        """
        out = Path(out)
        if out.suffix != ".mp4":
            raise ValueError(f"{out}: give a name that ends in .mp4")
        segment_frames = self.config.segment_frames if segment_frames is None else segment_frames
        if not segment_frames:
            raise ValueError("the export does not say how long a segment is: give segment_frames")
        num_steps, guidance = (
            self.config.num_steps if num_steps is None else num_steps,
            guidance or self.config.guidance,
        )
        if num_steps < 1:
            raise ValueError(f"sampling needs at least 1 step, not {num_steps}")
        signals = self.read_signals(image, audio, pose, text, seconds, size, segment_frames)
        segments = segment_schedule(signals.frames, segment_frames)

        def frames() -> Iterator[np.ndarray]:
            left, before = signals.frames, None
            for segment in segments:
                motion = None if before is None else before[-MOTION_FRAMES:]
                hear = functools.partial(_advance, on_step, segment.index, len(segments))
                latents = self.sample_segment(
                    signals,
                    segment,
                    motion,
                    seed=seed,
                    num_steps=num_steps,
                    guidance=guidance,
                    solver=solver,
                    on_step=hear,
                )
                before = self.decode(latents)
                new = before[segment.overlap :][:left]
                left -= len(new)
                yield from np.rint((new + 1.0) * 127.5).astype(np.uint8)

        media.write_video(out, frames(), FPS, audio=signals.wave, sample_rate=SAMPLE_RATE_HZ)
        return signals.frames

    def sample_segment(
        self,
        signals: Signals,
        segment: Segment,
        motion_THW3: np.ndarray | None,
        *,
        seed: int,
        num_steps: int,
        guidance: GuidanceConfig,
        solver: str | None = None,
        on_step: Callable[[int, int], Any] = lambda done, total: None,
        noise_BLC: Tensor | None = None,
    ) -> np.ndarray:
        """Latents [F, H, W, C] float32 of one segment; `motion_THW3`: the last 5 frames of the one before, in [-1,
        1].
        """
        motion = None if motion_THW3 is None else self.encode(motion_THW3)
        window = signals.window(segment, motion, self.config.margin)
        arrays = pack(
            window,
            has_text=signals.has_text,
            audio_slots=TEMPORAL_STRIDE + 2 * self.sizes.audio.neighbours if self.sizes.audio else 0,
            pose_slots=TEMPORAL_STRIDE + 2 * self.sizes.pose.neighbours if self.sizes.pose else 0,
        )
        batch = self._placed(arrays)
        branches = guidance_branches(guidance, text=signals.has_text, audio=window.audio_TE is not None)
        rows = len(self.empty["text_SE"])
        others = [without(arrays, **self.empty, text_rows=rows, drops_text=branch.drops_text) for branch in branches]
        if noise_BLC is None:
            noise_BLC = token_noise(seed, slots(batch), batch["token_BL"], self.sizes.patch_channels)
        t = timesteps(num_steps, video_tokens(batch).cpu().numpy(), self.config.flow)
        tokens = sample(
            functools.partial(self.model, one_window=True),
            batch,
            noise_BLC,
            torch.from_numpy(t).to(self.device),
            branch_scales(guidance, branches, num_steps).tolist(),
            branches=[self._placed(other) for other in others],
            solver=solver or self.config.solver,
            on_step=on_step,
        )
        video = tokens[0][~batch["is_reference_BL"][0]].cpu().numpy()
        return unpatchify(video, *window.latents_FHWC.shape[1:3])

    def _placed(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {name: torch.tensor(array, device=self.device) for name, array in arrays.items()}

    @torch.no_grad()
    def encode(self, video_THW3: np.ndarray) -> np.ndarray:
        """Latents of 1 + 4n frames in [-1, 1]."""
        video = torch.from_numpy(np.array(video_THW3, np.float32)).to(self.device)
        return self.codec.encode(video).float().cpu().numpy()

    @torch.no_grad()
    def decode(self, latents_FHWC: np.ndarray) -> np.ndarray:
        """Frames [T, H, W, 3] float32, clipped to [-1, 1]."""
        latents = torch.from_numpy(np.array(latents_FHWC, np.float32)).to(self.device)
        return self.codec.decode(latents).clamp(-1.0, 1.0).float().cpu().numpy()

    def read_signals(
        self,
        image: str | Path | None,
        audio: str | Path | None,
        pose: str | Path | None,
        text: str | None,
        seconds: float | None,
        size: tuple[int, int] | None,
        segment_frames: int,
    ) -> Signals:
        """Reads and encodes everything that drives the video."""
        for given, branch, name in ((audio, self.sizes.audio, "audio"), (pose, self.sizes.pose, "pose")):
            if given is not None and branch is None:
                raise ValueError(f"the model was built without {name}: leave it out")
        for path in (image, audio, pose):
            if path is not None and not Path(path).is_file():
                raise FileNotFoundError(f"{path}: no such file")
        if image is None and audio is None and pose is None and not text:
            raise ValueError("nothing drives the video: give one at least of an image, a text, a sound and a pose")
        size = self._size(image, pose, size)
        reference = None
        if image is not None:
            reference = self.encode(lay_picture(functools.partial(media.read_image, image), size))[0]
        wave = keypoints = features = None
        available: dict[str, int] = {}
        if audio is not None:
            wave = media.read_audio(audio, SAMPLE_RATE_HZ, required=True)
            assert wave is not None  # `required`
            available[str(audio)] = len(wave) * FPS // SAMPLE_RATE_HZ
        if pose is not None:
            keypoints = self._read_pose(Path(pose), size)
            available[str(pose)] = len(keypoints)
        frames = frames_to_make(seconds, available, segment_frames)
        if wave is not None:
            features = self._speech_features(wave, segment_schedule(frames, segment_frames)[-1])
        text_SE, pooled_E = self._text_features(text)
        return Signals(
            frames=frames,
            latent_shape=(size[0] // SPATIAL_STRIDE, size[1] // SPATIAL_STRIDE, self.sizes.latent_channels),
            reference_HWC=reference,
            text_SE=text_SE,
            pooled_E=pooled_E,
            has_text=bool(text),
            audio_TE=features,
            keypoints_TJ3=keypoints,
            wave=wave,
        )

    def _read_pose(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """Keypoints [T, J, 3] in tokens of pictures of `size`, laid over them like the image."""
        keypoints, height, width = read_keypoints(path)
        if not (keypoints[..., 2] > 0).any():
            raise ValueError(f"{path}: no person in any frame")
        if keypoints.shape[1] != self.sizes.pose.keypoints:
            raise ValueError(
                f"{path}: {keypoints.shape[1]} keypoints a frame, the model takes {self.sizes.pose.keypoints}"
            )
        return lay_keypoints(keypoints, height, width, size)

    def _size(self, image: str | Path | None, pose: str | Path | None, size: tuple[int, int] | None) -> tuple[int, int]:
        if size is not None:
            return check_size(size)
        if not self.config.area:
            raise ValueError("the export does not say how large its pictures were: give a size")
        if image is not None:
            return fit_size(*media.read_image(image).shape[:2], self.config.area)
        if pose is not None:
            return fit_size(*read_keypoints(Path(pose))[1:], self.config.area)
        if not all(self.config.size):
            raise ValueError("the export does not say which size most of its pictures had: give a size or an image")
        return check_size((self.config.size[0], self.config.size[1]))

    def _speech_features(self, wave: np.ndarray, last: Segment) -> np.ndarray:
        """Features [T, E]: of the frames to make, the margin behind them and nothing more."""
        if self._speech is None:
            folder = network_folder("speech encoder", self.config.speech_encoder)
            check_weights("speech encoder", folder, self.config.speech_sha256)
            self._speech = load_speech_encoder(folder, tuple(self.config.speech_layers), self.device)
        needed = (last.stop + self.config.margin) / FPS + SOUND_CONTEXT_S
        wave = wave[: round(needed * SAMPLE_RATE_HZ)]
        return self._speech.features(wave, max(1, len(wave) * FPS // SAMPLE_RATE_HZ))

    def _text_features(self, text: str | None) -> tuple[np.ndarray, np.ndarray]:
        if not text:
            return self.empty["text_SE"], self.empty["pooled_E"]
        if self._text is None:
            folder = network_folder("text encoder", self.config.text_encoder)
            check_weights("text encoder", folder, self.config.text_sha256)
            self._text = load_text_encoder(folder, self.device)
        return self._text.encode(text, self.config.max_text_tokens)


def _advance(on_step: Callable[[int, int], Any], segment: int, segments: int, done: int, steps: int) -> None:
    """Steps of one segment, told as steps of all."""
    on_step(segment * steps + done, segments * steps)


def _size_of(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, e.g. 96x80")
    return int(height), int(width)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="An image, and a voice and / or a pose, become a video with sound.",
        epilog="example: python pipeline_omnihuman.py --image face.png --audio voice.wav --out talking.mp4",
    )
    here = Path(__file__).resolve().parent
    parser.add_argument("--model", type=Path, default=here, help="folder of `omnihuman export` (default: this file's)")
    parser.add_argument(
        "--image", help="who: a picture file, or a video's first frame; without it the model makes a person up"
    )
    parser.add_argument("--audio", help="driving audio: a sound file, or a video with sound")
    parser.add_argument("--pose", help="how they move: keypoints (.npz) of `omnihuman data pose`")
    parser.add_argument("--text", help="prompt; without it the text condition is off")
    parser.add_argument("--out", required=True, help="the .mp4 to write")
    parser.add_argument(
        "--seconds", type=float, help="default: as long as the audio or the pose, or one segment without either"
    )
    parser.add_argument(
        "--size",
        type=_size_of,
        metavar="HxW",
        help="frame size in pixels, multiples of 16; default: the aspect ratio of the image, or of the pose",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the noise; the same seed as `omnihuman generate --seed` gives the same noise",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps; default: the run's")
    parser.add_argument(
        "--segment-frames",
        type=int,
        metavar="N",
        help="frames of a segment, 1 + 4n; default: the longest window trained on",
    )
    add_guidance_arguments(parser)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the model; default: that of its file")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the model: slower to start, faster to sample"
    )
    for name in ("codec", "text-encoder", "speech-encoder"):
        parser.add_argument(f"--{name}", metavar="DIR", help="folder; default: the one named in config.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0, or 2 after a one-line error."""
    options = _parser().parse_args(argv)

    def on_step(done: int, total: int) -> None:
        print(f"\rsampling: step {done} of {total}", end="", file=sys.stderr, flush=True)

    try:
        pipeline = OmniHumanPipeline.from_pretrained(
            options.model,
            device=options.device,
            dtype=getattr(torch, options.dtype) if options.dtype else None,
            codec=options.codec,
            text_encoder=options.text_encoder,
            speech_encoder=options.speech_encoder,
        )
        if options.compile:
            pipeline.model = torch.compile(pipeline.model)
        frames = pipeline(
            image=options.image,
            out=options.out,
            audio=options.audio,
            pose=options.pose,
            text=options.text,
            seconds=options.seconds,
            size=options.size,
            seed=options.seed,
            num_steps=options.steps,
            segment_frames=options.segment_frames,
            guidance=pipeline.config.guidance.with_overrides(
                options.guidance_scale,
                options.guidance_final_scale,
                options.guidance_curve,
                options.guidance_text_scale,
            ),
            solver=options.solver,
            on_step=on_step,
        )
    except (ValueError, FileNotFoundError) as error:
        text = " ".join(str(error).split())
        # A file's name may hold what acts on a terminal.
        shown = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
        print(f"pipeline_omnihuman: {shown}", file=sys.stderr)
        return 2
    print(f"\n{options.out}: {frames} frames ({frames / FPS:.2f} s)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
