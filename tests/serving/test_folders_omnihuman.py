"""A folder of weights is one thing: whatever else lies in it, or is missing or cut, is one line that names the file,
for every reader: the trainer's, the networks', the exported module's.
"""

import json
import re
import shutil
from pathlib import Path

import modeling_omnihuman
import numpy as np
import pytest

from omnihuman_jax.interop import safetensors_io
from omnihuman_jax.serving import folders_omnihuman

READERS = {
    "trainer": lambda folder: safetensors_io.open_folder(folder, "model"),
    "trainer, any model": safetensors_io.open_folder,
    "network": folders_omnihuman.weight_files,
    "exported module": modeling_omnihuman.weight_files,
}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write(folder: Path, *, shards: bool, seed: int = 0, export: str = "a") -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("a", "b")}
    sources = [
        safetensors_io.TensorSource(name=name, shape=array.shape, dtype=array.dtype, parts=lambda array=array: [array])
        for name, array in arrays.items()
    ]
    safetensors_io.write_folder(
        folder, sources, max_shard_bytes=256 if shards else 1 << 20, metadata={"export": export}
    )
    (folder / "config.json").write_text(json.dumps({"export_id": export}))
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write(tmp_path / "a folder", shards=True)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The same model, of another step: the same names and sizes."""
    return write(tmp_path / "other", shards=True, seed=1, export="b")


def set_index(folder: Path, change: dict) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= change
    (folder / INDEX).write_text(json.dumps(index))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGES = {
    "an old single file beside the index": (
        SINGLE, lambda f, o: shutil.copy(f / FIRST, f / SINGLE),
    ),
    "an old single file that is cut short": (SINGLE, lambda f, o: (f / SINGLE).write_bytes(b"")),
    "a link to nothing in place of the single file": (SINGLE, lambda f, o: (f / SINGLE).symlink_to(f / "nowhere")),
    "a shard of an export in three": (
        "model-00003-of-00003.safetensors", lambda f, o: shutil.copy(o / FIRST, f / "model-00003-of-00003.safetensors"),
    ),
    "a shard is missing": (SECOND, lambda f, o: (f / SECOND).unlink()),
    "a shard is a folder": (SECOND, lambda f, o: ((f / SECOND).unlink(), (f / SECOND).mkdir())),
    "a shard is a link to nothing": (SECOND, lambda f, o: ((f / SECOND).unlink(), (f / SECOND).symlink_to("gone"))),
    "the index is missing": (INDEX, lambda f, o: (f / INDEX).unlink()),
    "the index is cut short": (INDEX, lambda f, o: cut(f / INDEX, 30)),
    "the index is empty": (INDEX, lambda f, o: cut(f / INDEX, 0)),
    "the index names a file above": (INDEX, lambda f, o: set_index(f, {"a": f"../other/{FIRST}"})),
    "the index names an absolute path": (INDEX, lambda f, o: set_index(f, {"a": str(o / FIRST)})),
    "the index names the folder above": (INDEX, lambda f, o: set_index(f, {"a": ".."})),
    "the index names no text": (INDEX, lambda f, o: set_index(f, {"a": 3})),
    "the index names a pickle": (INDEX, lambda f, o: set_index(f, {"a": "pytorch_model.bin"})),
    "the index puts a tensor elsewhere": (FIRST, lambda f, o: set_index(f, {"a": SECOND, "b": FIRST})),
    "the index promises a tensor more": (FIRST, lambda f, o: set_index(f, {"c": FIRST})),
    "a shard has lost its last byte": (FIRST, lambda f, o: cut(f / FIRST, (f / FIRST).stat().st_size - 1)),
    "a shard is cut in its header": (SECOND, lambda f, o: cut(f / SECOND, 40)),
    "a shard is empty": (SECOND, lambda f, o: cut(f / SECOND, 0)),
    "a shard has a byte more": (SECOND, lambda f, o: (f / SECOND).write_bytes((f / SECOND).read_bytes() + b"x")),
    "a shard is a page of a web server": (FIRST, lambda f, o: (f / FIRST).write_text("<html>404</html>")),
    "a shard lies under the other's name": (FIRST, lambda f, o: shutil.copy(f / SECOND, f / FIRST)),
    "a shard is of another export": (SECOND, lambda f, o: shutil.copy(o / SECOND, f / SECOND)),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_one_line_names_the_file(damage: str, reader: str, sharded: Path, other: Path) -> None:
    name, break_it = DAMAGES[damage]
    READERS[reader](sharded)
    break_it(sharded, other)
    if damage.startswith("the index") and damage.endswith("elsewhere"):
        name = r"model-0000[12]-of-00002\.safetensors"  # whichever is looked at first
    else:
        name = re.escape(name)
    with pytest.raises((ValueError, FileNotFoundError), match=name) as error:
        READERS[reader](sharded)
    assert "\n" not in str(error.value) and str(sharded) in str(error.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_single_file_beside_shards_without_their_index(reader: str, tmp_path: Path, other: Path) -> None:
    folder = write(tmp_path / "single", shards=False)
    READERS[reader](folder)
    shutil.copy(other / SECOND, folder / SECOND)
    with pytest.raises(ValueError, match=re.escape(str(folder / SECOND))):
        READERS[reader](folder)


def test_other_models_in_the_folder_do_not_matter(sharded: Path, other: Path) -> None:
    for name in ("empty_prompt.safetensors", "model_ema.safetensors", "diffusion_pytorch_model.safetensors"):
        shutil.copy(other / FIRST, sharded / name)
    for name in ("trainer", "network", "exported module"):
        READERS[name](sharded)
    with pytest.raises(ValueError, match="holds several models"):
        safetensors_io.open_folder(sharded)


def test_a_file_of_the_pipeline_is_of_the_export(sharded: Path, other: Path) -> None:
    folders_omnihuman.check_export(sharded / FIRST, "a")
    with pytest.raises(ValueError, match=rf"{FIRST}: of another export than config\.json"):
        folders_omnihuman.check_export(other / FIRST, "a")
    with pytest.raises(FileNotFoundError, match=r"empty_prompt\.safetensors: missing"):
        folders_omnihuman.check_export(sharded / "empty_prompt.safetensors", "a")
