"""The strict table between our parameters and the PyTorch module's, both ways, bit for bit.

Base parameters have the names of diffusers' `HunyuanVideoTransformer3DModel`, the additions those of
`modeling_omnihuman.py`. Our blocks are stacked along a leading `layers` dim and our kernels are [in..., out...];
PyTorch has one tensor a layer, [out, in]. Every leaf of ours is named by exactly one rule, or building the table fails.

Nothing here reads more than a layer of a leaf at a time: the caller decides what is in memory.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from omnihuman_jax.interop.safetensors_io import TensorSource
from omnihuman_jax.models import mmdit
from omnihuman_jax.typing import PATCH, Params

Path = tuple[str, ...]
ReadSlice = Callable[[Path, int | None], np.ndarray]
"""(path, layer) -> that layer of a stacked leaf, or the whole leaf if layer is None."""
ReadTensor = Callable[[str], np.ndarray]

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "q_norm": "norm_q", "k_norm": "norm_k"}
_TEXT_ATTENTION = {
    "q": "add_q_proj",
    "k": "add_k_proj",
    "v": "add_v_proj",
    "q_norm": "norm_added_q",
    "k_norm": "norm_added_k",
}
_AUDIO_ATTENTION = {
    f"audio_attention/{ours}": f"audio_attn.{theirs}" for ours, theirs in {**_ATTENTION, "out": "to_out.0"}.items()
}


def _embedder(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/fc_in": f"{theirs}.linear_1", f"{ours}/fc_out": f"{theirs}.linear_2"}


def _feed_forward(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/fc_in": f"{theirs}.net.0.proj", f"{ours}/fc_out": f"{theirs}.net.2"}


MODULES: dict[str, str] = {
    "patch_embed": "x_embedder.proj",
    **_embedder("time/mlp", "time_text_embed.timestep_embedder"),
    **_embedder("guidance/mlp", "time_text_embed.guidance_embedder"),
    **_embedder("pooled", "time_text_embed.text_embedder"),
    **_embedder("text_refiner/time/mlp", "context_embedder.time_text_embed.timestep_embedder"),
    **_embedder("text_refiner/pooled", "context_embedder.time_text_embed.text_embedder"),
    "text_refiner/proj_in": "context_embedder.proj_in",
    "final_modulation/linear": "norm_out.linear",
    "proj_out": "proj_out",
    **_feed_forward("audio_adapter/mlp", "audio_embedder.mlp"),
    "audio_adapter": "audio_embedder",
    **_feed_forward("pose_guider/mlp", "pose_embedder.mlp"),
    "pose_guider/embed": "pose_embedder.proj",
}
"""Our module -> theirs, for modules that exist once."""

STACKS: dict[str, tuple[str, dict[str, str]]] = {
    "text_refiner/blocks": (
        "context_embedder.token_refiner.refiner_blocks.{}.",
        {
            "norm1": "norm1",
            **{name: f"attn.{_ATTENTION[name]}" for name in ("q", "k", "v")},
            "out": "attn.to_out.0",
            "norm2": "norm2",
            **_feed_forward("mlp", "ff"),
            "modulation/linear": "norm_out.linear",
        },
    ),
    "dual_blocks": (
        "transformer_blocks.{}.",
        {
            "video/modulation/linear": "norm1.linear",
            "text/modulation/linear": "norm1_context.linear",
            **{f"video/attention/{ours}": f"attn.{theirs}" for ours, theirs in _ATTENTION.items()},
            **{f"text/attention/{ours}": f"attn.{theirs}" for ours, theirs in _TEXT_ATTENTION.items()},
            "video/out": "attn.to_out.0",
            "text/out": "attn.to_add_out",
            **_feed_forward("video/mlp", "ff"),
            **_feed_forward("text/mlp", "ff_context"),
            **_AUDIO_ATTENTION,
        },
    ),
    "single_blocks": (
        "single_transformer_blocks.{}.",
        {
            "modulation/linear": "norm.linear",
            **{f"attention/{ours}": f"attn.{theirs}" for ours, theirs in _ATTENTION.items()},
            "mlp_in": "proj_mlp",
            # Two kernels of ours are one of theirs, [attention; mlp] along its inputs, in this order.
            "out": "proj_out",
            "mlp_out": "proj_out",
            **_AUDIO_ATTENTION,
        },
    ),
}
"""Our stack of blocks -> the name of one of theirs, and the modules in it."""

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "position": "position"}


class KeyTableError(ValueError):
    """Tensors that do not fit the model: every missing, unknown and misshapen one, in one message."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reordering:
    """Ours, reshaped to `split`, transposed by `order`, reshaped to `theirs`; only moves numbers, so it inverts
    exactly.

    `rows_dim`: the dim of ours whose slices are runs of rows of theirs, and so of bytes of its file.
    """

    ours: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    theirs: tuple[int, ...]
    rows_dim: int = 0

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.split).transpose(self.order).reshape(self.theirs)

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        permuted = array.reshape([self.split[dim] for dim in self.order])
        return permuted.transpose(np.argsort(self.order)).reshape(self.ours)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A layer of a leaf of ours (the whole leaf, if `layer` is None), and how it becomes (part of) a tensor of
    theirs.
    """

    path: Path
    layer: int | None
    reordering: Reordering


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A tensor of theirs: its `parts` side by side along the last dim."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KeyTable:
    """The table of one model: `entries` by leaf of ours, all layers of a leaf in a row; `shapes` of our leaves."""

    entries: tuple[Entry, ...]
    shapes: Mapping[Path, tuple[int, ...]]

    def check_torch(self, found: Mapping[str, tuple[int, ...]], where: str) -> None:
        """KeyTableError unless `found` (name -> shape) are exactly the tensors of this model."""
        _check({entry.name: entry.shape for entry in self.entries}, found, where)

    def check_ours(self, found: Mapping[Path, tuple[int, ...]], where: str) -> None:
        """KeyTableError unless `found` (path -> shape) are exactly the parameters of this model."""
        joined = lambda shapes: {"/".join(path): shape for path, shape in shapes.items()}  # noqa: E731
        _check(joined(self.shapes), joined(found), where)

    def to_torch(self, read: ReadSlice, dtype: np.dtype) -> list[TensorSource]:
        """Their tensors in `dtype`, each made from ours when its turn to be written comes."""

        def source(entry: Entry) -> TensorSource:
            return TensorSource(
                name=entry.name,
                shape=entry.shape,
                dtype=np.dtype(dtype),
                parts=lambda: _parts(entry, read),
                rounds=True,
            )

        return [source(entry) for entry in self.entries]

    def parts_from_torch(self, read: ReadTensor) -> Iterator[tuple[Part, np.ndarray]]:
        """(part, its values) of all our parameters, tensor by tensor of theirs, in the dtype that `read` gives.

        Values are a view of what was read wherever their reordering lets them be, so that bytes are touched as they are
        used.
        """
        for entry in self.entries:
            tensor = read(entry.name)
            begin = 0
            for part in entry.parts:
                end = begin + part.reordering.theirs[-1]
                values = tensor if len(entry.parts) == 1 else tensor[..., begin:end]
                yield part, part.reordering.from_torch(values)
                begin = end
            del tensor, values  # before the next read: one tensor at a time

    def only(self, groups: Collection[str]) -> "KeyTable":
        """The part of the table that `mmdit.condition_group` puts into one of `groups` (`base`, `audio`, `pose`)."""
        return KeyTable(
            entries=tuple(e for e in self.entries if mmdit.condition_group(e.parts[0].path) in groups),
            shapes={path: shape for path, shape in self.shapes.items() if mmdit.condition_group(path) in groups},
        )

    def from_torch(self, read: ReadTensor, dtype: np.dtype = np.dtype(np.float32)) -> Params:  # noqa: B008
        """Our parameters as a nested dict of numpy arrays of `dtype`, filled tensor by tensor of theirs."""
        leaves = {path: np.empty(shape, dtype) for path, shape in self.shapes.items()}
        for part, values in self.parts_from_torch(read):
            leaves[part.path][... if part.layer is None else part.layer] = values
        return nest(leaves)


def key_table(config: mmdit.MMDiTConfig) -> KeyTable:
    """The table of the model that `config` describes; allocates nothing.

    AssertionError if a parameter has no rule: someone added one to the model and not to this table.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(mmdit.abstract_params(config)[0]).items()}
    named: dict[str, list[Part]] = {}
    for path in _in_rule_order(shapes):
        shape = shapes[path]
        name, stacked = _torch_name(path)
        reordering = _reordering(path, shape[1:] if stacked else shape, config.latent_channels)
        for layer in range(shape[0]) if stacked else (None,):
            named.setdefault(name.format(layer), []).append(Part(path=path, layer=layer, reordering=reordering))
    entries = []
    for name, parts in named.items():
        inputs = sum(part.reordering.theirs[-1] for part in parts)
        entries.append(Entry(name=name, shape=(*parts[0].reordering.theirs[:-1], inputs), parts=tuple(parts)))
    return KeyTable(entries=tuple(entries), shapes=shapes)


