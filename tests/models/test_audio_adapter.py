"""Audio reaches the video tokens of its own latent frame and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from omnihuman_jax.attention.dispatch import AttentionStrategy
from omnihuman_jax.models.audio_adapter import AudioAdapter, AudioAdapterConfig, AudioCrossAttention

CONFIG = AudioAdapterConfig(features=7, width=28, neighbours=1, num_heads=2, head_dim=10)
WIDTH = 16


@pytest.fixture(scope="module")
def added():
    """batch -> what the cross-attention adds to random video tokens, with a random output projection."""
    adapter = AudioAdapter(CONFIG, nnx.Rngs(params=0))
    cross = AudioCrossAttention(CONFIG, WIDTH, nnx.Rngs(params=1))
    assert not np.asarray(cross.out.kernel[...]).any(), "starts out absent"
    cross.out.kernel[...] = jax.random.normal(jax.random.key(2), cross.out.kernel.shape)

    @jax.jit
    def run(batch):
        x = jax.random.normal(jax.random.key(3), (*batch.segment_ids_BL.shape, WIDTH))
        return cross(x, adapter(batch, jnp.float32), AttentionStrategy())

    return lambda batch: np.asarray(run(batch))


def test_only_video_tokens_of_active_windows_are_changed(added, pack, window) -> None:
    _, _, batch = pack([window(seed=1), window(seed=2, audio=False)])
    found = added(batch)[0]
    heard = (batch.segment_ids_BL == 1)[0] & ~batch.is_reference_BL[0]
    assert (np.abs(found[heard]).max(axis=-1) > 0).all()
    assert not found[~heard].any()


def test_the_active_bit_decides(added, pack, window) -> None:
    """The unconditional branch of guidance clears the bit and leaves the features where they are."""
    _, _, batch = pack([window(seed=1), window(seed=2)])
    batch.active_BG4[:, 0, 2] = False
    found = added(batch)[0]
    assert not found[batch.segment_ids_BL[0] == 1].any()
    assert found[batch.segment_ids_BL[0] == 2].any()


def test_a_latent_frame_hears_its_own_rows_alone(added, pack, window) -> None:
    _, _, batch = pack([window(seed=1), window(seed=2)])
    before = added(batch)[0]
    frame = 4  # packed slot: the second window's second latent
    rows = set(batch.audio_index_BFA[0, frame]) - {-1}
    hearing = [f for f in range(10) if rows & set(batch.audio_index_BFA[0, f])]
    assert frame in hearing and len(hearing) < 4
    batch.audio_BTE[0, sorted(rows)] += 1.0
    changed = np.abs(added(batch)[0] - before).max(axis=-1) > 0
    assert changed[batch.frame_BL[0] == frame].all()
    assert not changed[~np.isin(batch.frame_BL[0], hearing)].any()


def test_a_frame_without_any_audio_token_stays(added, pack, window) -> None:
    _, _, batch = pack([window(seed=1)])
    batch.audio_index_BFA[0, 1] = -1
    found = added(batch)[0]
    assert not found[batch.frame_BL[0] == 1].any()
    assert found[batch.frame_BL[0] == 2].any()


def test_the_order_of_audio_frames_matters(added, pack, window) -> None:
    _, _, batch = pack([window(seed=1)])
    before = added(batch)
    batch.audio_index_BFA[0, 1] = batch.audio_index_BFA[0, 1, ::-1]
    assert np.abs(added(batch) - before).max() > 0


def test_sizes_that_do_not_fit_are_named(pack, window) -> None:
    _, _, batch = pack([window(seed=1)])
    adapter = AudioAdapter(
        AudioAdapterConfig(features=8, width=28, neighbours=2, num_heads=2, head_dim=10), nnx.Rngs(params=0)
    )
    with pytest.raises(ValueError, match=r"takes 8 features and 8 tokens.*has 7 and 6"):
        adapter(batch, jnp.float32)
    with pytest.raises(ValueError, match=r"model.audio.num_heads is 0"):
        AudioAdapterConfig(num_heads=0).validate()
