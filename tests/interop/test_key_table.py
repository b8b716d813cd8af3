"""The key table: complete, strict, and exact in both directions."""

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from omnihuman_jax.interop import key_table as kt
from omnihuman_jax.models import mmdit
from omnihuman_jax.serving.modeling_omnihuman import OmniHumanForVideo
from tests.interop.cases import odd_config, random_tensors, torch_config

FP32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
CONFIGS = {
    "all": odd_config(guidance_embed=True),
    "base": odd_config(audio=None, pose=None),
    "dual only, no refiner, no pooled": odd_config(num_single_layers=0, num_refiner_layers=0, pooled_width=0),
}


def _bits(tree) -> list[tuple[str, bytes]]:
    return [
        (jax.tree_util.keystr(path), np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_table_names_exactly_the_module_and_the_parameters(config):
    table = kt.key_table(config)
    with torch.device("meta"):
        module = OmniHumanForVideo(torch_config(config))
    table.check_torch({name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}, "the module")
    shapes, _ = mmdit.abstract_params(config)
    table.check_ours({path: leaf.shape for path, leaf in kt.flatten(shapes).items()}, "the parameters")
    slices = [(part.path, part.layer) for entry in table.entries for part in entry.parts]
    assert len(slices) == len(set(slices))
    numbers = sum(np.prod(entry.shape) for entry in table.entries)
    assert numbers == sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_round_trip_is_bit_identical(config, dtype):
    table = kt.key_table(config)
    tensors = {name: array.astype(dtype) for name, array in random_tensors(table).items()}
    ours = table.from_torch(tensors.__getitem__)
    back = {source.name: source.read() for source in table.to_torch(kt.array_reader(ours), dtype)}
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert back[name].dtype == dtype and back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes(), name
    assert _bits(table.from_torch(back.__getitem__)) == _bits(ours)


def test_round_trip_from_jax_arrays_is_bit_identical():
    config = CONFIGS["all"]
    table = kt.key_table(config)
    params = jax.tree.map(jax.numpy.asarray, table.from_torch(random_tensors(table).__getitem__))
    tensors = {source.name: source.read() for source in table.to_torch(kt.array_reader(params), FP32)}
    assert _bits(table.from_torch(tensors.__getitem__)) == _bits(params)


def test_each_number_goes_where_its_meaning_is():
    """Spot checks against the definition, not against the inverse: a consistent mix-up passes a round trip."""
    config = CONFIGS["all"]
    table = kt.key_table(config)
    tensors = random_tensors(table)
    ours = table.from_torch(tensors.__getitem__)
    heads, head_dim, width = config.num_heads, config.head_dim, config.width

    q = ours["dual_blocks"]["video"]["attention"]["q"]["kernel"]
    assert q.shape == (2, width, heads, head_dim)
    np.testing.assert_array_equal(q[1, :, 2, 3], tensors["transformer_blocks.1.attn.to_q.weight"][2 * head_dim + 3])
    out = ours["single_blocks"]["out"]["kernel"]
    np.testing.assert_array_equal(out[2, 1, 4], tensors["single_transformer_blocks.2.proj_out.weight"][:, head_dim + 4])
    mlp_out = ours["single_blocks"]["mlp_out"]["kernel"]
    np.testing.assert_array_equal(mlp_out[0, 5], tensors["single_transformer_blocks.0.proj_out.weight"][:, width + 5])
    patch = ours["patch_embed"]["kernel"].reshape(2, 2, config.latent_channels, width)
    np.testing.assert_array_equal(patch[1, 0, 3], tensors["x_embedder.proj.weight"][:, 3, 0, 1, 0])
    bias = ours["proj_out"]["bias"].reshape(2, 2, config.latent_channels)
    np.testing.assert_array_equal(
        bias, tensors["proj_out.bias"].reshape(config.latent_channels, 2, 2).transpose(1, 2, 0)
    )
    modulation = ours["dual_blocks"]["text"]["modulation"]["linear"]["kernel"]
    np.testing.assert_array_equal(
        modulation[0, :, 5, 7], tensors["transformer_blocks.0.norm1_context.linear.weight"][5 * width + 7]
    )


def test_everything_wrong_is_in_one_error():
    table = kt.key_table(CONFIGS["all"])
    shapes = {entry.name: entry.shape for entry in table.entries}
    del shapes["proj_out.bias"], shapes["transformer_blocks.1.attn.to_q.weight"]
    shapes |= {"lora.weight": (3,), "norm_out.linear.bias": (61,)}
    with pytest.raises(kt.KeyTableError) as error:
        table.check_torch(shapes, "model.safetensors")
    text = str(error.value)
    assert text.startswith("model.safetensors does not fit the model (4 of ")
    assert "missing proj_out.bias [16]" in text
    assert "missing transformer_blocks.1.attn.to_q.weight [30, 30]" in text
    assert "unknown lora.weight [3]" in text
    assert "norm_out.linear.bias is [61] instead of [60]" in text

    ours = dict(table.shapes)
    ours[("time", "mlp", "fc_in", "kernel")] = (1, 2)
    del ours[("proj_out", "bias")]
    with pytest.raises(
        kt.KeyTableError, match=r"\(2 of .*missing proj_out/bias \[16\].*time/mlp/fc_in/kernel is \[1, 2\]"
    ):
        table.check_ours(ours, "the checkpoint")


def test_a_parameter_without_a_rule_fails(monkeypatch):
    abstract = mmdit.abstract_params
    monkeypatch.setattr(
        mmdit, "abstract_params", lambda config: (abstract(config)[0] | {"new_branch": {"kernel": np.ones(3)}}, None)
    )
    with pytest.raises(AssertionError, match="new_branch/kernel"):
        kt.key_table(CONFIGS["base"])


def test_full_size_needs_no_memory_and_has_diffusers_own_names_and_shapes():
    from diffusers import HunyuanVideoTransformer3DModel

    config = mmdit.MMDiTConfig(guidance_embed=True)
    with torch.device("meta"):
        reference = HunyuanVideoTransformer3DModel()
    table = kt.key_table(config)
    table.check_torch(
        {name: tuple(tensor.shape) for name, tensor in reference.state_dict().items()}, "diffusers' HunyuanVideo"
    )
    assert sum(int(np.prod(entry.shape)) for entry in table.entries) == sum(p.numel() for p in reference.parameters())


def test_reads_are_one_layer_at_a_time_and_leaf_by_leaf():
    table = kt.key_table(CONFIGS["all"])
    params = table.from_torch(random_tensors(table).__getitem__)
    read = kt.array_reader(params)
    reads: list[tuple[kt.Path, int | None]] = []

    def logged(path: kt.Path, layer: int | None) -> np.ndarray:
        reads.append((path, layer))
        return read(path, layer)

    for source in table.to_torch(logged, FP32):
        source.read()
    assert sorted(reads, key=str) == sorted(set(reads), key=str)  # each slice once
    # A reader that keeps two leaves (the two that are joined) never reads one again.
    leaves = [path for path, _ in reads]
    for path in set(leaves):
        span = leaves[leaves.index(path) : len(leaves) - leaves[::-1].index(path)]
        assert len(set(span)) <= 2
