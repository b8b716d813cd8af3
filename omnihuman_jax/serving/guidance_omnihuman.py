"""How a sample is drawn, in numbers: the spacing of timesteps, the scale of guidance, what the unconditional branch
reads.

numpy alone, and no file beside this one: the trainer imports it from its package, an exported folder carries it as it
is.
"""

import argparse
import dataclasses
import math

import numpy as np

CURVES = ("linear", "cosine", "constant")
SOLVERS = ("euler", "ab2")
"""euler: first order. ab2: Adams-Bashforth of second order, which reuses the velocity of the step before. Both call the
model once a step."""


@dataclasses.dataclass(kw_only=True, slots=True)
class FlowMatchingConfig:
    """How timesteps are drawn in training and spaced in sampling; the paper states neither [D].

    t = sigmoid(logit_mean + logit_std * normal), then shifted towards noise by the number of the window's video tokens,
    because a larger window keeps more of its signal at the same t: shift = sqrt(tokens / shift_tokens), clipped to
    [shift_min, shift_max]. The defaults give HunyuanVideo's 7 at 720 x 1280 x 129 frames (119 K tokens).
    `shift_min = shift_max = 1` turns the shift off.
    """

    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift_tokens: int = 2400
    shift_min: float = 1.0
    shift_max: float = 12.0

    def validate(self) -> None:
        """ValueError with the numbers on a value that no schedule can be made of."""
        if not math.isfinite(self.logit_mean) or not self.logit_std > 0:
            raise ValueError(
                f"flow: logit_std must be > 0 and logit_mean finite, not {self.logit_std} and {self.logit_mean}"
            )
        if self.shift_tokens < 1:
            raise ValueError(f"flow: shift_tokens must be >= 1, not {self.shift_tokens}")
        if not 0 < self.shift_min <= self.shift_max:
            raise ValueError(f"flow: needs 0 < shift_min <= shift_max, not {self.shift_min} and {self.shift_max}")


@dataclasses.dataclass(kw_only=True, slots=True)
class GuidanceConfig:
    """Scale at the first step [S2: 6.5], at the last one [D], and the curve between them: linear, cosine or constant
    [D].

    The paper says that the scale falls (a high one wrinkles the skin, a low one loses lip-sync), not how. `constant`
    keeps `scale` throughout. A scale of 1 from start to end is guidance off: the unconditional branch is not computed.

    text_scale: None guides text and audio together by `scale` [S]. A number guides them apart [D]: text by it, audio
    (given the text) by `scale`; both fall to `final_scale`, and a window that has both costs three branches, not two.
    """

    scale: float = 6.5
    final_scale: float = 1.0
    curve: str = "linear"
    text_scale: float | None = None

    @property
    def enabled(self) -> bool:
        """Whether any step needs an unconditional branch."""
        falls = self.curve != "constant" and self.final_scale != 1.0
        return falls or self.scale != 1.0 or self.text_scale not in (None, 1.0)

    def validate(self) -> None:
        """ValueError on an unknown curve or on a scale that is negative or not finite."""
        if self.curve not in CURVES:
            raise ValueError(f"guidance curve {self.curve!r} is unknown; the curves are {', '.join(CURVES)}")
        for name in ("scale", "final_scale", "text_scale"):
            value = getattr(self, name)
            if value is not None and (not math.isfinite(value) or value < 0):
                raise ValueError(f"guidance {name} must be finite and >= 0, not {value}")

    def with_overrides(
        self, scale: float | None, final_scale: float | None, curve: str | None, text_scale: float | None = None
    ) -> "GuidanceConfig":
        """A copy with what is not None; `scale` 1 alone turns guidance off."""
        own_text_scale = self.text_scale
        if scale == 1.0 and final_scale is None and text_scale is None:
            final_scale, own_text_scale = 1.0, None
        return GuidanceConfig(
            scale=self.scale if scale is None else scale,
            final_scale=self.final_scale if final_scale is None else final_scale,
            curve=curve or self.curve,
            text_scale=own_text_scale if text_scale is None else text_scale,
        )


