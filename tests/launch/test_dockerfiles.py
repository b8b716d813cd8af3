"""The Dockerfiles by rule (as hadolint would): pinned, non-root, no secrets, Python as process 1. They are parsed, not
built.
"""

import importlib.metadata
import json
import re
from pathlib import Path

import pytest

from tests.launch.specs import ROOT

FILES = sorted((ROOT / "launch" / "docker").glob("*.Dockerfile"))
LOCK = ROOT / "constraints" / "py312.txt"
ACCELERATORS = ("tpu", "cuda12")
Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    """(word, arguments) of each instruction, comments and line breaks gone."""
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(line.split()[0].upper(), line.split(None, 1)[1].strip()) for line in lines if line.strip()]


def problems(text: str, root: Path = ROOT) -> list[str]:
    """What is wrong with a Dockerfile, by rule."""
    found: list[str] = []
    steps = instructions(text)
    args = dict(argument.partition("=")[::2] for word, argument in steps if word == "ARG")
    stages = {argument.split(" AS ")[1] for word, argument in steps if word == "FROM" and " AS " in argument}
    for word, argument in steps:
        if word == "FROM":
            image = argument.split()[0]
            digest = re.search(r"@sha256:[0-9a-f]{64}$", image)
            # An argument without a default: the build does not start without one.
            if image not in stages and not digest and not (image == "${BASE}" and args.get("BASE") == ""):
                found.append(f"FROM {image} is not pinned")
        if word == "ADD":
            found.append("ADD fetches and unpacks: use COPY")
        if word == "COPY" and "--from=" not in argument:
            paths = [path.replace("${ACCELERATOR}", kind) for path in argument.split()[:-1] for kind in ACCELERATORS]
            found += [f"COPY of {path}, which is not there" for path in paths if not (root / path).exists()]
        if word in ("CMD", "ENTRYPOINT"):
            try:
                json.loads(argument)
            except ValueError:
                found.append(f"{word} in shell form: a shell would be process 1 and keep SIGTERM")
        if word in ("ARG", "ENV") and re.search(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY", argument, re.IGNORECASE):
            found.append(f"{word} {argument.split('=')[0]}: a secret would stay in the image")
        if word == "RUN":
            found += _run_problems(argument)
    last = max(i for i, (word, _) in enumerate(steps) if word == "FROM")
    users = [(i, argument) for i, (word, argument) in enumerate(steps) if word == "USER" and i > last]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1][1]):
        found.append("the last stage does not end as a numeric user other than root")
    elif any(word in ("RUN", "COPY") for word, _ in steps[users[-1][0] :]):
        found.append("something is installed as the last stage's user, who could then change it")
    return found


def _run_problems(argument: str) -> list[str]:
    found = []
    if re.search(r"\b(curl|wget|sudo|ssh)\b", argument):
        found.append("RUN fetches by hand or calls sudo")
    if "|" in argument:
        found.append("RUN with a pipe hides the code of its first command")
    if re.search(r"\bpip3? install\b", argument) and "-c constraints.txt" not in argument:
        found.append("pip install without constraints.txt")
    if "apt-get install" in argument:
        for need in ("--no-install-recommends", "--yes", "snapshot.debian.org", "rm -rf /var/lib/apt/lists"):
            if need not in argument:
                found.append(f"apt-get install without {need}")
    return found


def test_there_is_one_for_each_kind_of_worker() -> None:
    assert [path.stem for path in FILES] == ["curation", "trainer"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_dockerfile_keeps_the_rules(path: Path) -> None:
    assert problems(path.read_text()) == []


GOOD = 'ARG BASE\nFROM ${BASE}\nRUN pip install -c constraints.txt .\nUSER 1000\nCMD ["python"]\n'


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("${BASE}", "python:3.11"), "FROM python:3.11 is not pinned"),
        (("ARG BASE", "ARG BASE=python:3.11"), "FROM ${BASE} is not pinned"),
        (("USER 1000", "USER root"), "numeric user other than root"),
        (("USER 1000\n", ""), "numeric user other than root"),
        (("USER 1000", "USER 1000\nRUN touch /x"), "who could then change it"),
        (('["python"]', "python"), "CMD in shell form"),
        (("-c constraints.txt ", ""), "pip install without constraints.txt"),
        (("RUN pip", "ADD https://x/y /\nRUN pip"), "ADD fetches"),
        (("RUN pip", "RUN curl https://x -o y\nRUN pip"), "fetches by hand"),
        (("RUN pip", "RUN yes | sh\nRUN pip"), "with a pipe"),
        (("RUN pip", "RUN apt-get install --yes libgl1\nRUN pip"), "apt-get install without --no-install-recommends"),
        (("RUN pip", "ENV HF_TOKEN=abc\nRUN pip"), "a secret would stay in the image"),
        (("RUN pip", "COPY nothing.txt /\nRUN pip"), "which is not there"),
    ],
)
def test_the_rules_see(change: tuple[str, str], problem: str) -> None:
    assert problems(GOOD) == []
    assert any(problem in line for line in problems(GOOD.replace(*change)))


def test_every_package_of_an_image_is_pinned() -> None:
    """setup.py gives ranges; what an image gets is one version each."""
    pinned = set()
    docker = ROOT / "launch" / "docker"
    extra = [docker / f"constraints-{kind}.txt" for kind in ACCELERATORS]
    for path in (LOCK, *extra):
        for line in path.read_text().splitlines():
            if line and not line.startswith("#"):
                assert re.fullmatch(r"[A-Za-z0-9._-]+==[\w.+!]+", line), f"{path.name}: {line}"
                pinned.add(re.sub(r"[-_.]+", "-", line.split("==")[0]).lower())
    assert {"gcsfs", "s3fs"} <= pinned
    wanted = re.findall(r'^    "([A-Za-z0-9_.-]+)', (ROOT / "setup.py").read_text(), re.MULTILINE)
    missing = {re.sub(r"[-_.]+", "-", name).lower() for name in wanted if "omnihuman" not in name} - pinned
    assert missing - {"curation", "demo", "torch", "topologies", "dev", "all"} == set()
    versions = dict(line.split("==") for line in LOCK.read_text().splitlines() if "==" in line and line[0] != "#")
    # Made for the JAX that images get, which names its TPU runtime.
    assert f"jax-cuda12-plugin=={versions['jax']}\n" in extra[1].read_text()
    if importlib.metadata.version("jax") == versions["jax"]:
        runtime = next(line for line in importlib.metadata.requires("jax") or () if line.startswith("libtpu"))
        assert re.search(runtime.split(";")[0].strip().replace(".*", r"[.\d]*"), extra[0].read_text())


def test_the_builder_sees_what_is_copied_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    shown = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        path.split("/")[0]
        for file in FILES
        for word, argument in instructions(file.read_text())
        if word == "COPY" and "--from" not in argument
        for path in argument.split()[:-1]
    }
    assert copied == shown
