"""Can a mesh split this model and this batch? A pure function of sizes: it needs no device, and runs before anything
compiles.

Every error has the numbers and the nearest values that would do.
"""

import math
from collections.abc import Mapping

from omnihuman_jax.attention import context_parallel
from omnihuman_jax.attention.dispatch import AttentionStrategy
from omnihuman_jax.attention.xla import Dense
from omnihuman_jax.data.plan import PlanConfig
from omnihuman_jax.models import mmdit
from omnihuman_jax.sharding import MESH_AXES, RULES, MeshConfig, nearest_divisors


def check_splits(
    mesh: MeshConfig,
    model: mmdit.MMDiTConfig,
    attention: AttentionStrategy,
    plan: PlanConfig,
    micro_batches: int,
    *,
    num_devices: int,
    slices: int | None = None,
) -> dict[str, int]:
    """The ways of each mesh axis on `num_devices` of `slices` (the config's, if None); ValueError where they cannot
    split it.
    """
    ways = dict(zip(MESH_AXES, mesh.shape(num_devices, slices), strict=True))
    check_ways(ways, model, attention, plan, micro_batches)
    return ways


def check_ways(
    ways: Mapping[str, int],
    model: mmdit.MMDiTConfig,
    attention: AttentionStrategy,
    plan: PlanConfig,
    micro_batches: int,
) -> None:
    """ValueError where a mesh of these ways cannot split heads, tokens, sequences or a weight evenly."""
    _heads(ways, model, attention)
    _tokens(ways, attention, plan)
    _sequences(ways, plan, micro_batches)
    _weights(ways, model)


def _heads(ways: Mapping[str, int], model: mmdit.MMDiTConfig, attention: AttentionStrategy) -> None:
    named = {"model.num_heads": model.num_heads, "model.audio.num_heads": model.audio.num_heads if model.audio else 0}
    for name, heads in named.items():
        if heads % ways["tensor"]:
            raise ValueError(
                f"{name} {heads} is not divisible by mesh.tensor {ways['tensor']};"
                f" {nearest_divisors(heads, ways['tensor'])}"
            )
    # The exchange itself knows which heads it can share out, and says so before anything is computed.
    heads = model.num_heads // ways["tensor"]
    context_parallel.exchange(
        Dense(),
        mode=attention.context_parallel,
        ways=ways["context"],
        heads=heads,
        ulysses_ways=attention.ulysses_ways,
    )


def _tokens(ways: Mapping[str, int], attention: AttentionStrategy, plan: PlanConfig) -> None:
    context, tokens = ways["context"], plan.latent_tokens
    if tokens % context:
        raise ValueError(
            f"data.plan.latent_tokens {tokens} is not divisible by mesh.context {context}; nearest tokens: "
            f"{_multiples(tokens, context)}; nearest mesh.context: {_divisors(tokens, context)}"
        )
    context_parallel.check_tokens(attention.context_parallel, tokens, context)


def _sequences(ways: Mapping[str, int], plan: PlanConfig, micro_batches: int) -> None:
    rows, sequences = ways["data"] * ways["fsdp"], plan.sequences_per_step
    parts = rows * micro_batches
    if sequences % parts == 0:
        return
    cures = [f"data.plan.sequences_per_step={_multiples(sequences, parts)}"]
    if sequences % rows == 0:
        cures.append(f"step.micro_batches={_divisors(sequences // rows, micro_batches)}")
    elif sequences < rows:
        cures.append(f"mesh.context or mesh.tensor ways instead, so that data x fsdp is at most {sequences}")
    raise ValueError(
        f"data.plan.sequences_per_step {sequences} is not divisible by {parts} = mesh data {ways['data']} x fsdp"
        f" {ways['fsdp']} x step.micro_batches {micro_batches}; nearest: {', or '.join(cures)}"
    )


def _weights(ways: Mapping[str, int], model: mmdit.MMDiTConfig) -> None:
    """Every dim of every parameter; the first that fails is reported by its name."""
    shapes, axes = mmdit.abstract_params(model)

    def walk(shape: object, axis: object, path: tuple[str, ...]) -> None:
        if isinstance(shape, dict) and isinstance(axis, dict):
            for name in shape:
                walk(shape[name], axis[name], (*path, name))
            return
        for dim, logical in zip(shape.shape, axis, strict=True):  # type: ignore[attr-defined, call-overload]
            over = RULES[logical] if logical else None
            share = math.prod(ways[name] for name in over or ())
            if dim % share:
                product = " x ".join(f"{name} {ways[name]}" for name in over or ())
                raise ValueError(
                    f"{'/'.join(path)}: its {logical} dim {dim} is not divisible by {share} = mesh {product}; "
                    f"{nearest_divisors(dim, share)}"
                )

    walk(shapes, axes, ())


def _multiples(size: int, step: int) -> str:
    below, above = size // step * step, -(-size // step) * step
    return f"{below} or {above}" if below else str(above)


def _divisors(size: int, way: int) -> str:
    return nearest_divisors(size, way, "x").removeprefix("x=")
