"""A change of what a module computes changes its hash, whoever forgot a version; a change of its words does not."""

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from data_pipelines.curate import decode, shots, stage_keys
from data_pipelines.curate.code_digest import code_digest
from omnihuman_jax.serving import media_omnihuman

SOURCE = '''
"""A module."""
import dataclasses
import functools
FPS, KINDS = 25, {"b", "a", "c"}

@dataclasses.dataclass
class Probe:
    """What is seen."""
    width: int = 3

    @property
    def half(self):
        return self.width // 2

@functools.cache
def inspect(path, margin=1):
    """Looks."""
    return [x + FPS for x in range(margin) if x in {"p", "q"}]
'''


def module(text: str, tmp_path: Path) -> ModuleType:
    file = tmp_path / "reader.py"
    file.write_text(text)
    spec = importlib.util.spec_from_loader("reader", loader=None)
    made = importlib.util.module_from_spec(spec)
    exec(compile(text, str(file), "exec"), made.__dict__)
    return made


def digest(text: str, tmp_path: Path) -> str:
    return code_digest((module(text, tmp_path),), lambda name: False)


@pytest.mark.parametrize(("old", "new"), [
    ("FPS, KINDS = 25", "FPS, KINDS = 30"), ('"c"}', '"d"}'), ("width: int = 3", "width: int = 4"), ("// 2", "// 3"),
    ("margin=1", "margin=2"), ("x + FPS", "x - FPS"), ('"q"}', '"r"}'), ("range(margin)", "range(path)"),
])  # fmt: skip
def test_a_change_of_the_code_is_seen(old: str, new: str, tmp_path: Path) -> None:
    assert old in SOURCE and digest(SOURCE.replace(old, new), tmp_path) != digest(SOURCE, tmp_path)


def test_a_change_of_its_words_is_not(tmp_path: Path) -> None:
    other = SOURCE.replace("Looks.", "Looks at it.").replace("What is seen.", "X").replace("A module.", "A.\n\nB.")
    other = other.replace("    return [", "    # why\n\n    return [")
    assert digest(other, tmp_path) == digest(SOURCE, tmp_path)


def test_what_a_module_takes_from_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    def now() -> str:
        return code_digest((decode, shots), stage_keys._is_ours)

    before = now()
    with monkeypatch.context() as patch:
        patch.setattr(media_omnihuman, "probe", lambda path: None)
        assert now() != before
    with monkeypatch.context() as patch:
        patch.setattr(decode, "inspect", lambda *arguments: None)
        assert now() != before
    assert now() == before


def test_it_is_the_same_in_every_process() -> None:
    program = (
        "from tests.data_pipelines.test_code_digest import *; print(code_digest((decode, shots), stage_keys._is_ours))"
    )
    command = [sys.executable, "-c", program]
    environments = [{"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)} for seed in ("1", "2")]
    seen = {subprocess.run(command, env=e, capture_output=True, text=True, check=True).stdout for e in environments}
    assert seen == {code_digest((decode, shots), stage_keys._is_ours) + "\n"}


def test_use_changes_nothing(tmp_path: Path) -> None:
    """What Python notes on a class that is pickled, as a task for a worker is, is no code."""
    before = code_digest((shots,), lambda name: False)
    pickle.dumps(shots.ShotConfig(), protocol=2)
    assert "__slotnames__" in vars(shots.ShotConfig)
    del shots.ShotConfig.__slotnames__
    assert code_digest((shots,), lambda name: False) == before
