"""The PyTorch module computes what the JAX model computes: same weights, same packed batch, same velocity."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch

from omnihuman_jax.conditions import Condition, ConditionSet, clean_mask
from omnihuman_jax.interop import key_table as kt
from omnihuman_jax.models import mmdit
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.serving.modeling_omnihuman import OmniHumanForVideo, clean_tokens
from omnihuman_jax.typing import PackedBatch, PackedShape
from tests.interop.cases import Window, odd_config, packed_batch, random_tensors, shape_for, torch_batch, torch_config

TOLERANCE = 1e-5
NONE, EVERY = ConditionSet(), ConditionSet.of(*Condition)
TEXT, REFERENCE, AUDIO, POSE = (ConditionSet.of(condition) for condition in Condition)

CONFIGS = {
    "3 heads, all branches": odd_config(),
    "5 heads, guidance, wide neighbourhoods": odd_config(
        width=60,
        num_heads=5,
        rope_axes=(4, 2, 6),
        rope_theta=100.0,
        mlp_ratio=2.5,
        num_single_layers=1,
        guidance_embed=True,
        audio=AudioAdapterConfig(features=6, width=30, neighbours=5, num_heads=3, head_dim=10),
        pose=PoseGuiderConfig(keypoints=3, width=9, neighbours=3, sigma=1.3, samples=3),
    ),
    "dual blocks only, nothing pooled, no neighbours": odd_config(
        num_single_layers=0,
        num_refiner_layers=2,
        pooled_width=0,
        audio=AudioAdapterConfig(features=4, width=12, neighbours=0, num_heads=1, head_dim=6),
        pose=PoseGuiderConfig(keypoints=1, width=5, neighbours=0, samples=1),
    ),
    "base alone": odd_config(audio=None, pose=None),
}
A_MAN_SPEAKING = Window(latents=3, height=3, width=5, text_tokens=6, active=EVERY, motion=True)
A_PICTURE = Window(latents=1, height=4, width=2, text_tokens=1, active=TEXT | REFERENCE)
LAYOUTS = {
    "every condition": [
        [A_MAN_SPEAKING, Window(latents=2, height=2, width=7, text_tokens=4, active=EVERY)],
        [Window(latents=4, height=5, width=2, text_tokens=9, active=EVERY, motion=True)],
    ],
    "mixed": [
        [A_MAN_SPEAKING, A_PICTURE, Window(latents=4, height=2, width=3, text_tokens=7, active=AUDIO)],
        [
            Window(latents=3, height=3, width=4, text_tokens=9, active=POSE | REFERENCE, motion=True),
            Window(latents=2, height=5, width=3, text_tokens=2, active=TEXT | AUDIO),
            Window(latents=3, height=1, width=6, text_tokens=3, active=POSE),
        ],
    ],
    "no condition": [
        [
            Window(latents=3, height=3, width=5, text_tokens=6, active=NONE),
            Window(latents=1, height=2, width=2, text_tokens=3, active=NONE),
        ],
        [Window(latents=4, height=3, width=3, text_tokens=2, active=NONE)],
    ],
    "a sequence of padding alone": [[A_MAN_SPEAKING], []],
}


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs.astype(np.float64)))


class Pair:
    """One model in both frameworks."""

    def __init__(self, config: mmdit.MMDiTConfig):
        table = kt.key_table(config)
        tensors = random_tensors(table)
        self.params = table.from_torch(tensors.__getitem__)
        self.module = OmniHumanForVideo(torch_config(config)).eval()
        self.module.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
        self.apply = jax.jit(lambda tokens, t, batch: mmdit.apply(config, self.params, tokens, t, batch))

    def velocities(self, batch: PackedBatch[np.ndarray], t_BG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(PyTorch's, JAX's) of the tokens that belong to a window."""
        ours = np.asarray(self.apply(batch.latents_BLC, t_BG, batch))
        with torch.no_grad():
            theirs = self.module(
                torch.from_numpy(batch.latents_BLC), torch.from_numpy(t_BG), torch_batch(batch)
            ).numpy()
        assert theirs.dtype == ours.dtype == np.float32 and theirs.shape == ours.shape
        assert np.isfinite(theirs).all()
        real = batch.segment_ids_BL > 0
        return theirs[real], ours[real]


