"""Sampling in PyTorch is sampling in JAX: noise, schedule, guidance, and a whole loop of 10 steps with every
condition.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from batch_omnihuman import without

from omnihuman_jax import conditions, segments
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.diffusion import flow_matching, guidance, solver
from omnihuman_jax.interop import key_table as kt
from omnihuman_jax.models import mmdit
from omnihuman_jax.serving import sampling_omnihuman as serving
from omnihuman_jax.serving.guidance_omnihuman import (
    FlowMatchingConfig,
    GuidanceConfig,
    branch_scales,
    guidance_branches,
    timesteps,
)
from omnihuman_jax.serving.modeling_omnihuman import OmniHumanForVideo
from tests.interop.cases import (
    Window,
    numpy_batch,
    odd_config,
    packed_batch,
    random_tensors,
    shape_for,
    torch_batch,
    torch_config,
)

EVERY = ConditionSet.of(*Condition)
LOOP_TOLERANCE = 1e-4


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_the_same_seed_draws_the_same_noise(seed, measured):
    slot_BL, token_BL = (
        np.array([[0, 0, 0, 7], [3, 3, 100, 0]], np.int32),
        np.array([[0, 1, 50_000, 3], [-1, 0, 2, 9]], np.int32),
    )
    ours = np.asarray(solver.token_noise(jax.random.key(seed), slot_BL, token_BL, 301))
    theirs = serving.token_noise(seed, torch.from_numpy(slot_BL), torch.from_numpy(token_BL), 301).numpy()
    assert theirs.dtype == np.float32 and 0.9 < theirs.std() < 1.1
    measured("noise of a seed, PyTorch against jax.random", np.abs(ours - theirs).max() / np.abs(ours).max(), 2e-6)


def test_random_bits_are_those_of_jax():
    """Before they are made normal: exactly."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 3), 11)
    bits = np.asarray(jax.random.bits(key, (64,), jnp.uint32)).astype(np.int64)
    k0, k1 = torch.tensor(0), torch.tensor(5)
    for number in (3, 11):
        k0, k1 = serving._threefry(k0, k1, torch.tensor(0), torch.tensor(number))
    x0, x1 = serving._threefry(k0, k1, torch.zeros(64, dtype=torch.int64), torch.arange(64))
    np.testing.assert_array_equal((x0 ^ x1).numpy(), bits)


@pytest.mark.parametrize("shift", [{}, {"shift_max": 1.0}, {"shift_tokens": 7, "shift_min": 0.5, "shift_max": 3.0}])
@pytest.mark.parametrize("steps", [1, 10])
def test_the_schedule_is_the_trainers(shift, steps):
    tokens = np.array([[0, 5, 60], [119_000, 2400, 9000]], np.int32)
    ours = flow_matching.timesteps(steps, tokens, FlowMatchingConfig(**shift))
    theirs = timesteps(steps, tokens, FlowMatchingConfig(**shift))
    assert theirs.dtype == np.float32
    np.testing.assert_allclose(theirs, ours, atol=2e-7)


CASES = {
    "every condition, guided, linear": ({}, {"scale": 6.5}, "euler"),
    "text and audio apart, second order": ({}, {"scale": 6.5, "text_scale": 2.0, "final_scale": 1.0}, "ab2"),
    "5 heads, guidance off": (
        {"width": 50, "num_heads": 5, "rope_axes": (2, 4, 4), "num_dual_layers": 2, "num_single_layers": 2},
        {"scale": 1.0, "final_scale": 1.0},
        "euler",
    ),
}


