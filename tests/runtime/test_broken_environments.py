"""What a pod's or a shell's environment gets wrong, before it costs a night: one line that names the variable."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from omnihuman_jax import cli
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.runtime import bucket_copies, scratch
from omnihuman_jax.telemetry.events import EventLog

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ["train", "--config", str(ROOT / "tests" / "training" / "tiny_config.py"), "--run", "run"]
AT = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:8476"}
FILE = str(Path(__file__))

# What is wrong, the environment, the command, what its one line says.
COMMANDS: list[tuple[str, dict[str, str], list[str], str]] = [
    ("a count in words", AT | {"JAX_NUM_PROCESSES": "two"}, TRAIN, "JAX_NUM_PROCESSES is 'two'; it must be a whole"),
    ("a negative count", AT | {"JAX_NUM_PROCESSES": "-2"}, TRAIN, "JAX_NUM_PROCESSES is '-2'; it must be a whole"),
    ("a count alone", {"JAX_NUM_PROCESSES": "2"}, TRAIN, "2 processes are asked for and no coordinator: give"),
    ("a coordinator alone", AT, TRAIN, "coordinator 127.0.0.1:8476 is given: --num-processes and --process-id"),
    (
        "no index",
        AT | {"JAX_NUM_PROCESSES": "2"},
        TRAIN,
        "coordinator 127.0.0.1:8476 is given: --num-processes and --process-id are needed too",
    ),
    (
        "an index in words",
        AT | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "first"},
        TRAIN,
        "JAX_PROCESS_ID is 'first'; it must be a whole number from 0 on",
    ),
    (
        "an index too large",
        AT | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
        TRAIN,
        "process 2 of 2: --process-id (JAX_PROCESS_ID) must be in 0..1",
    ),
    *(
        (
            f"a coordinator {what}",
            {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            TRAIN,
            f"coordinator {address!r} must be HOST:PORT of process 0",
        )
        for what, address in (("without a port", "host-0"), ("with a word", "host-0:http"), ("without a host", ":84"))
    ),
    ("a port too large", AT | {"JAX_COORDINATOR_ADDRESS": "h:99999", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
     TRAIN, "coordinator 'h:99999' must be HOST:PORT"),
    ("a log format", {"OMNIHUMAN_LOG_FORMAT": "xml"}, TRAIN, "log format 'xml' is unknown; it is one of text, json"),
    ("a cache that is a file", {"JAX_COMPILATION_CACHE_DIR": FILE}, TRAIN, f"compilation cache {FILE} is no folder"),
    (
        "a cache in another cloud",
        {"JAX_COMPILATION_CACHE_DIR": "az://c/cache"},
        TRAIN,
        "the compilation cache is az://c/cache: az:// is not supported; use gs://, s3:// or a path",
    ),
    (
        "a cache with one slash",
        {"JAX_COMPILATION_CACHE_DIR": "gs:/bucket/cache"},
        TRAIN,
        "the compilation cache is gs:/bucket/cache: write gs://BUCKET/PATH",
    ),
    ("no devices", {}, ["--simulate-devices", "0", "goodput", "run"], "--simulate-devices 0: at least 1"),
    (
        "a key that is not mounted",
        {"GOOGLE_APPLICATION_CREDENTIALS": "/var/secrets/key.json"},
        ["goodput", "gs://bucket/run"],
        "GOOGLE_APPLICATION_CREDENTIALS is '/var/secrets/key.json', and no file is there; mount the key there",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("what", "environment", "argv", "message"), COMMANDS, ids=[case[0] for case in COMMANDS])
def test_a_command_says_which_variable_in_one_line(
    what: str,
    environment: dict[str, str],
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        code = cli.main(argv)
    except SystemExit as ended:  # argparse, which says how the command is used too
        code = ended.code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("omnihuman ")]
    assert code == 2 and len(lines) == 1 and message in lines[0] and "Traceback" not in error, error
    assert list(tmp_path.iterdir()) == []


OPENED: list[tuple[str, str, str, Callable[[Path], object]]] = [
    ("OMNIHUMAN_DATASET_CACHE", FILE, f"{FILE} is no folder", lambda folder: open_records("gs://bucket/data")),
    ("OMNIHUMAN_DATASET_CACHE", f"{FILE}/x", f"{FILE} is no folder", lambda folder: open_records("gs://bucket/data")),
    ("AWS_PROFILE", "nope", "name one of these, or unset it", lambda folder: open_records("s3://bucket/data")),
    ("AWS_ENDPOINT_URL", "minio:9000", "must be http://HOST", lambda folder: open_records("s3://bucket/data")),
    ("GOOGLE_APPLICATION_CREDENTIALS", "/no/key", "no file is there", lambda folder: open_records("gs://bucket/data")),
    ("OMNIHUMAN_VIDEO_CACHE", FILE, f"{FILE} is no folder", lambda folder: scratch._folders(0)),
    ("OMNIHUMAN_VIDEO_CACHE_GB", "many", "must be a number of GB above 0", lambda folder: bucket_copies._copies(0)),
    ("RESTART_ATTEMPT", "first", "must be a whole number from 0 on", EventLog),
]


@pytest.mark.parametrize(("name", "value", "message", "open_it"), OPENED)
def test_what_is_opened_later_names_the_variable_too(
    name: str,
    value: str,
    message: str,
    open_it: Callable[[Path], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{name} is ") as error:
        open_it(tmp_path)
    assert message in str(error.value) and value in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "argv", "message"),
    [
        ("OMNIHUMAN_REQUEST_TIMEOUT_S", "long", ["goodput", "run"], "it must be a number of seconds above 0"),
        ("OMNIHUMAN_REQUEST_TIMEOUT_S", "0", ["report", "--run", "run"], "it must be a number of seconds above 0"),
        ("JAX_PLATFORMS", "gpus", TRAIN, "Backend 'gpus' is not in the list of known backends: ['cpu'"),
    ],
)
def test_what_is_read_at_an_import_or_by_jax(
    name: str, value: str, argv: list[str], message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "omnihuman_jax.cli", *argv], cwd=tmp_path, env=os.environ | {name: value},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1, done.stdout + done.stderr
    assert f"{name} is '{value}'" in lines[0] and message in lines[0] and "Traceback" not in done.stdout, done.stdout
