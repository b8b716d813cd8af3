"""What packed attention saves by leaving out the blocks between windows.

    omnihuman packing --config configs/omnihuman_7b.py
    omnihuman packing --config configs/demo.py --config.data.dataset=runs/demo/dataset --blocks 16x16,64x64

The plan's own sequences, of the dataset if the config names one, of a synthetic catalog (`--help` states its mix) if
not. For
each stage and size of block: the share of the joint attention's FLOPs that is computed, and what that saves of a train
    step.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

import numpy as np

from omnihuman_jax import config as experiment
from omnihuman_jax.conditions import ConditionSet
from omnihuman_jax.config import ExperimentConfig, load_config
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.joined_catalog import JoinedCatalog
from omnihuman_jax.data.plan import Plan, demands
from omnihuman_jax.data.weighted_datasets import have_catalogs, load_catalog
from omnihuman_jax.models import flops
from omnihuman_jax.scale.skipped_blocks import count_blocks, joined_ids
from omnihuman_jax.typing import SPATIAL_STRIDE

# [D] A mix of windows that sequences of 32 K tokens are made for: frames -> share, (height, width) in pixels -> share.
FRAMES = {1: 0.15, 25: 0.30, 49: 0.30, 77: 0.25}
SIZES = {(480, 832): 0.35, (832, 480): 0.35, (624, 624): 0.15, (320, 576): 0.15}
TEXT_TOKENS = (24, 128)
WINDOWS = 20_000
SYNTHETIC = (
    f"synthetic mix: frames {', '.join(f'{n} {share:.0%}' for n, share in FRAMES.items())}; sizes"
    f" {', '.join(f'{h} x {w} {share:.0%}' for (h, w), share in SIZES.items())}; {TEXT_TOKENS[0]} to {TEXT_TOKENS[1]}"
    " text tokens"
)
# Blocks of the kernels' own choice: splash (TPU), blocked (XLA), triton (GPU).
BLOCKS = "1024x1024,512x512,64x64"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A stage at one size of block: windows a sequence, tokens in use, shares of the attention, FLOPs of a step that
    are saved.
    """

    stage: str
    block: tuple[int, int]
    windows: float
    fill: float
    share: float
    ideal: float
    step_saved: float


def synthetic_catalog(seed: int = 0) -> Catalog:
    """`WINDOWS` windows of the stated mix, every one eligible for all conditions its kind allows; no data behind it."""
    rng = np.random.default_rng(seed)
    frames = rng.choice(list(FRAMES), WINDOWS, p=list(FRAMES.values()))
    height, width = np.asarray(list(SIZES))[rng.choice(len(SIZES), WINDOWS, p=list(SIZES.values()))].T
    still = ConditionSet.from_labels(["text", "reference"]).bits
    moving = ConditionSet.from_labels(["text", "reference", "audio", "pose"]).bits
    return Catalog(
        window_id=np.asarray([f"w{i}" for i in range(WINDOWS)], object),
        clip_id=np.asarray([f"c{i}" for i in range(WINDOWS)], object),
        split=np.asarray(["train"] * WINDOWS, object),
        record=np.arange(WINDOWS),
        start_frame=np.zeros(WINDOWS),
        latent_frames=1 + (frames - 1) // 4,
        latent_height=height // SPATIAL_STRIDE,
        latent_width=width // SPATIAL_STRIDE,
        height=height,
        width=width,
        text_tokens=rng.integers(TEXT_TOKENS[0], TEXT_TOKENS[1] + 1, WINDOWS),
        num_references=np.ones(WINDOWS),
        duration_s=np.ones(WINDOWS),  # the share of the draws: as stated, not by hours
        eligible=np.where(frames > 1, moving, still),
        empty_text_tokens=2,
    )