def array_reader(params: Params) -> ReadSlice:
    """Reads slices of a nested dict of numpy or jax arrays; of a jax array, a layer at a time comes to the host."""
    leaves = flatten(params)
    return lambda path, layer: np.asarray(leaves[path] if layer is None else leaves[path][layer])


def flatten(tree: Params, prefix: Path = ()) -> dict[Path, Any]:
    """Leaves of a nested dict by path."""
    leaves: dict[Path, Any] = {}
    for name, value in tree.items():
        leaves |= flatten(value, (*prefix, name)) if isinstance(value, dict) else {(*prefix, name): value}
    return leaves


def nest(leaves: Mapping[Path, Any]) -> Params:
    """The nested dict of leaves by path."""
    tree: Params = {}
    for path, value in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def _rules() -> dict[str, tuple[str, bool]]:
    """Our module -> (their module, whether it is one of a stack), in the order in which parts are joined."""
    rules = {ours: (theirs, False) for ours, theirs in MODULES.items()}
    for stack, (prefix, modules) in STACKS.items():
        rules |= {f"{stack}/{ours}": (prefix + theirs, True) for ours, theirs in modules.items()}
    return rules


_RULES = _rules()
_RANK = {module: rank for rank, module in enumerate(_RULES)}


def _in_rule_order(shapes: Mapping[Path, tuple[int, ...]]) -> list[Path]:
    without = ["/".join(path) for path in shapes if "/".join(path[:-1]) not in _RULES or path[-1] not in LEAVES]
    if without:
        raise AssertionError(f"parameters that no rule of key_table.py names: {', '.join(without)}")
    return sorted(shapes, key=lambda path: (_RANK["/".join(path[:-1])], path[-1]))


