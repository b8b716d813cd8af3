"""AdamW with one Adam state a condition group, so that a group starts, stops and keeps its moments on its own.

The groups are `base` (the pretrained part with text, reference and motion), `audio` and `pose`. Which of them train is
an
*input* of the update, not part of the program: every stage runs the one compiled step. A group that does not train
keeps parameters, moments, counts and EMA bit for bit; one that starts late gets its own bias correction and its own
warm-up.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from omnihuman_jax.training import moments
from omnihuman_jax.typing import Params

GROUPS = ("base", "audio", "pose")
DECAYS = ("constant", "cosine")


@dataclasses.dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW as in [S2]: lr 5e-5, weight decay 0.01, gradient clip 1.0. Betas, warm-up and decay are stated nowhere [D].

    moments_dtype: of Adam's moments at rest, `float32` or `bfloat16` (4 bytes a parameter less); the update is computed
        in float32 either way, on float32 parameters.
    moments_rounding: of bfloat16 moments, `stochastic` or `nearest`. Nearest loses every change below 1/512 of a
        moment: at beta2 = 0.999 the second moment can grow but hardly ever shrink. Stochastic keeps it right on
        average.
    """

    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    warmup_steps: int = 1000
    decay: str = "constant"
    final_fraction: float = 0.1
    moments_dtype: str = "float32"
    moments_rounding: str = "stochastic"

    def validate(self) -> None:
        """ValueError with the numbers on a value that nothing can be trained with."""
        for name in ("learning_rate", "clip_norm", "epsilon"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"optimizer.{name} must be finite and > 0, not {value}")
        for name in ("beta1", "beta2", "final_fraction"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name != "final_fraction" and value == 1):
                raise ValueError(f"optimizer.{name} must be in [0, 1), not {value}")
        if self.weight_decay < 0 or self.warmup_steps < 0:
            raise ValueError(
                f"optimizer: weight_decay {self.weight_decay} and warmup_steps {self.warmup_steps} must be >= 0"
            )
        if self.decay not in DECAYS:
            raise ValueError(f"optimizer.decay {self.decay!r} is unknown; it is one of {', '.join(DECAYS)}")
        for name, values in (("moments_dtype", moments.DTYPES), ("moments_rounding", moments.ROUNDINGS)):
            if getattr(self, name) not in values:
                raise ValueError(
                    f"optimizer.{name} {getattr(self, name)!r} is unknown; it is one of {', '.join(values)}"
                )


@dataclasses.dataclass(kw_only=True, slots=True)
class EmaConfig:
    """Exponential moving average of the parameters, sharded like them [D]; `decay` is reached along (1 + n) / (10 +
    n).
    """

    decay: float = 0.9999

    def validate(self) -> None:
        """ValueError on a decay outside [0, 1)."""
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay must be in [0, 1), not {self.decay}")


def learning_rate_at(config: OptimizerConfig, step: int, total_steps: int, scale: float = 1.0) -> float:
    """Learning rate of `step` before the warm-up, which belongs to each group; `scale` is the stage's."""
    rate = config.learning_rate * scale
    if config.decay == "cosine":
        progress = min(step / max(total_steps, 1), 1.0)
        rate *= config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
    return rate


def create_optimizer(
    config: OptimizerConfig, labels: Params, axes: Params, *, seed: int = 0
) -> optax.GradientTransformation:
    """Adam and decoupled weight decay a group, before the learning rate.

    Args:
        config: the numbers.
        labels: the group of every parameter, same tree as the parameters.
        axes: their logical axes (tuples as leaves); matrices are decayed, biases and norm scales are not [D].
        seed: of the moments' stochastic rounding.
    """
    decayed = jax.tree.map(lambda leaf: sum(axis != "layers" for axis in leaf) >= 2, axes, is_leaf=_is_axes)
    plain = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)
    adam = plain if config.moments_dtype == "float32" else moments.in_bfloat16(plain, seed, config.moments_rounding)
    decay = optax.add_decayed_weights(config.weight_decay, mask=lambda params: _like_masked(decayed, params))
    chains = {group: optax.chain(_in_place(adam, config, group), decay) for group in present_groups(labels)}
    return optax.partition(chains, labels)


