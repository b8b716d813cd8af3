"""What must always hold of the model: absent means absent, windows are alone in their pack, structure changes no
number.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnihuman_jax.attention.dispatch import AttentionStrategy
from omnihuman_jax.conditions import Condition, clean_mask
from omnihuman_jax.models import mmdit
from omnihuman_jax.models.execution import REMAT_POLICIES, ExecutionConfig
from omnihuman_jax.sharding import MeshConfig, batch_shardings, create_mesh, named_sharding


def is_axes(x) -> bool:
    return isinstance(x, tuple)


def relative_error(found, expected) -> float:
    return float(np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max())


def without_additions(params: dict) -> dict:
    kept = {}
    for name, value in params.items():
        if mmdit.condition_group((name,)) == "base":
            kept[name] = without_additions(value) if isinstance(value, dict) else value
    return kept


@pytest.fixture
def params(config, randomise) -> dict:
    return randomise(mmdit.init_params(config, jax.random.key(0)))


@pytest.fixture(scope="module")
def velocity():
    """(config, params, packed) -> velocity; compiled once a config."""
    compiled = {}

    def run(config, params, packed):
        key = repr(config)
        if key not in compiled:
            frozen = dataclasses.replace(config)
            compiled[key] = jax.jit(lambda params, *packed: mmdit.apply(frozen, params, *packed))
        return np.asarray(compiled[key](params, *packed))

    return run


def test_absent_means_absent(config, params, velocity, pack, window, measured) -> None:
    """No audio, pose, reference, motion: exactly the model without those branches, with the branches' weights
    random.
    """
    # Text stays: absent, it is the embedding of the empty prompt, which is data.
    bare = {"motion": False, **{c.label: False for c in Condition if c is not Condition.TEXT}}
    packed = pack([window(seed=1, **bare), window(seed=2, **bare)], [window(seed=3, **bare)])
    base_config = dataclasses.replace(config, **dict.fromkeys(mmdit.ADDED))
    base = velocity(base_config, without_additions(params), packed)
    claim = "velocity, all conditions absent, the additions' weights random, against the model built without them"
    measured(claim, relative_error(velocity(config, params, packed), base), 1e-6)
    present = pack([window(seed=1), window(seed=2)], [window(seed=3)])
    for name in mmdit.ADDED:
        on = pack([window(seed=1, **bare | {name: True}), window(seed=2, **bare)], [window(seed=3, **bare)])
        found = velocity(config, params, on)
        rows = packed[2].segment_ids_BL == 1
        rows[1] = False
        assert relative_error(found[rows], base[rows]) > 1e-3, f"{name} changes nothing: the test proves nothing"
        others = (packed[2].segment_ids_BL > 0) & ~rows
        assert relative_error(found[others], base[others]) <= 1e-6
    assert np.isfinite(velocity(config, params, present)).all()


def test_a_freshly_extended_model_is_the_pretrained_one(config, velocity, randomise, pack, window) -> None:
    """Zero-initialised additions: all conditions on, the output is still the base model's."""
    fresh = mmdit.init_params(config, jax.random.key(0))
    base = randomise(without_additions(fresh))

    def graft(tree: dict, onto: dict) -> dict:
        return {k: graft(v, onto.get(k, {})) if isinstance(v, dict) else onto.get(k, v) for k, v in tree.items()}

    packed = pack([window(seed=1), window(seed=2, motion=True)], [window(seed=3)])
    base_config = dataclasses.replace(config, audio=None, pose=None)
    assert relative_error(velocity(config, graft(fresh, base), packed), velocity(base_config, base, packed)) <= 1e-6


def test_a_window_does_not_depend_on_what_it_is_packed_with(config, params, velocity, pack, window, measured) -> None:
    one, two = window(seed=1, motion=True), window(seed=2, frames=2, height=2, width=3, text=6, t=0.2)
    together = pack([two, one], [one, two])
    alone = pack([one], [two], start=2)
    found, expected = velocity(config, params, together), velocity(config, params, alone)
    rows = {(b, g): together[2].segment_ids_BL[b] == g for b in (0, 1) for g in (1, 2)}
    lone = [alone[2].segment_ids_BL[b] > 0 for b in (0, 1)]
    for (b, g), b_alone in {(0, 2): 0, (1, 1): 0, (0, 1): 1, (1, 2): 1}.items():
        error = relative_error(found[b, rows[b, g]], expected[b_alone, lone[b_alone]])
        measured("velocity of a window, packed with another against alone", error, 1e-5)


