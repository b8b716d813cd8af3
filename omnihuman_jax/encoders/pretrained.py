"""A network on disk in the layout of the Hugging Face hub: `config.json` and safetensors weights.

How it is found and checked, an exported folder does the same: `serving/folders_omnihuman.py`.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.serving.folders_omnihuman import local_folder, network_sha256, read_config, weight_files

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

    def tensors(self, prefix: str) -> dict[str, np.ndarray]:
        """Name -> float32 array of every tensor whose name begins with `prefix`, which is cut off."""
        from safetensors.numpy import load_file

        found: dict[str, np.ndarray] = {}
        for file in weight_files(self.path):
            for name, tensor in load_file(file).items():
                if name.startswith(prefix):
                    found[name.removeprefix(prefix)] = np.asarray(tensor, np.float32)
        return found

    def sha256(self) -> dict[str, str]:
        """File name -> sha256 of each file that the network is made of: weights, and what describes them."""
        return network_sha256(self.path, [self.path])


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

    def check(self, where: str, unused: tuple[str, ...] = (), promised_by: str = "config.json") -> None:
        """ValueError with what `take` found wrong, and with tensors that nobody took and that begin with none of
        `unused`. `promised_by`: what says which tensors there have to be.
        """
        unknown = sorted(name for name in self._tensors if name not in self._taken and not name.startswith(unused))
        wrong = [*self._wrong, *(f"{name} is unknown" for name in unknown)]
        if wrong:
            listed = "; ".join(wrong[:_LISTED]) + ("; ..." if len(wrong) > _LISTED else "")
            raise ValueError(f"{where}: weights do not fit {promised_by}: {listed} ({len(wrong)} in all)")


def open_pretrained(dir_or_hub_id: str | os.PathLike[str]) -> PretrainedFolder:
    """The network in a local folder or, where there is a network, on the Hugging Face hub.

    Raises:
        FileNotFoundError: neither a folder with a `config.json` nor a repository that can be reached.
        ValueError: a `config.json` that is no JSON object.
    """
    name = os.fspath(dir_or_hub_id)
    found = local_folder(name, "give a folder with config.json and its safetensors, or a hub id")
    is_local = Path(name).is_dir()
    path = found.resolve() if is_local else found
    return PretrainedFolder(ref=str(path) if is_local else name, path=path, config=read_config(path))
