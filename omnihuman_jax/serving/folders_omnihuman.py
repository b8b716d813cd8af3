"""The folder of a network in Hugging Face layout: found, and checked before it is read.

The standard library alone (huggingface_hub for an id of the hub), and no file beside this one: the trainer imports it
from its package, an exported folder carries it as it is. Weights in pickle form are refused: reading one runs code.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Owner and repository; and a folder in it, where a repository holds several networks (`.../vae`).
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?")
_HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Suffixes of files that are never opened."""
DESCRIPTIONS = (
    "config.json", "preprocessor_config.json", "modules.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
    "tokenizer.model",
)  # fmt: skip
"""Files beside the weights that what a network computes depends on: sizes, scaling, sound normalisation, tokens."""
# Of transformers and of diffusers: stem of the weights' file, and the class that converts a pickle.
_STEMS = {"model": "transformers: AutoModel", "diffusion_pytorch_model": "diffusers: AutoModel"}


def local_folder(name: str, cure: str) -> Path:
    """The folder `name`, or the local copy of what the hub has under the id `name`; FileNotFoundError that ends in
    `cure`.
    """
    if Path(name).is_dir():
        return Path(name)
    hub_id = HUB_ID.fullmatch(name)
    if Path(name).exists() or not hub_id:
        raise FileNotFoundError(f"{name}: no such folder; {cure}")
    repository, folder = hub_id.groups()
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"{name}: no such folder; to take it from the hub, `pip install huggingface_hub`"
        ) from None
    try:
        patterns = [f"{folder}/{pattern}" if folder else pattern for pattern in _HUB_FILES]
        return Path(snapshot_download(repository, allow_patterns=patterns)) / (folder or "")
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise FileNotFoundError(f"{name}: no such folder, and not to be had from the hub ({reason}); {cure}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a network's folder; FileNotFoundError without one, ValueError if it is no JSON object."""
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing; give a folder in the layout of the Hugging Face hub")
    try:
        config = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not JSON ({error}); download it again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: a JSON object is expected, not {type(config).__name__}; download it again")
    return config


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


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a network, in order; ValueError with the cure if there are none."""
    stem = "diffusion_pytorch_model" if "_class_name" in read_config(folder) else "model"
    index = folder / f"{stem}.safetensors.index.json"
    names = sorted(set(read_weight_map(index).values())) if index.is_file() else [f"{stem}.safetensors"]
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if not missing:
        return files
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    found = f"{pickles[0]} is a pickle, which is refused because reading one runs code" if pickles else "found none"
    raise ValueError(
        f"{folder}: needs {missing[0]}; {found}; convert once with {_STEMS[stem]}"
        ".from_pretrained(DIR).save_pretrained(OUT, safe_serialization=True)"
    )


def file_sha256(file: Path) -> str:
    """Of its bytes, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def network_sha256(folder: Path, networks: Iterable[Path], others: Iterable[Path] = ()) -> dict[str, str]:
    """File, relative to `folder` -> sha256 of each file that is read: the weights of `networks`, and what describes
    these and `others` (folders of tokenizers).
    """
    networks = list(networks)
    files = {file for part in networks for file in weight_files(part)}
    files |= {part / name for part in [*networks, *others] for name in DESCRIPTIONS if (part / name).is_file()}
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in sorted(files)}


def changed_files(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Names of files that differ, or that one side lacks; both are file name -> sha256.

    Datasets of before the files that describe the weights were recorded are compared by their weights alone.
    """
    if not any(Path(name).name == "config.json" for name in recorded):
        found = {name: digest for name, digest in found.items() if name.endswith(".safetensors")}
    return sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))


def check_weights(role: str, folder: Path, recorded: Mapping[str, str]) -> None:
    """ValueError unless the folder's files are those (name in the folder -> sha256) that the training data were made
    with, and no file that describes a network came beside them.
    """
    parts = {Path(name).parent for name in recorded}
    names = {*recorded, *((part / name).as_posix() for part in parts for name in DESCRIPTIONS)}
    found = {name: file_sha256(folder / name) for name in sorted(names) if (folder / name).is_file()}
    if changed := changed_files(recorded, found):
        name = changed[0]
        what = "is missing" if name not in found else "is another file" if name in recorded else "was not there then"
        raise ValueError(f"{folder} is not the {role} that the model was trained with ({name} {what}); give its folder")