def test_nothing_leaks_between_windows(config, params, velocity, pack, window) -> None:
    """Change everything about a window: bit for bit, its neighbours stay."""
    first = velocity(config, params, packed := pack([window(seed=1), window(seed=2), window(seed=3)], [window(seed=4)]))
    second = velocity(config, params, pack([window(seed=1), window(seed=9, t=0.1), window(seed=3)], [window(seed=4)]))
    ids = packed[2].segment_ids_BL
    middle = (ids == 2) & (np.arange(2) == 0)[:, None]
    assert relative_error(second[middle], first[middle]) > 1e-2
    np.testing.assert_array_equal(second[(ids > 0) & ~middle], first[(ids > 0) & ~middle])


def test_every_input_of_a_window_reaches_its_output(config, params, velocity, pack, window) -> None:
    tokens, t, batch = pack([window(seed=1)], [window(seed=2)])
    before = velocity(config, params, (tokens, t, batch))
    video = (batch.segment_ids_BL == 1) & ~batch.is_reference_BL & (np.arange(2) == 0)[:, None]
    changes = {
        "reference": (tokens + 0.5 * (batch.is_reference_BL & (np.arange(2) == 0)[:, None])[..., None], t, batch),
        "t": (tokens, t - np.array([[0.3], [0]], np.float32), batch),
        "motion": (
            tokens,
            t,
            dataclasses.replace(batch, motion_BG=batch.motion_BG | (np.arange(2) == 0)[:, None]),
        ),
    }
    for name in ("text_BSE", "pooled_BGE", "audio_BTE", "keypoints_BTJ3"):
        changed = getattr(batch, name).copy()
        changed[0] *= 0.5
        changes[name] = (tokens, t, dataclasses.replace(batch, **{name: changed}))
    for name, (tokens, t, batch) in changes.items():
        after = velocity(config, params, (np.asarray(tokens, np.float32), t, batch))
        assert relative_error(after[video], before[video]) > 1e-4, f"{name} does not reach the output"
        np.testing.assert_array_equal(after[1], before[1])


def test_clean_mask_is_references_and_active_motion(pack, window) -> None:
    _, _, batch = pack(
        [window(seed=1, motion=True), window(seed=2, motion=False)], [window(seed=3, reference=False, motion=True)]
    )
    clean = clean_mask(batch)
    np.testing.assert_array_equal(clean, clean_mask(jax.tree.map(jnp.asarray, batch)))
    assert clean[0].tolist() == [True] * 6 + [True] * 12 + [False] * 6 + [True] * 6 + [False] * 18 + [False] * 24
    assert clean[1].tolist() == [True] * 12 + [False] * 60


def test_clean_tokens_are_modulated_with_time_zero(config, params, velocity, pack, window) -> None:
    """A window of clean tokens alone does not know its t, but through the text (which reads the noisy row)."""
    config = dataclasses.replace(config, num_dual_layers=1, num_single_layers=0, num_refiner_layers=0)
    cut = lambda tree: jax.tree.map(lambda x: x[:1], tree)  # noqa: E731
    small = {k: v for k, v in params.items() if k != "single_blocks"} | {"dual_blocks": cut(params["dual_blocks"])}
    small["text_refiner"] = {k: v for k, v in params["text_refiner"].items() if k != "blocks"}
    tokens, t, batch = pack(
        [window(seed=1, frames=2, motion=True, text=0)], [window(seed=2, frames=2, motion=False, text=0)]
    )
    before, after = (velocity(config, small, (tokens, at, batch)) for at in (t, t * 0.5))
    rows = batch.segment_ids_BL > 0
    np.testing.assert_array_equal(after[0, rows[0]], before[0, rows[0]])
    assert relative_error(after[1, rows[1]], before[1, rows[1]]) > 1e-3


