"""Networks in ONNX for the tests of adapters: of random weights, or so simple that their answer is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write(
    path: Path, nodes: list[Any], inputs: dict[str, list[Any]], outputs: list[str], **weights: np.ndarray
) -> Path:
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def mean_of_all(path: Path, shape: list[Any], view: dict[str, Any] | None = None) -> Path:
    """score: the mean over all but the first axis."""
    axes = list(range(1, len(shape)))
    nodes = [helper.make_node("ReduceMean", ["x"], ["score"], axes=axes, keepdims=0)]
    if view is not None:
        path.with_suffix(".json").write_text(json.dumps(view))
    return write(path, nodes, {"x": shape}, ["score"])


def patch_network(path: Path) -> Path:
    """Patches of 16 pixels, a layer of random weights, and a head: the shapes of an aesthetic predictor. features: what
    the head sees, 64 numbers.
    """
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "patches", "bias"], ["embedded"], strides=[16, 16]),
        helper.make_node("Relu", ["embedded"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("MatMul", ["features", "head"], ["score"]),
    ]
    return write(
        path, nodes, {"x": ["N", 3, 224, 224]}, ["score", "features"],
        patches=rng.normal(0, 0.05, (64, 3, 16, 16)).astype(np.float32), bias=np.zeros(64, np.float32),
        head=rng.normal(0, 1, (64, 1)).astype(np.float32),
    )  # fmt: skip


def jump_network(path: Path) -> Path:
    """A shot network that says 1 where the next frame is brighter or darker by more than 20 of 255, else 0."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["light"], axes=[2, 3, 4], keepdims=0),
        # Data, starts, ends, axes: along the frames.
        helper.make_node("Slice", ["light", "zero", "last", "one"], ["before"]),
        helper.make_node("Slice", ["light", "one", "end", "one"], ["after"]),
        helper.make_node("Sub", ["after", "before"], ["change"]),
        helper.make_node("Abs", ["change"], ["size"]),
        helper.make_node("Greater", ["size", "least"], ["is_jump"]),
        helper.make_node("Cast", ["is_jump"], ["jump"], to=TensorProto.FLOAT),
        helper.make_node("Pad", ["jump", "pads"], ["probability"]),
    ]
    numbers = {"zero": [0], "one": [1], "last": [99], "end": [100], "pads": [0, 0, 0, 1]}
    weights = {name: np.array(value, np.int64) for name, value in numbers.items()}
    return write(path, nodes, {"x": [1, 100, 27, 48, 3]}, ["probability"], least=np.array(20, np.float32), **weights)


def loudness_sync_network(path: Path, *, sound_first: bool = False) -> Path:
    """SyncNet's inputs; its features are, of each of five frames, the light over 10, and the loudness of the sound."""
    nodes = [
        helper.make_node("ReduceMean", ["faces"], ["light"], axes=[1, 3, 4], keepdims=0),
        helper.make_node("Mul", ["light", "tenth"], ["face"]),
        helper.make_node("Slice", ["cepstra", "zero", "one", "rows"], ["loudness"]),
        helper.make_node("Reshape", ["loudness", "by_frame"], ["of_frames"]),
        helper.make_node("ReduceMean", ["of_frames"], ["sound"], axes=[2], keepdims=0),
    ]
    inputs: dict[str, list[Any]] = {"faces": ["N", 3, 5, 224, 224], "cepstra": ["N", 1, 13, 20]}
    outputs = ["face", "sound"]
    if sound_first:
        inputs, outputs = dict(reversed(inputs.items())), outputs[::-1]
    numbers = {"zero": [0], "one": [1], "rows": [2], "by_frame": [-1, 5, 4]}
    weights = {name: np.array(value, np.int64) for name, value in numbers.items()}
    return write(path, nodes, inputs, outputs, tenth=np.array(0.1, np.float32), **weights)
