"""The fixed block transform: orthonormal, exactly inverted, causal, and one meaning per channel."""

import jax
import numpy as np
import pytest

from omnihuman_jax.codecs import dct as dct_codec
from omnihuman_jax.codecs.codec import VideoCodec, load_codec
from omnihuman_jax.codecs.dct import DctCodec

CODEC = DctCodec()


def _video(frames: int, height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (frames, height, width, 3)).astype(np.float32)


def _natural(frames: int, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    """A 1/f picture that drifts: the statistics that the kept coefficients and their scale are made for."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(2 * height)[:, None], np.fft.fftfreq(2 * width)[None]
    spectrum = (rng.normal(size=(3, 2 * height, 2 * width)) + 1j * rng.normal(size=(3, 2 * height, 2 * width))) / (
        np.hypot(fy, fx) + 1 / (2 * height)
    )
    planes = np.fft.ifft2(spectrum).real
    planes = 0.45 * planes / planes.std(axis=(1, 2), keepdims=True) * np.array([1.0, 0.25, 0.1])[:, None, None]
    rgb = np.tensordot(dct_codec._dct(3).T, planes, 1).transpose(1, 2, 0)
    return np.clip(
        np.stack([rgb[t // 4 : t // 4 + height, t // 2 : t // 2 + width] for t in range(frames)]), -1, 1
    ).astype(np.float32)


@pytest.mark.parametrize("basis", [dct_codec.first_basis(), dct_codec.group_basis()])
def test_rows_are_orthonormal(basis):
    rows = basis.reshape(dct_codec.LATENT_CHANNELS, -1)
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-12)


def test_order_is_the_documented_rule():
    frequencies = dct_codec.group_frequencies()
    costs = [(1 + v) * (1 + h) * (1 + 4 * t) * (1 + 5 * c) for t, v, h, c in frequencies]
    assert costs == sorted(costs) and len(set(frequencies)) == 48
    assert frequencies[:4] == ((0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0), (0, 0, 2, 0))
    assert sum(t > 0 for t, *_ in frequencies) == 7


def test_first_latent_shares_every_still_channel_and_fills_the_others():
    group, first = dct_codec.group_frequencies(), dct_codec.first_frequencies()
    assert all(f == g for f, g in zip(first, group) if g[0] == 0)
    assert all(f[0] == 0 for f in first) and len(set(first)) == 48


def test_encode_inverts_decode():
    """Every latent is the latent of the video that it decodes to: no coefficient leaks into another."""
    latents = np.random.default_rng(0).normal(size=(4, 2, 3, 48)).astype(np.float32)
    video = CODEC.decode(latents)
    assert video.shape == (13, 16, 24, 3)
    np.testing.assert_allclose(CODEC.encode(video), latents, atol=2e-4)


def test_round_trip_loses_only_the_dropped_coefficients():
    """The round trip is an orthogonal projection: idempotent, its error orthogonal to what it keeps, energies adding
    up.
    """
    video = _video(9).astype(np.float64)
    kept = np.asarray(CODEC.decode(CODEC.encode(video)), np.float64)
    np.testing.assert_allclose(np.asarray(CODEC.decode(CODEC.encode(kept))), kept, atol=1e-5)
    assert abs(np.vdot(video - kept, kept)) < 1e-5 * np.vdot(video, video)
    energy = np.vdot(kept, kept) + np.vdot(video - kept, video - kept)
    np.testing.assert_allclose(energy, np.vdot(video, video), rtol=1e-6)
    assert np.vdot(kept, kept) < 0.5 * np.vdot(video, video)  # noise does not fit into 1/16 of the coefficients


def test_latent_depends_on_no_later_frame():
    video = _video(13)
    latents = np.asarray(CODEC.encode(video))
    for index in range(4):
        changed = video.copy()
        changed[4 * index + 1 :] = _video(13, seed=1)[4 * index + 1 :]
        again = np.asarray(CODEC.encode(changed))
        np.testing.assert_array_equal(again[: index + 1], latents[: index + 1])
        assert index == 3 or (again[index + 1 :] != latents[index + 1 :]).any(axis=(1, 2, 3)).all()


def test_first_latent_of_a_window_is_that_of_its_first_frame_as_an_image():
    video = _video(5)
    np.testing.assert_array_equal(np.asarray(CODEC.encode(video))[0], np.asarray(CODEC.encode(video[:1]))[0])


def test_a_still_video_has_one_latent_value_per_still_channel():
    latents = np.asarray(CODEC.encode(np.repeat(_video(1), 9, axis=0)))
    still = np.array([t == 0 for t, *_ in dct_codec.group_frequencies()])
    np.testing.assert_allclose(latents[1, ..., still], latents[0, ..., still], atol=1e-4)
    np.testing.assert_allclose(latents[1:, ..., ~still], 0, atol=1e-4)


def test_natural_video_has_about_unit_variance_and_survives():
    video = _natural(17)
    latents = np.asarray(CODEC.encode(video))
    still = np.array([t == 0 for t, *_ in dct_codec.group_frequencies()])
    assert latents[..., still].std(axis=(0, 1, 2)).min() > 0.2 and latents.std(axis=(0, 1, 2)).max() < 4
    mse = np.mean((np.asarray(CODEC.decode(latents)) - video) ** 2)
    assert 10 * np.log10(4 / mse) > 22


def test_batch_dims_and_jit():
    video = np.stack([_video(5, seed=s) for s in range(3)])[:, None]
    latents = jax.jit(CODEC.encode)(video)
    assert latents.shape == (3, 1, 2, 2, 3, 48)
    np.testing.assert_allclose(latents[1, 0], CODEC.encode(video[1, 0]), atol=1e-4)
    np.testing.assert_allclose(jax.jit(CODEC.decode)(latents)[2, 0], CODEC.decode(latents[2, 0]), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 16, 16, 3), "1 \\+ 4n"),
        ((5, 12, 16, 3), "12"),
        ((5, 16, 16, 4), "3"),
        ((16, 16, 3), "frames"),
        ((1, 0, 16, 3), "0"),
    ],
)
def test_wrong_videos_are_named(shape, message):
    with pytest.raises(ValueError, match=message):
        CODEC.encode(np.zeros(shape, np.float32))


def test_wrong_latents_are_named():
    with pytest.raises(ValueError, match="48"):
        CODEC.decode(np.zeros((1, 2, 2, 16), np.float32))


def test_load_codec():
    assert isinstance(load_codec("dct"), VideoCodec)
    with pytest.raises(FileNotFoundError, match=r"^codec vae: no such folder.*'dct'"):
        load_codec("vae")
    with pytest.raises(ValueError, match=r"tile_height: dct has none"):
        load_codec("dct", {"tile_height": 0})