@functools.cache
def made(name: str) -> tuple[Pair, PackedShape]:
    """One compilation a configuration: all batches here have two sequences of the same shape."""
    return Pair(CONFIGS[name]), shape_for(CONFIGS[name])


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request) -> tuple[Pair, PackedShape]:
    return made(request.param)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_same_velocity(pair, layout, measured):
    model, shape = pair
    batch = packed_batch(shape, layout, seed=len(layout[0]))
    t_BG = np.array([[0.3, 0.93, 0.05, 0.5], [0.71, 0.0, 1.0, 0.4]], np.float32)
    theirs, ours = model.velocities(batch, t_BG)
    assert 0.3 < ours.std() < 10  # the comparison is about something
    measured("velocity, exported PyTorch module against JAX, random weights", relative_error(theirs, ours), TOLERANCE)


@pytest.fixture(scope="module")
def small() -> tuple[Pair, PackedShape]:
    return made("3 heads, all branches")


def test_the_base_part_is_diffusers_own():
    """The state of HunyuanVideo's class loads as it is, and gives what that class gives; one text shorter than the
    other.
    """
    from diffusers import HunyuanVideoTransformer3DModel

    config = odd_config(audio=None, pose=None, guidance_embed=True)
    channels, frames, height, width = config.latent_channels, 3, 4, 5
    reference = HunyuanVideoTransformer3DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.num_dual_layers,
        num_single_layers=config.num_single_layers,
        num_refiner_layers=config.num_refiner_layers,
        mlp_ratio=config.mlp_ratio,
        text_embed_dim=config.text_width,
        pooled_projection_dim=config.pooled_width,
        rope_axes_dim=config.rope_axes,
    ).eval()
    tensors = {name: torch.from_numpy(array) for name, array in random_tensors(kt.key_table(config)).items()}
    reference.load_state_dict(tensors)
    ours = OmniHumanForVideo(torch_config(config)).eval()
    ours.load_state_dict(reference.state_dict())

    layout = [
        [Window(latents=frames, height=height, width=width, text_tokens=tokens, active=TEXT)] for tokens in (7, 4)
    ]
    batch = packed_batch(shape_for(config, latent_tokens=frames * height * width, text_tokens=7, windows=1), layout)
    t_B = torch.tensor([0.3, 0.85])
    tokens = torch.from_numpy(batch.latents_BLC)
    patches = tokens.reshape(2, frames, height, width, 2, 2, channels)
    with torch.no_grad():
        theirs = reference(
            patches.permute(0, 6, 1, 2, 4, 3, 5).reshape(2, channels, frames, 2 * height, 2 * width),
            t_B * 1000,
            torch.from_numpy(batch.text_BSE),
            torch.from_numpy(batch.text_segment_ids_BS).long(),
            torch.from_numpy(batch.pooled_BGE)[:, 0],
            guidance=torch.full((2,), 1000.0),
        ).sample
        velocity = ours(tokens, t_B[:, None], torch_batch(batch)).reshape(patches.shape)
    velocity = velocity.permute(0, 6, 1, 2, 4, 3, 5).reshape(theirs.shape)
    assert relative_error(velocity.numpy(), theirs.numpy()) <= TOLERANCE


def test_one_window_that_fills_its_sequence(small):
    model, shape = small
    window = Window(
        latents=5, height=4, width=8, text_tokens=shape.text_tokens, active=EVERY.without(Condition.REFERENCE)
    )
    batch = packed_batch(shape, [[window], [window]])
    assert (batch.segment_ids_BL == 1).all()
    t_BG = np.full((2, shape.windows), 0.6, np.float32)
    theirs, ours = model.velocities(batch, t_BG)
    assert relative_error(theirs, ours) <= TOLERANCE
    with torch.no_grad():
        unmasked = model.module(
            torch.from_numpy(batch.latents_BLC), torch.from_numpy(t_BG), torch_batch(batch), one_window=True
        )
    assert relative_error(unmasked.numpy().reshape(ours.shape), ours) <= TOLERANCE


def test_every_condition_changes_the_velocity(small):
    """The parity above would hold for a condition that both ignore: it is not ignored."""
    model, shape = small
    layout = [[A_MAN_SPEAKING, A_PICTURE], [A_PICTURE]]
    t_BG = np.full((2, shape.windows), 0.6, np.float32)
    batch = packed_batch(shape, layout)
    before, _ = model.velocities(batch, t_BG)
    for name in ("text_BSE", "pooled_BGE", "audio_BTE", "keypoints_BTJ3"):
        changed = dataclasses.replace(batch, **{name: getattr(batch, name) + np.float32(0.5)})
        after, _ = model.velocities(changed, t_BG)
        assert relative_error(after, before) > 1e-3, name
    changed = dataclasses.replace(batch, motion_BG=np.zeros_like(batch.motion_BG))
    assert relative_error(model.velocities(changed, t_BG)[0], before) > 1e-3