def gradients(config, params, packed, remat="none"):
    """Loss over noisy tokens, and its gradient."""

    def loss(params, tokens, t, batch):
        noisy = (batch.segment_ids_BL > 0) & ~clean_mask(batch)
        out = mmdit.apply(config, params, tokens, t, batch, execution=ExecutionConfig(remat=remat))
        return (jnp.square(out).sum(-1) * noisy).sum() / jnp.maximum(noisy.sum(), 1)

    # Compiled for compile time: these run once.
    quick = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.value_and_grad(loss), compiler_options=quick)(params, *packed)


def test_gradients_are_finite_and_reach_every_parameter(config, params, pack, window) -> None:
    """With padding, an empty sequence and garbage in unused rows."""
    packed = pack([window(seed=1), window(seed=2, audio=False, motion=True)], [])
    loss, tree = gradients(config, params, packed)
    assert np.isfinite(loss) and loss > 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert np.isfinite(leaf).all(), f"not finite: {jax.tree_util.keystr(path)}"
        assert is_inert(path) or np.abs(leaf).max() > 0, f"unused: {jax.tree_util.keystr(path)}"


@pytest.mark.slow
def test_remat_changes_no_number(config, params, pack, window) -> None:
    config = dataclasses.replace(config, audio=None, pose=None, num_refiner_layers=0, num_single_layers=1)
    params = without_additions(params)
    params["text_refiner"] = {k: v for k, v in params["text_refiner"].items() if k != "blocks"}
    params["single_blocks"] = jax.tree.map(lambda x: x[:1], params["single_blocks"])
    packed = pack([window(seed=1), window(seed=2, motion=True)], [])
    loss, tree = gradients(config, params, packed)
    for remat in REMAT_POLICIES:
        found_loss, found_tree = gradients(config, params, packed, remat)
        assert abs(found_loss - loss) <= 1e-6 * loss, remat
        for found, expected in zip(jax.tree.leaves(found_tree), jax.tree.leaves(tree), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=remat)


def spread(config, params, packed, shape, **ways):
    """(mesh, parameters and inputs split over it as the table says)."""
    mesh = create_mesh(MeshConfig(**ways))
    shapes, axes = mmdit.abstract_params(config)
    tokens, t, batch = packed
    places = batch_shardings(mesh, shape, len(t))
    params = jax.device_put(
        params, jax.tree.map(lambda a, s: named_sharding(mesh, a, s.shape), axes, shapes, is_leaf=is_axes)
    )
    inputs = (
        jax.device_put(tokens, places.latents_BLC),
        jax.device_put(t, places.motion_BG),
        jax.device_put(batch, places),
    )
    return mesh, params, inputs


def test_the_mesh_does_not_change_the_velocity(config, params, velocity, pack, window) -> None:
    """Weights and tokens split over fsdp, context and tensor give the unsplit output."""
    packed = pack(*([window(seed=2 * i + 1), window(seed=2 * i + 2, pose=False)] for i in range(4)))
    alone = velocity(config, params, packed)
    mesh, params, inputs = spread(config, params, packed, pack.shape, data=1, fsdp=2, context=2, tensor=2)
    kernel = params["dual_blocks"]["video"]["attention"]["q"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    with jax.set_mesh(mesh):
        found = jax.jit(lambda params, *packed: mmdit.apply(config, params, *packed))(params, *inputs)
    assert relative_error(found, alone) <= 1e-5


@pytest.mark.slow
def test_the_mesh_does_not_change_the_gradients(config, params, pack, window) -> None:
    """On data x fsdp x tensor, where XLA swaps rows of the batch in backward passes that leave it the choice."""
    packed = pack(*([window(seed=2 * i + 1), window(seed=2 * i + 2, motion=i % 2 == 0)] for i in range(4)))
    loss, alone = gradients(config, params, packed)
    mesh, params, inputs = spread(config, params, packed, pack.shape, data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        found_loss, found = gradients(config, params, inputs)
    assert abs(found_loss - loss) <= 1e-5 * loss
    for (path, leaf), expected in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(alone), strict=True):
        if not is_inert(path):
            assert relative_error(leaf, expected) <= 1e-4, jax.tree_util.keystr(path)


def is_inert(path) -> bool:
    """The refiner's key bias shifts all of a query's scores alike (no QK-norm): its gradient is zero but for
    rounding.
    """
    return jax.tree_util.keystr(path, simple=True, separator="/") == "text_refiner/blocks/k/bias"


def test_every_layer_of_a_scan_runs_once_and_in_order(config, params, velocity, pack, window) -> None:
    packed = pack([window(seed=1)], [window(seed=2)])
    before = velocity(config, params, packed)
    longer = dict(params)
    for name in ("dual_blocks", "single_blocks"):
        swapped = params | {name: jax.tree.map(lambda x: x[::-1], params[name])}
        assert relative_error(velocity(config, swapped, packed), before) > 1e-3, (
            "the order of the layers makes no difference"
        )
        longer[name] = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:1])]), params[name])
    deeper = dataclasses.replace(
        config, num_dual_layers=config.num_dual_layers + 1, num_single_layers=config.num_single_layers + 1
    )
    # A block of zeros is the identity: its gates are closed.
    assert relative_error(velocity(deeper, longer, packed), before) <= 1e-6


