"""No pickle is ever loaded: planted wherever files are read, none runs; and no code here could load one."""

import ast
import json
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from omnihuman_jax import sharding
from omnihuman_jax.checkpoint.reader import CheckpointReader
from omnihuman_jax.codecs.codec import load_codec
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import DatasetSpec
from omnihuman_jax.encoders.speech import load_speech_encoder
from omnihuman_jax.encoders.text import load_text_encoder
from omnihuman_jax.interop import safetensors_io
from omnihuman_jax.serving.poses_omnihuman import read_keypoints
from tests.checkpoint.test_writer import abstract, make_state, saved
from tests.data import synthetic
from tests.encoders import tiny_networks
from tests.test_architecture import PACKAGES, ROOT


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, sentinel: Path):
        self.sentinel = sentinel

    def __reduce__(self) -> tuple:
        return Path.touch, (self.sentinel,)


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[Path]:
    """The file that must not appear."""
    path = tmp_path / "unpickled"
    yield path
    assert not path.exists(), "a pickle was loaded"


def bomb(sentinel: Path) -> bytes:
    return pickle.dumps(Bomb(sentinel))


def torch_file(sentinel: Path, path: Path) -> Path:
    """As torch.save lays it out: a zip with a pickle inside."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bomb(sentinel))
        archive.writestr("archive/version", "3\n")
    return path


def npz_file(sentinel: Path, path: Path, names: list[str]) -> Path:
    """Arrays of objects, which numpy stores as pickles."""
    objects = np.empty(1, object)
    objects[0] = Bomb(sentinel)
    np.savez(path, allow_pickle=True, **dict.fromkeys(names, objects))
    return path


def test_the_bomb_is_live(tmp_path: Path) -> None:
    path = tmp_path / "written"
    pickle.loads(bomb(path))
    assert path.exists()
    archive = npz_file(tmp_path / "by_numpy", tmp_path / "a.npz", ["a"])
    with np.load(archive, allow_pickle=True) as arrays:
        _ = arrays["a"]
    assert (tmp_path / "by_numpy").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "model.pkl"])
def test_encoders_refuse_weights_in_pickle_form(tmp_path: Path, sentinel: Path, name: str) -> None:
    for write, load in (
        (tiny_networks.write_bert, load_text_encoder),
        (tiny_networks.write_whisper, lambda folder: load_speech_encoder(folder, layers=(0,))),
    ):
        folder = write(tmp_path / write.__name__)
        (folder / "model.safetensors").unlink()
        torch_file(sentinel, folder / name)
        with pytest.raises(ValueError, match="is a pickle, which is refused"):
            load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_text_encoder_of_transformers_with_a_pickle_for_weights(tmp_path: Path, sentinel: Path, name: str) -> None:
    """transformers itself would unpickle the first."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "t5", "d_model": 8, "num_layers": 1, "vocab_size": 16})
    )
    torch_file(sentinel, tmp_path / name)
    with pytest.raises(Exception, match=r"(?i)pickle|safetensor|header"):
        load_text_encoder(tmp_path)


def test_a_pickle_named_safetensors_is_an_error(tmp_path: Path, sentinel: Path) -> None:
    folder = tiny_networks.write_bert(tmp_path / "bert")
    (folder / "model.safetensors").write_bytes(bomb(sentinel))
    with pytest.raises(Exception, match=r"(?i)header|safetensor|deserializ"):
        load_text_encoder(folder)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(bomb(sentinel))
    with pytest.raises(ValueError):
        safetensors_io.read_header(tmp_path / "weights" / "model.safetensors")


