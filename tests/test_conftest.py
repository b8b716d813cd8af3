"""The test session's own promises: eight devices, and a run that fails on a skip that nobody allowed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")


def run_pytest(
    folder: Path, test_source: str, allow: str | None = None, arguments: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """A pytest run of its own over `test_source`, under a copy of the real conftest."""
    tests = folder / "tests"
    tests.mkdir(exist_ok=True)
    shutil.copy(CONFTEST, tests / "conftest.py")
    if allow is not None:
        text = CONFTEST.read_text()
        assert text.count("ALLOWED_SKIPS: dict[str, str] = {") == 1
        text = text.replace(
            "ALLOWED_SKIPS: dict[str, str] = {", f"ALLOWED_SKIPS: dict[str, str] = {{{allow!r}: 'a test',", 1
        )
        (tests / "conftest.py").write_text(text)
    (tests / "test_it.py").write_text(test_source)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, "tests"],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


PASSING = "def test_passes():\n    assert 1 + 1 == 2\n"
SKIPS = {
    "decorator": "import pytest\n@pytest.mark.skip(reason='no such thing')\ndef test_skipped():\n    pass\n",
    "call": "import pytest\ndef test_skipped():\n    pytest.skip('no such thing')\n",
    "module": "import pytest\npytest.skip('no such thing', allow_module_level=True)\n",
    "missing module": "import pytest\npytest.importorskip('no_such_thing', reason='no such thing')\n",
    "xfail": "import pytest\n@pytest.mark.xfail(reason='no such thing')\ndef test_fails():\n    assert False\n",
}


def test_a_run_without_skips_passes(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, PASSING)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", SKIPS)
def test_a_skip_fails_the_run(tmp_path: Path, kind: str) -> None:
    source = SKIPS[kind] if "module" in kind else PASSING + SKIPS[kind]
    done = run_pytest(tmp_path, source)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "skips that are not allowed" in done.stdout and "no such thing" in done.stdout


def test_an_allowed_reason_passes(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, PASSING + SKIPS["call"], allow="^no such thing$")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", [pytest.param("call", marks=pytest.mark.slow), "module"])
def test_two_workers_keep_the_promises(tmp_path: Path, kind: str) -> None:
    """pytest-xdist: skips fail the run, and figures are printed, whichever process met them."""
    figures = "def test_figure(measured):\n    measured('a claim', 0.5, 1.0)\n"
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_figures.py").write_text(figures)
    done = run_pytest(tmp_path, SKIPS[kind], arguments=("-n", "2", "--dist", "loadfile"))
    assert done.returncode == 1 and "no such thing" in done.stdout, done.stdout + done.stderr
    assert "5.0e-01 <=   1e+00  a claim" in done.stdout


MARKED = "import pytest\n@pytest.mark.slow\ndef test_slow():\n    assert False\n"


def test_slow_tests_run_only_when_asked(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, MARKED + PASSING)
    assert done.returncode == 0 and "1 passed, 1 deselected" in done.stdout, done.stdout + done.stderr


def test_slow_tests_are_sampled_by_file(tmp_path: Path) -> None:
    seen = []
    for index in range(2):
        (tmp_path / str(index)).mkdir()
        done = run_pytest(tmp_path / str(index), MARKED + PASSING, arguments=(f"--slow={index}/2",))
        seen.append("1 failed, 1 deselected" in done.stdout)
    assert sorted(seen) == [False, True], "one of two halves has the file, the other has not"


def test_there_are_eight_cpu_devices_and_a_cache_of_this_checkout() -> None:
    import jax

    assert [d.platform for d in jax.devices()] == ["cpu"] * 8
    assert Path(jax.config.jax_compilation_cache_dir).parent.parent == CONFTEST.parent.parent
