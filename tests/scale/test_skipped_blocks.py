"""The share of a pack's attention that is computed is counted as the kernels count it, on the sequences that the plan
packs.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from omnihuman_jax.commands import packing
from omnihuman_jax.config import load_config
from omnihuman_jax.scale.skipped_blocks import count_blocks, joined_ids
from omnihuman_jax.stages import Stage, StageSchedule
from tests.data import synthetic

ROOT = Path(__file__).resolve().parents[2]


def test_blocks_are_counted_as_written_out() -> None:
    ids = np.stack([joined_ids([13, 1, 22], [3, 2, 3], 40, 8), joined_ids([40], [8], 40, 8), joined_ids([], [], 40, 8)])
    same = (ids[:, :, None] == ids[:, None, :]) & (ids[:, :, None] > 0)
    counted = count_blocks(ids, 8, 4)
    blocks = same.reshape(3, 6, 8, 12, 4).any(axis=(2, 4))
    assert (counted.all, counted.computed, counted.needed) == (3 * 48 * 48, blocks.sum() * 32, same.sum())
    one = count_blocks(ids, 1, 1, unit=1)
    assert one.computed == one.needed and one.share == one.ideal < counted.share < 1
    whole = count_blocks(ids[1:2], 1024, 1024)
    assert whole.computed == 128 * 128, "a sequence shorter than a block is filled up to 128"


def test_windows_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="windows of 41 tokens do not fit 40"):
        joined_ids([40, 1], [1, 1], 40, 8)


def test_the_plans_own_sequences_are_counted() -> None:
    config = load_config(ROOT / "configs" / "demo.py")
    config.data.plan = synthetic.plan_config()
    config.stages = StageSchedule(rows=(Stage(name="only", steps=3, audio=0.5),))
    rows = packing.savings(config, synthetic.catalog(60), [(768, 128), (64, 64)], sequences=8)
    coarse, fine = rows
    assert coarse.windows > 2 and 0.5 < coarse.fill <= 1
    assert fine.ideal == coarse.ideal < fine.share < coarse.share
    assert coarse.step_saved < fine.step_saved < 1 - fine.share
    assert "only" in packing.format_rows(rows) and len(packing.format_rows(rows).splitlines()) == 5


def test_the_synthetic_mix_is_the_stated_one() -> None:
    table = packing.synthetic_catalog()
    for frames, share in packing.FRAMES.items():
        assert (table.frames == frames).mean() == pytest.approx(share, abs=0.02)
    for (height, width), share in packing.SIZES.items():
        assert ((table.height == height) & (table.width == width)).mean() == pytest.approx(share, abs=0.02)
    largest = dataclasses.replace(load_config(ROOT / "configs" / "omnihuman_7b.py").data).plan
    assert (table.window_tokens + table.reference_tokens).max() <= largest.latent_tokens, (
        "made for sequences of 32 K tokens"
    )


@pytest.mark.parametrize("blocks", ["64", "64x", "0x64"])
def test_a_size_that_is_none_is_an_error(blocks: str) -> None:
    with pytest.raises(ValueError, match="--blocks"):
        packing.parse(["--config", "x", "--blocks", blocks])