def test_absent_conditions_add_exactly_nothing(small):
    """Arrays of conditions that no window has may hold anything, or be left out: bit-identical."""
    model, shape = small
    batch = packed_batch(shape, LAYOUTS["no condition"])
    t_BG = torch.full((2, shape.windows), 0.6)
    tokens = torch.from_numpy(batch.latents_BLC)
    with torch.no_grad():
        before = model.module(tokens, t_BG, torch_batch(batch))
        noisy = dataclasses.replace(
            batch,
            audio_BTE=batch.audio_BTE + 9,
            keypoints_BTJ3=batch.keypoints_BTJ3 + 9,
            audio_index_BFA=np.zeros_like(batch.audio_index_BFA),
            pose_index_BFP=np.zeros_like(batch.pose_index_BFP),
        )
        assert torch.equal(model.module(tokens, t_BG, torch_batch(noisy)), before)
        absent = ("audio", "keypoints", "pose")
        without = {name: array for name, array in torch_batch(batch).items() if not name.startswith(absent)}
        assert torch.equal(model.module(tokens, t_BG, without), before)


def test_clean_tokens_are_the_trainers(small):
    _, shape = small
    batch = packed_batch(shape, LAYOUTS["mixed"])
    tensors = torch_batch(batch)
    slot_BL = (tensors["segment_ids_BL"].long() - 1).clamp(min=0)
    np.testing.assert_array_equal(clean_tokens(tensors, slot_BL).numpy(), clean_mask(batch))
    assert clean_mask(batch).any()


def test_bfloat16_stays_near(small):
    model, shape = small
    batch = packed_batch(shape, LAYOUTS["mixed"])
    t_BG = np.full((2, shape.windows), 0.6, np.float32)
    _, ours = model.velocities(batch, t_BG)
    module = OmniHumanForVideo(model.module.config).eval()
    module.load_state_dict(model.module.state_dict())
    module.to(torch.bfloat16)
    with torch.no_grad():
        theirs = module(torch.from_numpy(batch.latents_BLC), torch.from_numpy(t_BG), torch_batch(batch))
    assert theirs.dtype == torch.float32
    assert 1e-4 < relative_error(theirs.numpy()[batch.segment_ids_BL > 0], ours) < 3e-2


@pytest.mark.parametrize(
    ("backend", "tolerance"),
    [("eager", 1e-6), *(pytest.param(name, 1e-5, marks=pytest.mark.slow) for name in ("aot_eager", "inductor"))],
)
def test_compiles_without_a_graph_break(small, backend, tolerance):
    """inductor: what a user of `torch.compile(model)` gets; it needs a C++ compiler."""
    model, shape = small
    batch = packed_batch(shape, LAYOUTS["mixed"])
    t_BG = torch.full((2, shape.windows), 0.6)
    tokens = torch.from_numpy(batch.latents_BLC)
    torch.compiler.reset()
    compiled = torch.compile(model.module, backend=backend, fullgraph=True)
    with torch.no_grad():
        expected = model.module(tokens, t_BG, torch_batch(batch))
        actual = compiled(tokens, t_BG, torch_batch(batch))
    real = torch.from_numpy(batch.segment_ids_BL > 0)
    assert relative_error(actual[real].numpy(), expected[real].numpy()) <= tolerance


def test_gradients_flow_to_every_parameter(small):
    """A parameter that the forward pass forgot has no gradient."""
    model, shape = small
    batch = packed_batch(shape, LAYOUTS["mixed"])
    real = torch.from_numpy(batch.segment_ids_BL > 0)
    velocity = model.module(
        torch.from_numpy(batch.latents_BLC), torch.full((2, shape.windows), 0.6), torch_batch(batch)
    )
    velocity[real].square().mean().backward()
    dead = [name for name, p in model.module.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # A key's bias moves all scores of a query by the same amount where nothing normalises it: the softmax does not see
    # it.
    assert dead == [] or all(name.endswith("attn.to_k.bias") and "refiner" in name for name in dead), dead
    model.module.zero_grad(set_to_none=True)