def packed_ids(plan: Plan, stage: int, sequences: int) -> np.ndarray:
    """int32 [sequences, L + S]: the joint sequences of the stage's first steps (all of them where it has fewer)."""
    config, first = plan.config, plan.schedule.starts[stage]
    rows: list[np.ndarray] = []
    for step in range(first, first + plan.schedule.rows[stage].steps):
        for windows in plan.batch(step).sequences:
            row = np.asarray([window.row for window in windows], np.int64)
            active = np.asarray([window.active.bits for window in windows], np.int64)
            need = demands(plan.catalog, config, row, active)
            rows.append(joined_ids(need[:, 0].tolist(), need[:, 1].tolist(), config.latent_tokens, config.text_tokens))
            if len(rows) == sequences:
                return np.stack(rows)
    return np.stack(rows)


def savings(
    config: ExperimentConfig, catalog: Catalog | JoinedCatalog, blocks: Sequence[tuple[int, int]], sequences: int
) -> list[Row]:
    """Every stage at every size of block."""
    plan = Plan(catalog, config.stages, config.data.plan, config.seed)
    shape = experiment.planned_shape(config)
    attention = flops.joint_attention_flops(config.model, shape) / flops.forward_flops(config.model, shape)
    rows = []
    for index, stage in enumerate(config.stages.rows):
        ids = packed_ids(plan, index, sequences)
        for block in blocks:
            counted = count_blocks(ids, *block)
            rows.append(
                Row(
                    stage=stage.name,
                    block=block,
                    windows=float(ids.max(axis=1).mean()),
                    fill=float((ids > 0).mean()),
                    share=counted.share,
                    ideal=counted.ideal,
                    step_saved=attention * (1 - counted.share),
                )
            )
    return rows


def format_rows(rows: Sequence[Row]) -> str:
    """The table."""
    heads = ("stage", "windows", "fill", "block", "attention", "one-token", "step")
    lines = [
        (
            "windows: a sequence's, on average; fill: tokens in use; attention: share of its FLOPs that is computed;"
            " one-token: that"
        ),
        "share with blocks of one token; step: share of a train step's FLOPs that is left out",
        "{:<12}{:>9}{:>7}{:>12}{:>11}{:>11}{:>8}".format(*heads),
    ]
    for row in rows:
        block = f"{row.block[0]} x {row.block[1]}"
        shares = f"{row.share:>11.1%}{row.ideal:>11.1%}{row.step_saved:>8.1%}"
        lines.append(f"{row.stage:<12}{row.windows:>9.2f}{row.fill:>7.1%}{block:>12}{shares}")
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and the `--config.*` overrides."""
    parser = argparse.ArgumentParser(
        prog="omnihuman packing",
        description=f"{__doc__}\n{SYNTHETIC}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="config file; fields are set with --config.FIELD=VALUE"
    )
    parser.add_argument(
        "--blocks", default=BLOCKS, metavar="QxK,...", help=f"block sizes of the kernel (default {BLOCKS})"
    )
    parser.add_argument("--sequences", type=int, default=512, metavar="N", help="sequences of each stage (default 512)")
    options, overrides = parser.parse_known_args(list(argv))
    try:
        options.blocks = [(int(q), int(kv)) for q, kv in (block.split("x") for block in options.blocks.split(","))]
    except ValueError as error:
        raise ValueError(f"--blocks {options.blocks!r}: sizes like 1024x512, with commas between them") from error
    if options.sequences < 1 or min(min(block) for block in options.blocks) < 1:
        raise ValueError("--sequences and every size in --blocks must be at least 1")
    return options, overrides


def main(argv: Sequence[str]) -> int:
    """`omnihuman packing`."""
    options, overrides = parse(argv)
    config = load_config(options.config, overrides)
    real = have_catalogs(config.data.rows)
    catalog = load_catalog(config.data.rows) if real else synthetic_catalog()
    plan = config.data.plan
    print(f"{config.data.label if real else SYNTHETIC}")
    print(f"sequences of {plan.latent_tokens} + {plan.text_tokens} tokens, at most {plan.windows} windows")
    print(format_rows(savings(config, catalog, options.blocks, options.sequences)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
