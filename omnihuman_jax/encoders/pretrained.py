"""A network on disk in the layout of the Hugging Face hub: `config.json` and safetensors weights.

Weights in pickle form are refused: reading one runs whatever code it holds.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.runtime.files import file_sha256
from omnihuman_jax.serving.text_encoders_omnihuman import DESCRIPTIONS, PICKLES

# Owner and repository; and a folder in it, where a repository holds several networks (`.../vae`).
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
# Of transformers and of diffusers: stem of the weights' file, and the class that converts a pickle.
_STEMS = {"model": "transformers: AutoModel", "diffusion_pytorch_model": "diffusers: AutoModel"}
_LISTED = 20  # wrong tensors that an error names


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedFolder:
    """A network's files, found and parsed as far as `config.json`.

    ref     what loads the same network again: the absolute path of the folder, or its hub id
    path    where the files lie
    config  the parsed `config.json`
    """

    ref: str
    path: Path
    config: Mapping[str, Any]

    def require(self, *keys: str) -> list[Any]:
        """The values of `keys` in `config.json`; ValueError names those that are missing."""
        missing = [key for key in keys if key not in self.config]
        if missing:
            raise ValueError(
                f"{self.path / 'config.json'}: no {', '.join(missing)}; is it a {self.config.get('model_type')} model?"
            )
        return [self.config[key] for key in keys]

    def weight_files(self) -> list[Path]:
        """The safetensors files, in order; ValueError with the cure if there are none."""
        stem = "diffusion_pytorch_model" if "_class_name" in self.config else "model"
        index = self.path / f"{stem}.safetensors.index.json"
        if index.is_file():
            names = sorted(set(read_weight_map(index).values()))
        else:
            names = [f"{stem}.safetensors"]
        files = [self.path / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if not missing:
            return files
        pickles = sorted(file.name for file in self.path.iterdir() if file.suffix in PICKLES)
        found = f"{pickles[0]} is a pickle, which is refused because reading one runs code" if pickles else "found none"
        raise ValueError(
            f"{self.path}: needs {missing[0]}; {found}; convert once with {_STEMS[stem]}"
            ".from_pretrained(DIR).save_pretrained(OUT, safe_serialization=True)"
        )

    def tensors(self, prefix: str) -> dict[str, np.ndarray]:
        """Name -> float32 array of every tensor whose name begins with `prefix`, which is cut off."""
        from safetensors.numpy import load_file

        found: dict[str, np.ndarray] = {}
        for file in self.weight_files():
            for name, tensor in load_file(file).items():
                if name.startswith(prefix):
                    found[name.removeprefix(prefix)] = np.asarray(tensor, np.float32)
        return found

    def sha256(self) -> dict[str, str]:
        """File name -> sha256 of each file that the network is made of: weights, and what describes them
        (`DESCRIPTIONS`).
        """
        described = [self.path / name for name in DESCRIPTIONS]
        return {file.name: file_sha256(file) for file in [*self.weight_files(), *described] if file.is_file()}


def changed_files(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Names of files that differ, or that one side lacks; both are file name -> sha256.

    Datasets of before the files that describe the weights were recorded are compared by their weights alone.
    """
    if not any(Path(name).name == "config.json" for name in recorded):
        found = {name: digest for name, digest in found.items() if name.endswith(".safetensors")}
    return sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file, of a `*.safetensors.index.json`; ValueError with the cure if it is damaged."""
    try:
        stated = json.loads(index.read_text(encoding="utf-8"))
        names = stated["weight_map"]
        if names and all(isinstance(name, str) and Path(name).name == name for name in names.values()):
            return dict(names)
        reason = "its weight_map names no files of this folder"
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = f"not JSON: {error}"
    except (KeyError, TypeError, AttributeError):
        reason = "no weight_map of tensor names to files"
    raise ValueError(f"{index}: damaged ({reason}); fetch it again")


class Weights:
    """Named tensors, taken one by one with the shape that the config promises; what is wrong is reported all at
    once.
    """

    def __init__(self, tensors: Mapping[str, Any]):
        self._tensors = tensors
        self._taken: set[str] = set()
        self._wrong: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, *shape: int | None) -> np.ndarray:
        """The tensor `name`; a dim of None may be anything. A placeholder if it is missing: `check` then raises."""
        self._taken.add(name)
        tensor = self._tensors.get(name)
        if tensor is None:
            self._wrong.append(f"{name} is missing")
        elif len(tensor.shape) != len(shape) or any(
            want not in (None, dim) for want, dim in zip(shape, tensor.shape, strict=True)
        ):
            self._wrong.append(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        else:
            return tensor
        return np.zeros([dim or 1 for dim in shape], np.float32)

    def check(self, where: str, unused: tuple[str, ...] = ()) -> None:
        """ValueError with what `take` found wrong, and with tensors that nobody took and that begin with none of
        `unused`.
        """
        unknown = sorted(name for name in self._tensors if name not in self._taken and not name.startswith(unused))
        wrong = [*self._wrong, *(f"{name} is unknown" for name in unknown)]
        if wrong:
            listed = "; ".join(wrong[:_LISTED]) + ("; ..." if len(wrong) > _LISTED else "")
            raise ValueError(f"{where}: weights do not fit config.json: {listed} ({len(wrong)} in all)")


def open_pretrained(dir_or_hub_id: str | os.PathLike[str]) -> PretrainedFolder:
    """The network in a local folder or, where there is a network, on the Hugging Face hub.

    Raises:
        FileNotFoundError: neither a folder with a `config.json` nor a repository that can be reached.
        ValueError: a `config.json` that is no JSON object.
    """
    name = os.fspath(dir_or_hub_id)
    if Path(name).is_dir():
        path = Path(name).resolve()
        ref = str(path)
    elif _HUB_ID.fullmatch(name) and not Path(name).exists():
        path, ref = _download(name), name
    else:
        raise FileNotFoundError(
            f"{name}: no such folder; give a folder with config.json and its safetensors, or a hub id"
        )
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing; give a folder in the layout of the Hugging Face hub")
    try:
        config = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not JSON ({error}); download it again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: a JSON object is expected, not {type(config).__name__}; download it again")
    return PretrainedFolder(ref=ref, path=path, config=config)


def _download(hub_id: str) -> Path:
    match = _HUB_ID.fullmatch(hub_id)
    assert match  # the caller looked
    repository, folder = match.groups()
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"{hub_id}: no such folder; to take it from the hub, `pip install huggingface_hub`"
        ) from None
    try:
        if folder:
            return (
                Path(snapshot_download(repository, allow_patterns=[f"{folder}/{pattern}" for pattern in _HUB_FILES]))
                / folder
            )
        return Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{hub_id}: no such folder, and the hub does not give it ({reason}); give a folder"
        ) from error