def test_a_folder_of_pickles_is_no_codec_and_no_export(tmp_path: Path, sentinel: Path) -> None:
    for name in ("diffusion_pytorch_model.bin", "vae.pt", "config.pkl"):
        torch_file(sentinel, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLHunyuanVideo"}))
    with pytest.raises(ValueError, match="is a pickle, which is refused"):
        load_codec(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="are pickles, which run code when loaded"):
        safetensors_io.open_folder(tmp_path)


def test_a_dataset_with_pickles_in_it(tmp_path: Path, sentinel: Path) -> None:
    table = synthetic.catalog(4, latent_frames=(1,))
    folder = synthetic.write_dataset(tmp_path / "dataset", table, num_shards=1)
    for name in ("features.pkl", "catalog.pickle", "dataset_info.pkl", "part.pyd"):
        (folder / name).write_bytes(bomb(sentinel))
    records = open_records(folder)
    assert len(records) == 4 and records[0] is not None and Catalog.load(folder)
    npz_file(sentinel, folder / "dataset.npz", ["empty_text_SE", "empty_pooled_E"])
    with pytest.raises(ValueError, match="allow_pickle"):
        DatasetSpec.load(folder)


def test_every_file_of_a_dataset_as_a_pickle(tmp_path: Path, sentinel: Path) -> None:
    table = synthetic.catalog(4, latent_frames=(1,))
    whole = synthetic.write_dataset(tmp_path / "whole", table, num_shards=1)
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(names) >= 4
    for i, name in enumerate(names):
        folder = tmp_path / f"copy{i}"
        shutil.copytree(whole, folder)
        (folder / name).write_bytes(bomb(sentinel))
        try:
            records = open_records(folder)
            Catalog.load(folder)
            for row in range(4):
                _ = records[row]
        except Exception as error:  # an error is fine, whatever it is; running the file is not
            assert not isinstance(error, AssertionError)


def test_every_kind_of_file_of_a_checkpoint_as_a_pickle(tmp_path: Path, sentinel: Path) -> None:
    mesh = sharding.create_mesh(sharding.MeshConfig(data=2, fsdp=4))
    whole = saved(tmp_path / "whole", mesh, 1)
    shapes = abstract(make_state(mesh, 1))
    paths = sorted(path for path in whole.rglob("*") if path.is_file())
    # One of each kind: data files are named by chance, and there are many of them.
    kinds = {
        (path.parent.name, "" if path.parent.name == "d" else path.name): path.relative_to(whole) for path in paths
    }
    names = list(kinds.values())
    assert len(names) >= 5
    read = 0
    for i, name in enumerate(names):
        folder = tmp_path / f"copy{i}"
        shutil.copytree(whole, folder)
        (folder / name).write_bytes(bomb(sentinel))
        (folder / "1" / "state.pkl").write_bytes(bomb(sentinel))
        try:
            with CheckpointReader(folder) as checkpoints:
                checkpoints.record(1)
                checkpoints.restore(1, shapes)
            read += 1
        except Exception as error:
            assert not isinstance(error, AssertionError)
    assert read < len(names), "no file that was replaced is read at all"


def test_keypoints_of_objects_are_an_error(tmp_path: Path, sentinel: Path) -> None:
    path = npz_file(sentinel, tmp_path / "pose.npz", ["keypoints_TJ3", "height", "width"])
    with pytest.raises(ValueError, match="no keypoints"):
        read_keypoints(path)


# Modules that load pickles, or run what they read.
LOADERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "os.system", "os.popen", "torch.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def wrong_lines(source: str) -> list[int]:
    """Lines that import a loader of pickles or call what runs data."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and {alias.name.split(".")[0] for alias in node.names} & LOADERS:
            lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LOADERS:
            lines.append(node.lineno)
        if isinstance(node, ast.Call):
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}

            def says(name: str, keywords: dict = keywords) -> bool:
                value = keywords.get(name)
                return value is not None and not (isinstance(value, ast.Constant) and value.value is False)

            loader = name_of(keywords["Loader"]) if "Loader" in keywords else ""
            unsafe_yaml = name_of(node.func) == "yaml.load" and loader not in ("yaml.SafeLoader", "_StrictLoader")
            if (
                name_of(node.func) in CALLS
                or unsafe_yaml
                or any(map(says, ("allow_pickle", "trust_remote_code", "shell")))
            ):
                lines.append(node.lineno)
    return lines


# Parsed while tests are collected: Python 3.11's parser can fail where other threads parse as well.
WRONG = [
    f"{path.relative_to(ROOT)}:{line}"
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    for line in wrong_lines(path.read_text())
]


def test_no_code_of_ours_can_load_a_pickle_or_run_data() -> None:
    assert not WRONG


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from cloudpickle import loads", "import numpy as np\nnp.load('x', allow_pickle=True)",
        "torch.load('x')",
        "import yaml\nyaml.load('x', Loader=yaml.Loader)", "subprocess.run('x', shell=True)", "eval('1')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_rule_sees(line: str) -> None:
    assert wrong_lines(line)


def test_the_strict_yaml_loader_is_a_safe_one() -> None:
    import yaml

    from launch.spec import _StrictLoader

    assert issubclass(_StrictLoader, yaml.SafeLoader)
