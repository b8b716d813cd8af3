"""What the windows of one or several data sets are like: by hand, and by their weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.weighted_datasets import WeightedDataset
from omnihuman_jax.data.window_sizes import WindowSizes
from tests.data import synthetic


@pytest.mark.parametrize("count", [1, 7, 24])
def test_one_data_set_counts_every_window_once(count: int, tmp_path: Path) -> None:
    catalog = synthetic.catalog(count, seed=count)
    catalog.save(tmp_path)
    found = WindowSizes.of([WeightedDataset(path=str(tmp_path))])
    assert found is not None and found.frames == catalog.frames.max()
    assert found.area == int(np.median(catalog.height * catalog.width))
    sizes, counts = np.unique(np.stack([catalog.height, catalog.width], axis=1), axis=0, return_counts=True)
    assert found.usual == tuple(sizes[counts.argmax()].tolist())


def of_one_size(folder: Path, count: int, size: tuple[int, int], latent_frames: int) -> str:
    catalog: Catalog = synthetic.catalog(count, latent_frames=(latent_frames,))
    height, width = (np.full(count, side) for side in size)
    latents = {"latent_height": height // 8, "latent_width": width // 8}
    dataclasses.replace(catalog, height=height, width=width, **latents).save(folder)
    return str(folder)


def test_several_count_by_their_weights(tmp_path: Path) -> None:
    small = of_one_size(tmp_path / "small", 30, (64, 96), 3)
    large = of_one_size(tmp_path / "large", 3, (128, 128), 7)

    def of(one: float, other: float) -> WindowSizes | None:
        return WindowSizes.of([WeightedDataset(path=small, weight=one), WeightedDataset(path=large, weight=other)])

    assert of(3, 1) == WindowSizes(usual=(64, 96), area=64 * 96, frames=25)
    assert of(1, 3) == WindowSizes(usual=(128, 128), area=128 * 128, frames=25)
    assert of(2, 2) == WindowSizes(usual=(64, 96), area=(64 * 96 + 128 * 128) // 2, frames=25)
    gone = WeightedDataset(path=str(tmp_path / "gone"), weight=9)
    assert WindowSizes.of([gone, WeightedDataset(path=large)]) == WindowSizes(usual=(128, 128), area=2**14, frames=25)
    assert WindowSizes.of([gone]) is None and WindowSizes.of([]) is None
