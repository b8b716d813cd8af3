"""Which Python `make` takes, and that an environment of another version is noticed; the two lock files."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "constraints" / "python.sh"
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
FAILS = "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def claims(version: str) -> str:
    """A Python that works and says that it is another version."""
    return f'#!/bin/sh\ncase "$*" in *ensurepip*) echo {version};; *) echo "$0";; esac\n'


def run(*arguments: str | Path, path: Path) -> subprocess.CompletedProcess:
    """The script with the programs in `path`, and nothing else but the shell's."""
    path.mkdir(exist_ok=True)
    for tool in ("bash", "head", "rm", "sed", "sort"):
        if not (path / tool).exists():
            (path / tool).symlink_to(shutil.which(tool))
    return subprocess.run(
        ["bash", SCRIPT, *arguments], env={"PATH": str(path), "HOME": str(path)}, capture_output=True, text=True
    )


def test_a_shim_that_fails_is_passed_over_for_pyenvs_own(tmp_path: Path) -> None:
    path, versions = tmp_path / "bin", tmp_path / "pyenv" / "versions"
    for name in ("python3.12", "python3.11", "python3", "python"):
        program(path / name, FAILS)
    assert run("find", path=path).returncode == 1
    program(path / "pyenv", f"#!/bin/sh\necho {tmp_path}/pyenv\n")
    program(versions / "3.11.9" / "bin" / "python", claims("3.11"))
    found = program(versions / "3.12.10" / "bin" / "python", claims("3.12"))
    program(versions / "3.12.9" / "bin" / "python", claims("3.12"))
    program(versions / "3.13.0" / "bin" / "python", claims("3.13"))
    assert run("find", path=path).stdout.strip() == str(found), "the newest that is supported"
    assert "3.11.9" in run("find", "3.11", path=path).stdout


def test_names_on_the_path_come_first_the_newest_of_them(tmp_path: Path) -> None:
    program(tmp_path / "python3.11", claims("3.11"))
    assert run("find", path=tmp_path).stdout.strip().endswith("python3.11")
    program(tmp_path / "python3", claims("3.12"))
    assert run("find", path=tmp_path).stdout.strip().endswith("python3")
    program(tmp_path / "python3", claims("3.13"))
    assert run("find", path=tmp_path).stdout.strip().endswith("python3.11"), "newer than what is supported"


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("", "found no Python 3.12 3.11 that runs"),
        ("broken", "broken does not run, or lacks venv or ensurepip"),
        ("old", "old is Python 3.9; needs one of 3.12 3.11"),
    ],
)
def test_a_python_that_will_not_do_is_one_line(python: str, message: str, tmp_path: Path) -> None:
    program(tmp_path / "bin" / "broken", FAILS)
    program(tmp_path / "bin" / "old", claims("3.9"))
    done = run("venv", python, tmp_path / "venv", path=tmp_path / "bin")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert message in done.stderr and "PYTHON=/path/to/python3.12" in done.stderr


def test_an_environment_of_another_python_is_noticed(tmp_path: Path) -> None:
    folder, path = tmp_path / "venv", tmp_path / "bin"
    other = {"3.12": "3.11", "3.11": "3.12"}[HERE]
    program(path / "other", claims(other))
    made = run("venv", sys.executable, folder, path=path)
    assert made.returncode == 0, made.stderr
    assert run("venv", sys.executable, folder, path=path).returncode == 0  # there already
    done = run("venv", "other", folder, path=path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"was made by Python {HERE}, and Python {other} is chosen" in done.stderr and "make clean" in done.stderr
    # The Python that made it has moved.
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to(tmp_path / "gone")
    assert run("venv", sys.executable, folder, path=path).returncode == 0
    assert os.access(folder / "bin" / "python", os.X_OK)


def pins(version: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"py{version.replace('.', '')}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_two_lock_files_differ_in_jax_and_flax_alone() -> None:
    """So that what differs between the two Pythons is JAX's doing."""
    old, new = pins("3.11"), pins("3.12")
    differ = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    assert differ == {"jax", "jaxlib", "flax", "setuptools"}  # the last is what torch asks for from 3.12 on


def test_the_supported_versions_are_the_same_everywhere() -> None:
    supported = re.search(r"SUPPORTED=\((.*?)\)", SCRIPT.read_text())
    locks = {path.stem.removeprefix("py") for path in (ROOT / "constraints").glob("py*.txt")}
    text = (ROOT / "setup.py").read_text()
    assert supported and {version.replace(".", "") for version in supported[1].split()} == locks
    assert {found.replace(".", "") for found in re.findall(r"Python :: (3\.\d+)", text)} == locks
    assert 'python_requires=">=3.11,<3.13"' in text