def _torch_name(path: Path) -> tuple[str, bool]:
    """(name of theirs, with {} for the layer; whether the leaf is stacked)."""
    module, stacked = _RULES["/".join(path[:-1])]
    return f"{module}.{LEAVES[path[-1]]}", stacked


def _reordering(path: Path, shape: tuple[int, ...], latent_channels: int) -> Reordering:
    """How one layer of the leaf at `path` becomes theirs."""
    module, leaf = "/".join(path[:-1]), path[-1]
    patch = (PATCH, PATCH, latent_channels)  # our order of a patch token's channels; theirs puts the channel first
    if (module, leaf) == ("patch_embed", "kernel"):
        width = shape[1]
        return Reordering(
            ours=shape, split=(*patch, width), order=(3, 2, 0, 1), theirs=(width, latent_channels, 1, PATCH, PATCH)
        )
    if (module, leaf) == ("proj_out", "kernel"):
        return Reordering(ours=shape, split=(shape[0], *patch), order=(3, 1, 2, 0), theirs=(shape[1], shape[0]))
    if (module, leaf) == ("proj_out", "bias"):
        return Reordering(ours=shape, split=patch, order=(2, 0, 1), theirs=shape)
    if leaf == "kernel":
        dims = 2 if module.split("/")[-1] == "out" or module == "pose_guider/embed" else 1
        inputs, outputs = math.prod(shape[:dims]), math.prod(shape[dims:])
        return Reordering(ours=shape, split=(inputs, outputs), order=(1, 0), theirs=(outputs, inputs), rows_dim=dims)
    theirs = shape if leaf == "position" else (math.prod(shape),)
    return Reordering(ours=shape, split=theirs, order=tuple(range(len(theirs))), theirs=theirs)


def _parts(entry: Entry, read: ReadSlice) -> list[np.ndarray]:
    """The parts of a tensor of theirs, in its reordering: views of what `read` gave."""
    parts = []
    for part in entry.parts:
        array = np.asarray(read(part.path, part.layer))
        if array.shape != part.reordering.ours:
            raise KeyTableError(
                f"{'/'.join(part.path)}: the file has shape {list(array.shape)}, the model expects "
                f"{list(part.reordering.ours)}"
            )
        parts.append(part.reordering.to_torch(array))
    return parts


def _check(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    lines = [f"missing {name} {list(expected[name])}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"unknown {name} {list(found[name])}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if tuple(expected[name]) != tuple(found[name]):
            lines.append(f"{name} is {list(found[name])} instead of {list(expected[name])}")
    if lines:
        raise KeyTableError(
            f"{where} does not fit the model ({len(lines)} of {len(expected)} names): {'; '.join(lines)}"
        )