def add_guidance_arguments(parser: argparse.ArgumentParser) -> None:
    """What `with_overrides` takes, and `--solver`: of every command that samples."""
    parser.add_argument(
        "--guidance-scale", type=float, metavar="S", help="guidance on text and audio at the first step; 1 is off"
    )
    parser.add_argument("--guidance-final-scale", type=float, metavar="S", help="... and at the last step")
    parser.add_argument("--guidance-curve", choices=CURVES, help="... and how it falls in between")
    parser.add_argument(
        "--guidance-text-scale",
        type=float,
        metavar="S",
        help="guide text apart from audio, by this scale at the first step; the other scale is audio's then",
    )
    parser.add_argument(
        "--solver", choices=SOLVERS, help="of the sampling steps (ab2: second order); default: the run's"
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """A model call beside the conditional one: what it leaves out, and the scale of its difference to the one before.

    Branches v_1 .. v_n after the conditional v_0 give v_n + sum_i scale_i (v_(i-1) - v_i).
    """

    drops_text: bool
    drops_audio: bool
    scale: float


def guidance_branches(config: GuidanceConfig, *, text: bool, audio: bool) -> tuple[Branch, ...]:
    """The branches that windows with these conditions need beside the conditional one; none where guidance is off."""
    if not config.enabled or not (text or audio):
        return ()
    text_scale = config.scale if config.text_scale is None else config.text_scale
    if config.text_scale is None or not (text and audio):
        return (Branch(drops_text=True, drops_audio=True, scale=config.scale if audio else text_scale),)
    return (
        Branch(drops_text=False, drops_audio=True, scale=config.scale),
        Branch(drops_text=True, drops_audio=True, scale=text_scale),
    )


def branch_scales(config: GuidanceConfig, branches: tuple[Branch, ...], num_steps: int) -> np.ndarray:
    """Scale of each branch at each sampling step, [num_steps, len(branches)] float32."""
    columns = [guidance_scales(dataclasses.replace(config, scale=branch.scale), num_steps) for branch in branches]
    return np.stack(columns, axis=1) if columns else np.ones((num_steps, 0), np.float32)


def guidance_scales(config: GuidanceConfig, num_steps: int) -> np.ndarray:
    """Scale of each sampling step, [num_steps] float32: `scale` first, `final_scale` last; one step alone has
    `scale`.
    """
    config.validate()
    progress = np.arange(num_steps) / max(num_steps - 1, 1)
    if config.curve == "constant":
        weight = np.ones(num_steps)
    elif config.curve == "linear":
        weight = 1.0 - progress
    else:
        weight = 0.5 * (1.0 + np.cos(np.pi * progress))
    return (config.final_scale + (config.scale - config.final_scale) * weight).astype(np.float32)


def timesteps(num_steps: int, tokens_BG: np.ndarray, config: FlowMatchingConfig) -> np.ndarray:
    """t of each window from 1 to 0, shifted by its number of video tokens: float32 [num_steps + 1, B, G].

    On the host. Inside a compiled program it is `diffusion.flow_matching.timesteps`, which training's draw shares.
    """
    if num_steps < 1:
        raise ValueError(f"sampling needs at least 1 step, not {num_steps}")
    even_K11 = np.linspace(1.0, 0.0, num_steps + 1, dtype=np.float32)[:, None, None]
    ratio = np.maximum(tokens_BG, 1).astype(np.float32) / np.float32(config.shift_tokens)
    shift = np.clip(np.sqrt(ratio), np.float32(config.shift_min), np.float32(config.shift_max))
    return shift * even_K11 / (1 + (shift - 1) * even_K11)


def empty_prompts(
    segment_ids_BL: np.ndarray, windows: int, rows: int, text_SE: np.ndarray, pooled_E: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The text of the unconditional branch: the empty prompt of every window of every sequence.

    Args:
        segment_ids_BL: window + 1 of each latent token, 0 for padding.
        windows: G.
        rows: S, rows of text of a sequence.
        text_SE: token embeddings of the empty prompt from the run's own text encoder, [S0, E].
        pooled_E: its pooled embedding, [E] or [0] for an encoder without one.

    Returns:
        text_BSE float32, text_segment_ids_BS int32, pooled_BGE float32.

    Raises:
        ValueError: the empty prompt of every window does not fit the rows.
    """
    batch, length = len(segment_ids_BL), len(text_SE)
    text = np.zeros((batch, rows, text_SE.shape[1]), np.float32)
    ids = np.zeros((batch, rows), np.int32)
    pooled = np.zeros((batch, windows, len(pooled_E)), np.float32)
    for row, segments_L in enumerate(segment_ids_BL):
        present = np.unique(segments_L)
        present = present[present > 0]
        if len(present) * length > rows:
            raise ValueError(
                f"guidance needs {len(present)} windows x {length} tokens of the empty prompt, the packed text stream"
                f" has {rows}: raise text_tokens"
            )
        for place, segment in enumerate(present):
            own = slice(place * length, (place + 1) * length)
            text[row, own], ids[row, own], pooled[row, segment - 1] = text_SE, segment, pooled_E
    return text, ids, pooled