def _in_place(
    adam: optax.GradientTransformation, config: OptimizerConfig, group: str
) -> optax.GradientTransformationExtraArgs:
    """`adam`; where `moves[group]` (a bool scalar) is false its state stays as it is. The directions come from the
    state kept.

    From the moments as they were before that choice XLA on CPU would compute the parameters a second time, out of the
    *old* moments, and to be able to write the new ones over them copy both first: two parameters' worth of memory and
    traffic more.
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, moves: Mapping[str, jax.Array] | None = None, **_: Any
    ) -> tuple[Any, Any]:
        directions, new = adam.update(updates, state, params)
        if moves is not None:
            new = jax.tree.map(lambda new, old: jnp.where(moves[group], new, old), new, state)
        if config.moments_dtype != "float32":
            return directions, new  # from the moments before they were rounded
        mu, nu = (
            optax.tree.bias_correction(x, beta, new.count)
            for x, beta in ((new.mu, config.beta1), (new.nu, config.beta2))
        )
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + config.epsilon), mu, nu), new

    return optax.GradientTransformationExtraArgs(adam.init, update)


def present_groups(labels: Params) -> tuple[str, ...]:
    """The groups that the model has, in the order of `GROUPS`; ValueError on an unknown label."""
    found = set(jax.tree.leaves(labels))
    if unknown := found - set(GROUPS):
        raise ValueError(f"unknown parameter groups {sorted(unknown)}; the groups are {', '.join(GROUPS)}")
    return tuple(group for group in GROUPS if group in found)


def group_counts(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """Updates that each group has had, int32 scalars: Adam's own counts."""
    return {group: masked.inner_state[0].count for group, masked in opt_state.inner_states.items()}


def trained_gradients(labels: Params, grads: Params, trainable: Mapping[str, jax.Array]) -> tuple[Params, jax.Array]:
    """Gradients of the groups that train, zeros for the others, and their norm (float32).

    A frozen group's gradients must not use up the clipping budget of the others.
    """
    grads = jax.tree.map(lambda label, g: jnp.where(trainable[label], g, jnp.zeros_like(g)), labels, grads)
    return grads, optax.tree.norm(grads)


def update(
    optimizer: optax.GradientTransformation,
    config: OptimizerConfig,
    ema_config: EmaConfig,
    labels: Params,
    *,
    grads: Params,
    norm: jax.Array,
    accepted: jax.Array,
    params: Params,
    ema: Params,
    opt_state: optax.OptState,
    learning_rate: jax.Array,
    trainable: Mapping[str, jax.Array],
) -> tuple[Params, Params, optax.OptState, dict[str, jax.Array]]:
    """One update: (params, ema, opt_state, learning rate of each group: 0 where it does not train).

    `grads` and `norm` are those of `trained_gradients`. `trainable` says for each group, as a bool scalar, whether it
    moves at all; `accepted`, whether the update counts; if not, everything stays bit for bit.
    """
    moves = {group: moving & accepted for group, moving in trainable.items()}
    # Selecting, not scaling by norm/norm: below the limit gradients pass bit for bit.
    grads = jax.tree.map(lambda g: jnp.where(norm > config.clip_norm, g * (config.clip_norm / norm), g), grads)
    counts = group_counts(opt_state)
    updates, opt_state = optax.with_extra_args_support(optimizer).update(grads, opt_state, params, moves=moves)
    rate = {group: learning_rate * _warmup(config, count) for group, count in counts.items()}
    decay = {group: jnp.minimum(ema_config.decay, (1.0 + count) / (10.0 + count)) for group, count in counts.items()}
    params = jax.tree.map(lambda label, p, u: jnp.where(moves[label], p - rate[label] * u, p), labels, params, updates)
    ema = jax.tree.map(
        lambda label, e, p: jnp.where(moves[label], e + (1 - decay[label]) * (p - e), e), labels, ema, params
    )
    rates = {group: jnp.where(trainable[group], value, 0.0) for group, value in rate.items()}
    return params, ema, opt_state, rates


def trainable_groups(introduced: Sequence[str], frozen: Sequence[str]) -> dict[str, bool]:
    """Which groups train, given the conditions introduced so far (labels) and what the stage freezes (groups)."""
    if unknown := set(frozen) - set(GROUPS):
        raise ValueError(f"a stage freezes {sorted(unknown)}; parameter groups are {', '.join(GROUPS)}")
    return {group: (group == "base" or group in introduced) and group not in frozen for group in GROUPS}


def _warmup(config: OptimizerConfig, count: jax.Array) -> jax.Array:
    return jnp.minimum(1.0, (count + 1.0) / max(config.warmup_steps, 1))


def _is_axes(leaf: object) -> bool:
    return isinstance(leaf, tuple)


def _like_masked(tree: Params, params: Params) -> Params:
    """`tree` with optax's MaskedNode wherever `params`, one group's view of the parameters, has one."""
    is_masked = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(lambda p, value: p if is_masked(p) else value, params, tree, is_leaf=is_masked)
