"""Streaming safetensors: same bytes as the reference implementation reads, one tensor at a time, whole folders only."""

import json
import weakref

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from omnihuman_jax.interop import safetensors_io as io
from omnihuman_jax.serving.folders_omnihuman import weight_files


def _source(name: str, array: np.ndarray, read=None) -> io.TensorSource:
    return io.TensorSource(name=name, shape=array.shape, dtype=array.dtype, parts=lambda: [read() if read else array])


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((3, 5)).astype(np.float32),
        "a.bias": rng.standard_normal(7).astype(ml_dtypes.bfloat16),
        "transposed": rng.standard_normal((4, 6)).astype(np.float32).T,  # not contiguous
        "scalar": np.float32(2.5) * np.ones((), np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "flags": np.array([True, False, True]),
    }


@pytest.mark.parametrize("max_shard_bytes", [10**9, 64, 1])
def test_the_reference_implementation_and_ours_read_what_is_written(tmp_path, max_shard_bytes):
    arrays = _arrays()
    files = io.write_folder(tmp_path, [_source(n, a) for n, a in arrays.items()], max_shard_bytes=max_shard_bytes)
    shards = [path for path in files if path.suffix == ".safetensors"]
    assert (len(shards) == 1) == (max_shard_bytes == 10**9)
    theirs: dict = {}
    for path in shards:
        theirs |= load_file(path)
    ours = io.open_folder(tmp_path)
    assert set(theirs) == set(ours) == set(arrays)
    for name, array in arrays.items():
        read = io.read_tensor(ours[name])
        assert read.dtype == array.dtype
        assert read.shape == array.shape == tuple(theirs[name].shape)
        assert read.tobytes() == array.tobytes()
        if array.dtype == ml_dtypes.bfloat16:
            np.testing.assert_array_equal(theirs[name].float().numpy(), array.astype(np.float32))
        else:
            np.testing.assert_array_equal(theirs[name].numpy(), array)
    if len(shards) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(arrays)
        assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays.values())


def test_transformers_metadata_is_there(tmp_path):
    io.write_folder(tmp_path, [_source("a", np.ones(2, np.float32))], metadata={"weights": "ema"})
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "weights": "ema"}


def test_one_tensor_is_held_at_a_time(tmp_path):
    """Each tensor is freed before the next is read: a finalizer on the base array sees it go."""
    seen: list[weakref.ref] = []
    most = 0

    class Tracked(np.ndarray):
        pass

    def read() -> np.ndarray:
        nonlocal most
        array = np.ones((16, 16), np.float32).view(Tracked)
        seen.append(weakref.ref(array))
        most = max(most, sum(ref() is not None for ref in seen))
        return array

    sources = [_source(f"t{i}", np.ones((16, 16), np.float32), read) for i in range(6)]
    io.write_folder(tmp_path, sources, max_shard_bytes=2500)
    assert most == 1
    assert len(io.open_folder(tmp_path)) == 6


def test_wrong_dtype_and_duplicates_are_refused(tmp_path):
    array = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"x: float64 was read, float32 was announced"):
        io.write_file(tmp_path / "x.safetensors", [_source("x", array, lambda: array.astype(np.float64))])
    with pytest.raises(ValueError, match="x is given twice"):
        io.write_file(tmp_path / "y.safetensors", [_source("x", array), _source("x", array)])
    with pytest.raises(ValueError, match="complex64"):
        io.write_file(tmp_path / "z.safetensors", [_source("x", array.astype(np.complex64))])


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    io.write_file(path, [_source("x", np.ones(100, np.float32))])
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors.*cut short"):
        io.open_folder(tmp_path)
    path.write_bytes(whole[:40])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        io.open_folder(tmp_path)
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"model\.safetensors.*2 bytes"):
        io.open_folder(tmp_path)
    path.write_bytes(whole.replace(b'"shape":[100]', b'"shape":[101]'))
    with pytest.raises(ValueError, match=r"x \(101,\) float32 does not take 400 bytes"):
        io.open_folder(tmp_path)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "{", '{"weight_map": null}', '{"weight_map": {"x": 3}}', '{"weight_map": {"x": "../x"}}']
)
def test_a_damaged_index_is_one_line_for_every_reader(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    (tmp_path / "config.json").write_text("{}")
    for read in (io.open_folder, weight_files):
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json.*fetch it again") as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


def test_pickles_and_missing_shards_are_refused_with_the_cure(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin.*pickles.*convert"):
        io.open_folder(tmp_path)
    io.write_folder(tmp_path, [_source(f"t{i}", np.ones(9, np.float32)) for i in range(3)], max_shard_bytes=1)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00003\.safetensors"):
        io.open_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        io.open_folder(tmp_path / "nowhere")
