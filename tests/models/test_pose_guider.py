"""Heatmaps lie where the keypoints are, in the latent's own channel order; absent pose adds exactly zero."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from omnihuman_jax.models.pose_guider import PoseGuider, PoseGuiderConfig, heatmaps


@pytest.mark.parametrize("samples", [2, 3, 8])
def test_a_heatmap_is_a_gaussian_at_the_points_of_the_tokens(samples: int) -> None:
    keypoints = np.array([[2.75, 1.25, 0.8], [0.0, 0.0, 0.0]], np.float32)  # x, y, confidence
    y, x = np.mgrid[0:3, 0:4]
    found = heatmaps(jnp.asarray(keypoints), jnp.asarray(y), jnp.asarray(x), 0.5, samples)
    # (token row, row in it, token column, column in it): with 2 the grid of latent pixels
    maps = np.asarray(found).reshape(3, 4, samples, samples, 2)
    grid = maps.transpose(0, 2, 1, 3, 4).reshape(3 * samples, 4 * samples, 2)
    rows, columns = np.mgrid[0 : 3 * samples, 0 : 4 * samples]
    square = ((rows + 0.5) / samples - 1.25) ** 2 + ((columns + 0.5) / samples - 2.75) ** 2
    np.testing.assert_allclose(grid[..., 0], 0.8 * np.exp(-square / (2 * 0.5**2)), atol=1e-6)
    assert (grid[..., 1] == 0).all()


@pytest.fixture(scope="module")
def guider() -> PoseGuider:
    guider = PoseGuider(PoseGuiderConfig(keypoints=5, width=14), 16, nnx.Rngs(params=0))
    assert not np.asarray(guider.embed.kernel[...]).any(), "starts out absent"
    guider.embed.kernel[...] = jax.random.normal(jax.random.key(1), guider.embed.kernel.shape)
    guider.mlp.fc_out.bias[...] = jnp.ones(14)
    return guider


def test_absent_is_zero_and_an_empty_heatmap_is_not(guider, pack, window) -> None:
    _, _, batch = pack([window(seed=1, pose=True), window(seed=2, pose=False)])
    found = np.asarray(guider(batch, jnp.float32))[0]
    video = (batch.frame_BL >= 0)[0]
    first = video & (batch.segment_ids_BL[0] == 1)
    assert (np.abs(found[first]).max(axis=-1) > 0).all()
    assert not found[~first].any()
    batch.keypoints_BTJ3[..., 2] = 0
    empty = np.asarray(guider(batch, jnp.float32))[0]
    assert np.abs(empty[first]).max() > 0
    # A window whose bit is off but whose frames are listed all the same: the bit decides.
    batch.active_BG4[..., 3] = False
    assert not np.asarray(guider(batch, jnp.float32)).any()


def test_unlisted_frames_are_not_seen(guider, pack, window) -> None:
    _, _, batch = pack([window(seed=1)])
    before = np.asarray(guider(batch, jnp.float32))
    used = np.unique(batch.pose_index_BFP[batch.pose_index_BFP >= 0])
    unused = np.setdiff1d(np.arange(batch.keypoints_BTJ3.shape[1]), used)
    assert len(unused) and len(used)
    batch.keypoints_BTJ3[:, unused] = 5.0
    np.testing.assert_array_equal(guider(batch, jnp.float32), before)
    batch.keypoints_BTJ3[:, used[0]] = 0.5
    assert np.abs(np.asarray(guider(batch, jnp.float32)) - before).max() > 0


def test_sizes_that_do_not_fit_are_named(guider, pack, window) -> None:
    _, _, batch = pack([window(seed=1)])
    with pytest.raises(ValueError, match=r"takes 5 keypoints and 6 frames.*has 4 and 6"):
        guider(dataclasses.replace(batch, keypoints_BTJ3=batch.keypoints_BTJ3[:, :, :4]), jnp.float32)
    with pytest.raises(ValueError, match=r"model.pose.sigma"):
        PoseGuiderConfig(sigma=0.0).validate()
    with pytest.raises(ValueError, match=r"model.pose.samples is 17; it must be 1 to 16"):
        PoseGuiderConfig(samples=17).validate()