@pytest.mark.parametrize(
    "name", [*list(CASES)[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in list(CASES)[2:])]
)
def test_a_whole_loop_of_ten_steps(name, measured):
    """Two sequences; windows with reference, motion, audio and pose, with pose alone, and a single frame."""
    changes, scales, method = CASES[name]
    config = odd_config(**({"num_dual_layers": 1, "num_single_layers": 1} | changes))
    table = kt.key_table(config)
    tensors = random_tensors(table, seed=6)
    params = table.from_torch(tensors.__getitem__)
    shape = shape_for(config, latent_tokens=110, windows=2)
    layout = [
        [
            Window(latents=3, height=3, width=5, text_tokens=6, active=EVERY, motion=True),
            Window(
                latents=1, height=4, width=3, text_tokens=3, active=ConditionSet.of(Condition.TEXT, Condition.REFERENCE)
            ),
        ],
        [Window(latents=4, height=2, width=7, text_tokens=9, active=ConditionSet.of(Condition.POSE, Condition.AUDIO))],
    ]
    batch = packed_batch(shape, layout, seed=8)
    empty_text = np.random.default_rng(1).standard_normal((2, config.text_width)).astype(np.float32)
    empty_pooled = np.random.default_rng(2).standard_normal(config.pooled_width).astype(np.float32)

    branches = guidance_branches(GuidanceConfig(**scales), text=True, audio=True)
    ours = sample_in_jax(config, params, batch, scales, method, empty_text, empty_pooled)
    module = OmniHumanForVideo(torch_config(config)).eval()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    there = torch_batch(batch)
    heard: list[tuple[int, int]] = []
    others = [
        without(numpy_batch(batch), empty_text, empty_pooled, drops_text=branch.drops_text) for branch in branches
    ]
    theirs = serving.sample(
        module,
        there,
        serving.token_noise(3, serving.slots(there), there["token_BL"], config.patch_channels),
        torch.from_numpy(timesteps(10, serving.video_tokens(there).numpy(), FlowMatchingConfig(shift_tokens=20))),
        branch_scales(GuidanceConfig(**scales), branches, 10).tolist(),
        branches=[{name: torch.from_numpy(array) for name, array in other.items()} for other in others],
        solver=method,
        on_step=lambda done, total: heard.append((done, total)),
    ).numpy()
    assert heard == [(step, 10) for step in range(1, 11)]
    real = batch.segment_ids_BL > 0
    given = conditions.clean_mask(batch)
    np.testing.assert_array_equal(theirs[given], batch.latents_BLC[given])
    assert np.abs(theirs[real & ~given]).max() > 0.5
    error = np.linalg.norm(theirs[real] - ours[real]) / np.linalg.norm(ours[real])
    measured("latents of a 10-step loop from the same seed, PyTorch against JAX", error, LOOP_TOLERANCE)


def sample_in_jax(config, params, batch, scales, method, empty_text, empty_pooled) -> np.ndarray:
    """What `inference.Sampler` does, on a batch of any layout."""
    guided = GuidanceConfig(**scales)
    branches = guidance_branches(guided, text=True, audio=True)
    rows = guidance.stack_branches(
        [batch, *(guidance.branch_batch(batch, branch, empty_text, empty_pooled) for branch in branches)]
    )
    slot_BL = segments.of_window(batch.slot_BG, batch.segment_ids_BL)
    tokens_BG = flow_matching.video_tokens_of_slot(batch.segment_ids_BL, batch.is_reference_BL, batch.slot_BG.shape[1])

    @jax.jit
    def run(params, rows, batch):
        return solver.sample(
            functools.partial(lambda z, t: mmdit.apply(config, params, z, t, rows)),
            solver.token_noise(jax.random.key(3), slot_BL, batch.token_BL, config.patch_channels),
            batch.latents_BLC,
            conditions.clean_mask(batch) | (batch.segment_ids_BL == 0),
            batch.segment_ids_BL,
            flow_matching.timesteps(10, tokens_BG, FlowMatchingConfig(shift_tokens=20)),
            branch_scales(guided, branches, 10) if branches else None,
            method,
        )

    return np.asarray(run(params, rows, batch))


def test_an_empty_prompt_that_does_not_fit_is_one_line():
    shape = shape_for(odd_config(), latent_tokens=40, text_tokens=3, windows=2)
    windows = [Window(latents=1, height=2, width=2, text_tokens=1, active=EVERY) for _ in range(2)]
    with pytest.raises(ValueError, match=r"2 windows x 2 tokens of the empty prompt, .* has 3: raise"):
        without(numpy_batch(packed_batch(shape, [windows])), np.zeros((2, 10), np.float32), np.zeros(6, np.float32))