def test_abstract_params_describe_init_params(config) -> None:
    shapes, axes = mmdit.abstract_params(config)
    made = mmdit.init_params(config, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    named = jax.tree.map(lambda a, s: len(a) == len(s.shape), axes, shapes, is_leaf=is_axes)
    assert all(jax.tree.leaves(named))
    assert axes["dual_blocks"]["video"]["attention"]["q"]["kernel"] == ("layers", "embed", "heads", "head_dim")
    layers = made["dual_blocks"]["video"]["attention"]["q"]["kernel"]
    assert np.abs(np.asarray(layers[0] - layers[1])).max() > 0, "layers share their initial weights"


def test_condition_groups(config) -> None:
    shapes, _ = mmdit.abstract_params(config)
    groups: dict[str, set[tuple[str, ...]]] = {"base": set(), **{label: set() for label in mmdit.ADDED}}
    for path, _ in jax.tree_util.tree_leaves_with_path(shapes):
        names = tuple(entry.key for entry in path)
        groups[mmdit.condition_group(names)].add(names)
    tops = {
        label: {names[1] if names[0].endswith("blocks") else names[0] for names in found}
        for label, found in groups.items()
    }
    assert tops["audio"] == {"audio_adapter", "audio_attention"} and tops["pose"] == {"pose_guider"}
    # Of every condition that a config can leave out: the group is what the model lacks without it.
    optional = {field.name for field in dataclasses.fields(config) if field.default is None}
    assert optional == set(mmdit.ADDED) == {label for label in mmdit.ADDED if getattr(config, label) is not None}
    for label in mmdit.ADDED:
        without, _ = mmdit.abstract_params(dataclasses.replace(config, **{label: None}))
        left = {tuple(entry.key for entry in path) for path, _ in jax.tree_util.tree_leaves_with_path(without)}
        assert set().union(*groups.values()) - left == groups[label]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "width 48 is not a multiple of model.num_heads 5"),
        ({"rope_axes": (4, 8, 10)}, "sum to width / num_heads = 24"),
        ({"num_dual_layers": 0}, "model.num_dual_layers is 0"),
    ],
)
def test_a_config_that_does_not_fit_is_an_error(config, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change).validate()


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        (ExecutionConfig(remat="full"), "execution.remat 'full' is unknown; it is one of 'none', 'block', 'attention'"),
        (ExecutionConfig(attention=AttentionStrategy(kernel="flash")), "kernel 'flash' is unknown; it is one of auto"),
    ],
)
def test_an_execution_that_there_is_not_is_an_error(config, params, pack, window, execution, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        execution.validate()
    with pytest.raises(ValueError, match=message):
        mmdit.apply(config, params, *pack([window(seed=1)]), execution=execution)


def test_a_batch_that_does_not_fit_is_an_error(config, params, pack, window) -> None:
    tokens, t, batch = pack([window(seed=1)])
    with pytest.raises(ValueError, match="channels of a patch token: 11 instead of 12"):
        mmdit.apply(config, params, tokens[..., :11], t, batch)
    with pytest.raises(ValueError, match="window slots in t_BG: 2 instead of 3"):
        mmdit.apply(config, params, tokens, t[:, :2], batch)
