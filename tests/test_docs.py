"""What the pages name is there: files of this repository, tests, commands."""

import re
from pathlib import Path

import pytest

from omnihuman_jax.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FOLDERS = ("omnihuman_jax", "data_pipelines", "launch", "configs", "tests", "docs")
# Folders of the library may be named without the package.
ROOMS = {path.name for path in (ROOT / "omnihuman_jax").iterdir() if path.is_dir()}


def names_by_file() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in ROOT.glob("tests/**/test_*.py"):
        found.setdefault(path.stem, set()).update(re.findall(r"^def (test_\w+)", path.read_text(), re.M))
    return found


def paths_named(text: str) -> set[str]:
    """`folder/file.py` and the like in backticks, without options behind a blank, `*` or `{`."""
    named = set()
    for quoted in re.findall(r"`([^`\n]+)`", text):
        first = quoted.split("/", 1)[0]
        if re.fullmatch(r"[\w./-]+", quoted) and "/" in quoted and (first in FOLDERS or first in ROOMS):
            named.add(quoted.rstrip("/"))
    return named


def is_there(name: str) -> bool:
    places = (ROOT / name, ROOT / "omnihuman_jax" / name)
    return any(place.exists() or place.with_suffix(".py").exists() for place in places)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_are_there(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # names what was there then
    assert [name for name in sorted(paths_named(page.read_text())) if not is_there(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_are_there(page: Path) -> None:
    known, wrong = names_by_file(), []
    for file, name in re.findall(r"`(test_\w+)::(test_\w+)", page.read_text()):
        # A name may be cut short: `test_x::test_a_signal_...`.
        if not any(test.startswith(name.rstrip("_")) for test in known.get(file, ())):
            wrong.append(f"{file}::{name}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_there(page: Path) -> None:
    named = re.findall(r"`omnihuman (?:--[\w-]+(?: \d+)? )?([a-z][\w-]*)", page.read_text())
    assert sorted(set(named) - set(COMMANDS)) == []


def anchors_of(page: Path) -> set[str]:
    """What links to headings of a page are called."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    words = (re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)).lower() for text in headings)
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_headings_that_links_name_are_there(page: Path) -> None:
    wrong = []
    for name, anchor in re.findall(r"\]\(([\w./-]*)#([^)\s]+)\)", page.read_text()):
        target = page.parent / name if name else page
        if target.suffix == ".md" and (not target.is_file() or anchor not in anchors_of(target)):
            wrong.append(f"{name}#{anchor}")
    assert wrong == []


def test_the_check_finds_what_is_not_there() -> None:
    assert paths_named("see `training/nothing.py` and `x/y`") == {"training/nothing.py"}
    assert not is_there("training/nothing.py") and is_there("training/train_step.py") and is_there("docs/launch.md")
