"""The optimizer on a handful of numbers: AdamW as torch has it, groups that start late, stand still, or share a
clip.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from omnihuman_jax.training import optimizer as optim

AXES = {
    "layer": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "blocks": {"scale": ("layers", "features")},
    "audio_adapter": {"kernel": ("features", "embed")},
}
LABELS = {
    "layer": {"kernel": "base", "bias": "base"},
    "blocks": {"scale": "base"},
    "audio_adapter": {"kernel": "audio"},
}
SHAPES = {"layer": {"kernel": (3, 4), "bias": (4,)}, "blocks": {"scale": (2, 3)}, "audio_adapter": {"kernel": (2, 3)}}
BOTH = {"base": True, "audio": True}
RATE = 1e-2


def arrays(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape).astype(np.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


class Run:
    """Parameters, moments and EMA under one optimizer."""

    def __init__(self, ema_decay: float = 0.9, **config: float):
        self.config = optim.OptimizerConfig(**{"warmup_steps": 0, "clip_norm": 1e9, "weight_decay": 0.1, **config})
        self.optimizer = optim.create_optimizer(self.config, LABELS, AXES)
        self.params = self.ema = arrays(0)
        self.state = self.optimizer.init(self.params)
        self.norm, self.rates = 0.0, {}
        ema = optim.EmaConfig(decay=ema_decay)

        def update(params, ema_params, state, grads, trainable):
            grads, norm = optim.trained_gradients(LABELS, grads, trainable)
            params, ema_params, state, rates = optim.update(
                self.optimizer, self.config, ema, LABELS,
                grads=grads, norm=norm, accepted=jnp.isfinite(norm),
                params=params, ema=ema_params, opt_state=state, learning_rate=jnp.float32(RATE),
                trainable=trainable,
            )  # fmt: skip
            return params, ema_params, state, norm, rates

        self._update = jax.jit(update)

    def step(self, grads: dict, trainable: dict[str, bool]) -> "Run":
        self.params, self.ema, self.state, norm, rates = self._update(
            self.params, self.ema, self.state, grads, trainable
        )
        self.norm, self.rates = float(norm), jax.device_get(rates)
        return self


def same_bits(left: object, right: object) -> bool:
    return all(
        np.array_equal(np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def test_one_group_is_torchs_adamw() -> None:
    run = Run()
    mine = {name: torch.nn.Parameter(torch.tensor(run.params["layer"][name])) for name in ("kernel", "bias")}
    decayed = {"kernel": 0.1, "bias": 0.0}  # matrices are decayed, biases are not
    other = torch.optim.AdamW(
        [{"params": [mine[name]], "weight_decay": decayed[name]} for name in mine],
        lr=RATE,
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    for k in range(5):
        grads = arrays(k + 1)
        run.step(grads, BOTH)
        for name, parameter in mine.items():
            parameter.grad = torch.tensor(grads["layer"][name])
        other.step()
    for name, parameter in mine.items():
        np.testing.assert_allclose(run.params["layer"][name], parameter.detach().numpy(), rtol=2e-6, atol=1e-7)


def test_norm_scales_of_stacked_blocks_are_not_decayed() -> None:
    run = Run()
    before = run.params
    run.step(jax.tree.map(np.zeros_like, before), BOTH)
    assert same_bits(run.params["blocks"], before["blocks"])  # [layers, features] is a vector a layer
    assert not same_bits(run.params["layer"]["kernel"], before["layer"]["kernel"])


def test_a_group_that_stands_still_keeps_every_bit_even_under_gradients_and_decay() -> None:
    run = Run(ema_decay=0.5).step(arrays(1), BOTH)

    def audio() -> tuple:
        return run.params["audio_adapter"], run.ema["audio_adapter"], run.state.inner_states["audio"]

    before, base = jax.device_get(audio()), run.params["layer"]
    for k in range(3):
        run.step(arrays(k + 2), {"base": True, "audio": False})
    assert same_bits(audio(), before)
    assert not same_bits(run.params["layer"], base)
    assert run.rates["audio"] == 0
    assert optim.group_counts(run.state) == {"base": 4, "audio": 1}


def test_a_group_that_starts_late_moves_as_if_training_began_there() -> None:
    late, fresh = Run(warmup_steps=3), Run(warmup_steps=3)
    for k in range(4):
        late.step(arrays(k + 10), {"base": True, "audio": False})
    for k in range(3):
        late.step(arrays(k), BOTH)
        fresh.step(arrays(k), BOTH)
        # Bias correction, warm-up and the EMA's own warm-up count the group's updates, not the run's.
        assert same_bits(late.params["audio_adapter"], fresh.params["audio_adapter"])
        assert same_bits(late.ema["audio_adapter"], fresh.ema["audio_adapter"])
        assert late.rates["audio"] == fresh.rates["audio"]
    assert not same_bits(late.params["layer"], fresh.params["layer"])


def test_clipping_sees_only_the_groups_that_move() -> None:
    grads = arrays(1)
    grads["audio_adapter"]["kernel"] *= 1e6
    clipped = Run(clip_norm=1.0).step(grads, {"base": True, "audio": False})
    alone = jax.tree.map(np.array, grads)
    alone["audio_adapter"]["kernel"][:] = 0
    assert clipped.norm == pytest.approx(np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(alone))), rel=1e-6)
    scaled = Run().step(jax.tree.map(lambda g: g / np.float32(clipped.norm), alone), {"base": True, "audio": False})
    np.testing.assert_allclose(clipped.params["layer"]["kernel"], scaled.params["layer"]["kernel"], rtol=1e-6)


def test_gradients_below_the_limit_pass_bit_for_bit() -> None:
    assert same_bits(Run(clip_norm=100.0).step(arrays(1), BOTH).params, Run(clip_norm=1e9).step(arrays(1), BOTH).params)


def test_ema_follows_the_parameters() -> None:
    run = Run(ema_decay=0.9)
    first = run.ema["layer"]["kernel"]
    run.step(arrays(1), BOTH)
    # decay of the first update: (1 + 0) / (10 + 0)
    np.testing.assert_allclose(run.ema["layer"]["kernel"], 0.1 * first + 0.9 * run.params["layer"]["kernel"], rtol=1e-5)


def test_schedules() -> None:
    config = optim.OptimizerConfig(learning_rate=1.0, decay="cosine", final_fraction=0.1)
    rates = [optim.learning_rate_at(config, step, 100) for step in range(101)]
    assert rates[0] == 1.0 and rates[100] == pytest.approx(0.1) and rates == sorted(rates, reverse=True)
    assert optim.learning_rate_at(optim.OptimizerConfig(learning_rate=1.0), 77, 100, scale=0.5) == 0.5
    warm = Run(warmup_steps=4)
    assert [warm.step(arrays(k), BOTH).rates["base"] for k in range(5)] == pytest.approx(
        [RATE * f for f in (0.25, 0.5, 0.75, 1, 1)]
    )


def test_which_groups_train() -> None:
    assert optim.trainable_groups(["text", "reference"], ()) == {"base": True, "audio": False, "pose": False}
    assert optim.trainable_groups(["text", "audio", "pose"], ("base",)) == {"base": False, "audio": True, "pose": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "optimizer.learning_rate"),
        ({"beta2": 1.0}, "optimizer.beta2"),
        ({"clip_norm": float("nan")}, "optimizer.clip_norm"),
        ({"decay": "linear"}, "constant, cosine"),
        ({"warmup_steps": -1}, "warmup_steps -1"),
    ],
)
def test_values_that_cannot_be_trained_with(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optim.OptimizerConfig(**change).validate()


def test_unknown_groups() -> None:
    with pytest.raises(ValueError, match="groups are base, audio, pose"):
        optim.present_groups({"a": "hands"})
    with pytest.raises(ValueError, match="parameter groups are base, audio, pose"):
        optim.trainable_groups((), ("hands",))


def test_the_update_is_written_over_its_state_without_copies() -> None:
    """XLA on CPU would copy both moments first, if parameters were computed from the old ones."""
    names = ("q", "k", "v")
    axes, labels = dict.fromkeys(names, ("embed", "mlp")), dict.fromkeys(names, "base")
    config = optim.OptimizerConfig(warmup_steps=0)
    optimizer = optim.create_optimizer(config, labels, axes)
    params = dict.fromkeys(names, jax.ShapeDtypeStruct((384, 256), jnp.float32))

    def update(state, grads):
        params, ema, opt_state = state
        grads, norm = optim.trained_gradients(labels, grads, {"base": True})
        return optim.update(
            optimizer, config, optim.EmaConfig(), labels,
            grads=grads, norm=norm, accepted=jnp.isfinite(norm),
            params=params, ema=ema, opt_state=opt_state, learning_rate=jnp.float32(RATE),
            trainable={"base": True},
        )[:3]  # fmt: skip

    compiled = (
        jax.jit(update, donate_argnums=0)
        .lower((params, params, jax.eval_shape(optimizer.init, params)), params)
        .compile()
    )
    copies = [line for line in compiled.as_text().splitlines() if re.search(r"= f32\[384,256\]\S* copy\(", line)]
    assert not copies, copies
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 384 * 256  # of a leaf; of five with copies
