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
_HEADER_LIMIT_BYTES = 100_000_000  # the reference implementation's limit
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
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        outside = [name for name in names.values() if not (isinstance(name, str) and _is_plain(name))]
        if names and not outside:
            return dict(names)
        reason = (
            f"its weight_map names {outside[0]!r}, no file of this folder" if outside else "its weight_map is empty"
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = f"not JSON: {error}"
    except (KeyError, TypeError, AttributeError):
        reason = "no weight_map of tensor names to files"
    raise ValueError(f"{index}: damaged ({reason}); fetch it again")


def _is_plain(name: str) -> bool:
    return Path(name).name == name and name.endswith(".safetensors") and "\0" not in name


def read_header(path: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """(metadata, tensor -> its dtype, shape and data_offsets) of a safetensors file; ValueError that names it unless it
    is whole: its last tensor ends where the file does.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_HEADER_LIMIT_BYTES, size - 8):
            raise ValueError(f"{path} is no safetensors file or is cut short ({size} bytes); fetch it again")
        try:
            entries = json.loads(file.read(length))
            metadata = dict(entries.pop("__metadata__", None) or {})
            ends = {name: 8 + length + int(entry["data_offsets"][1]) for name, entry in entries.items()}
        except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{path}: its safetensors header cannot be read ({error!r}); fetch it again") from error
    last = max(ends, key=ends.__getitem__, default="")
    if ends.get(last, 8 + length) > size:
        raise ValueError(f"{path}: {last} ends after the file does ({size} bytes): cut short; fetch it again")
    if ends.get(last, 8 + length) < size:
        raise ValueError(f"{path}: goes on after its last tensor ({size} bytes): not one file; fetch it again")
    return metadata, entries


def shard_files(folder: Path, stem: str) -> list[Path]:
    """The files of the model `stem` in a folder, which are one thing: `stem.safetensors`, or an index and exactly its
    shards, each whole, with the tensors that the index says, and of one export.

    Raises:
        FileNotFoundError: no file of this model, or not all of them; names the first.
        ValueError: files of two models, a shard that is cut short or another's; names it.
    """
    index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    shard = re.compile(re.escape(stem) + r"-\d+-of-\d+\.safetensors")
    strays = {path.name for path in folder.iterdir() if shard.fullmatch(path.name)}
    by_file: dict[str, set[str]] = {}
    if index.is_file():
        for tensor, name in read_weight_map(index).items():
            by_file.setdefault(name, set()).add(tensor)
        strays |= {single.name} & {path.name for path in folder.iterdir()}
        strays -= by_file.keys()
    elif not single.is_file():
        raise FileNotFoundError(
            f"{index}: missing, beside {min(strays)}; copy the whole folder again"
            if strays
            else f"{folder} holds no {single.name}"
        )
    if strays:
        raise ValueError(
            f"{folder / min(strays)}: not of the model beside it, which is {index.name if by_file else single.name};"
            " remove the one that is old, or copy the whole folder again"
        )
    files = [folder / name for name in sorted(by_file)] or [single]
    if missing := [path.name for path in files if not path.is_file()]:
        raise FileNotFoundError(f"{folder / missing[0]}: missing, though {index.name} names it; copy it again")
    _check_same(files, by_file)
    return files


def _check_same(files: list[Path], by_file: Mapping[str, set[str]]) -> None:
    """ValueError unless each file holds the tensors that it should, and all say that they are of one export."""
    exports: dict[str, str | None] = {}
    for path in files:
        metadata, entries = read_header(path)
        exports[path.name] = metadata.get("export")
        expected = by_file.get(path.name, set(entries))
        if wrong := sorted(expected ^ entries.keys()):
            what = "lacks" if wrong[0] in expected else "holds"
            raise ValueError(
                f"{path}: {what} {wrong[0]}, against the index ({len(wrong)} tensors in all): another model's file;"
                " copy the whole folder again"
            )
    first = files[0].name
    if others := [name for name, export in exports.items() if export != exports[first]]:
        raise ValueError(f"{files[0].parent / others[0]}: of another export than {first}; copy the whole folder again")


def check_export(path: Path, export: str | None) -> None:
    """ValueError unless a safetensors file is whole and, where it says so, of this export; FileNotFoundError without
    it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; copy the whole folder again")
    found = read_header(path)[0].get("export")
    if export is not None and found is not None and found != export:
        raise ValueError(f"{path}: of another export than config.json beside it; copy the whole folder again")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a network, in order; ValueError with the cure if there are none or not all."""
    stem = "diffusion_pytorch_model" if "_class_name" in read_config(folder) else "model"
    try:
        return shard_files(folder, stem)
    except FileNotFoundError as error:
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        found = f"{pickles[0]} is a pickle, which is refused because reading one runs code" if pickles else "found none"
        if not str(error).startswith(f"{folder} holds no"):
            raise ValueError(str(error)) from None
        raise ValueError(
            f"{folder}: needs {stem}.safetensors; {found}; convert once with {_STEMS[stem]}"
            ".from_pretrained(DIR).save_pretrained(OUT, safe_serialization=True)"
        ) from None


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
