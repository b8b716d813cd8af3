"""What every test runs under: eight simulated devices, a compilation cache of the checkout, and no silent skips.

The environment is set before anything imports jax, and subprocesses of tests inherit it.
"""

import contextlib
import json
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import quick_xla

# Fixtures of several rooms: a tiny trained run, made once a session.
pytest_plugins = ("tests.sampling.fixtures",)

ROOT = Path(__file__).resolve().parent.parent
NUM_DEVICES = 8
DEVICES_FLAG = "--xla_force_host_platform_device_count"

# A skipped (or expectedly failing) test fails the run unless its reason matches one of these; each says why it may.
ALLOWED_SKIPS: dict[str, str] = {
    r"^(mlflow|trackio) is in an environment of its own: make trackers$": "its pins contradict constraints/ (setup.py)",
    r"^(gcloud|kubectl) is not installed$": "the Google Cloud CLI is no Python package; lines are checked by rule too",
}
# Markers of tests that need programs of the system: they run when asked for, and fail without these.
LANES = ("slurm", "image", "browser")

if "jax" in sys.modules:
    raise RuntimeError(
        "jax was imported before tests/conftest.py could ask for 8 devices; start with `python -m pytest`"
    )
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs of a test run once: compiled without optimisation they cost a quarter of the session less. An XLA_FLAGS that
# names the devices is taken as it is (`make parity`: its figures are of optimised programs).
if DEVICES_FLAG not in os.environ.get("XLA_FLAGS", ""):
    flags = (os.environ.get("XLA_FLAGS", ""), quick_xla.FLAGS, f"{DEVICES_FLAG}={NUM_DEVICES}")
    os.environ["XLA_FLAGS"] = " ".join(filter(None, flags))
# Trusted input: the cache lies in this checkout, and nobody else writes there, whatever the umask.
_CACHE = ROOT / ".cache" / "jax"
_CACHE.mkdir(parents=True, exist_ok=True)
_CACHE.chmod(0o700)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Subprocesses import this checkout, wherever a test makes them start.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))

FIGURE = "figure"
_refused: list[str] = []
# (claim, largest value seen, limit) in the order of the tests: printed at the end, and what docs/correctness.md quotes.
_figures: dict[str, tuple[float, float]] = {}
# Claim -> file of the test that measured it.
_measured_by: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow",
        default="none",
        metavar="none|all|K/N|slurm|image|browser",
        help=(
            "which tests marked slow run, and then they alone: none (default), all, or a part of their files, K of 0"
            " .. N-1; slurm, image, browser: the tests that need a real SLURM, buildah or a browser, alone too"
        ),
    )
    parser.addoption(
        "--figures", metavar="FILE", help="write the figures of this run, as JSON rows, for tables in docs/"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects (no skip: nothing is hidden, the summary counts them) what `--slow` leaves out."""
    choice = config.getoption("--slow")
    kept = [item for item in items if _is_chosen(item, choice)]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def _is_chosen(item: pytest.Item, choice: str) -> bool:
    lane = next((name for name in LANES if item.get_closest_marker(name)), None)
    if lane or choice in LANES:
        return lane == choice
    slow = item.get_closest_marker("slow") is not None
    if choice in ("none", "all"):
        return slow == (choice == "all")
    if not (match := re.fullmatch(r"(\d+)/([1-9]\d*)", choice)):
        raise pytest.UsageError(f"--slow {choice!r}: none, all, K/N like 0/4, or {' or '.join(LANES)}")
    index, count = map(int, match.groups())
    # By file: what the tests of a file share is made once.
    return slow and zlib.crc32(item.nodeid.split("::")[0].encode()) % count == index % count


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A native library that asks for real-time scheduling gets it where the tests run as root (libsvtav1 does, the
    encoder of AVIF's test pictures), and then nobody else gets a core: processes that other tests start look dead to
    one another.
    """
    if not hasattr(os, "sched_getscheduler") or os.sched_getscheduler(0) not in (os.SCHED_FIFO, os.SCHED_RR):
        return
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))
    warnings.warn(f"{item.nodeid} made its process a real-time one; it is an ordinary one again", stacklevel=1)


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped:
        return
    if isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
    else:
        reason = getattr(report, "wasxfail", "") or str(report.longrepr)
    if not any(re.search(pattern, reason) for pattern in ALLOWED_SKIPS):
        _refused.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Of this process, or of a worker of pytest-xdist: what a test has to tell travels with its report."""
    _note_skip(report)
    if report.when == "teardown":
        for claim, value, limit in (figure for name, figure in report.user_properties if name == FIGURE):
            _measured_by[claim] = report.nodeid.split("::")[0]
            _figures[claim] = (max(value, _figures.get(claim, (0.0, limit))[0]), limit)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """What a worker was not allowed to skip while it collected: pytest-xdist does not pass that on."""
    _refused.extend(line for line in getattr(node, "workeroutput", {}).get("refused", []) if line not in _refused)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:  # a worker of pytest-xdist
        output["refused"] = _refused
    elif file := session.config.getoption("--figures"):
        rows = [
            {"claim": claim, "value": value, "limit": limit, "test": _measured_by[claim]}
            for claim, (value, limit) in _figures.items()
        ]
        Path(file).write_text(json.dumps(rows, indent=2) + "\n")
    if _refused and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section("figures")
        for claim, (value, limit) in _figures.items():
            terminalreporter.line(f"{value:9.1e} <= {limit:7.0e}  {claim}")
    if _refused:
        terminalreporter.section("skips that are not allowed", red=True)
        for line in _refused:
            terminalreporter.line(line)
        terminalreporter.line(
            "A skip hides what it was meant to prove: make it run, or add its reason to ALLOWED_SKIPS in"
            " tests/conftest.py."
        )


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str, float, float], None]:
    """`measured(claim, value, limit)`: fails above the limit, and prints the largest value of each claim with the
    summary.
    """

    def check(claim: str, value: float, limit: float) -> None:
        request.node.user_properties.append((FIGURE, (claim, float(value), limit)))
        assert value <= limit, f"{claim}: {value:.2e}, the limit is {limit:.0e}"

    return check


@pytest.fixture(autouse=True, scope="module")
def _drop_compiled_programs() -> Iterator[None]:
    """Programs compiled by one file are of no use to the next, and would add up in memory."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
