"""Text on a command line or in a config becomes a path or a bucket's URI in one place, and never a folder `gs:`."""

import argparse
import ast
from pathlib import Path

import pytest

from omnihuman_jax import cli
from omnihuman_jax.checkpoint.writer import CheckpointConfig
from omnihuman_jax.commands import train
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import DatasetSpec
from omnihuman_jax.runtime import locations
from tests.training import tiny_config

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("omnihuman_jax", "data_pipelines") for path in (ROOT / folder).rglob("*.py"))
# What an export carries knows no buckets: it opens what its user has fetched.
CARRIED = ROOT / "omnihuman_jax" / "serving"
# Names that hold what a user wrote; `Path(...)` of one mangles a URI.
USERS_TEXT = {"dataset", "directory", "run_dir", "initial_weights"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_user_names_is_not_wrapped_in_path(path: Path) -> None:
    if path.is_relative_to(CARRIED) or path.name == "locations.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "type" and isinstance(node.value, ast.Name):
            assert node.value.id != "Path", f"line {node.value.lineno}: type=locations.local, or locations.location"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Path" and node.args:
            argument = node.args[0]
            name = argument.attr if isinstance(argument, ast.Attribute) else getattr(argument, "id", "")
            assert name not in USERS_TEXT, f"line {node.lineno}: Path({name}); take locations.local or location"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gs:/my-runs/u1", "write gs://BUCKET/PATH"),
        ("s3:my-runs", "write s3://BUCKET/PATH"),
        ("gs://", "names no bucket"),
        ("az://container/run", "az:// is not supported; use gs://, s3:// or a path"),
        ("hdfs://host/run", "hdfs:// is not supported"),
        ("file:///runs/a", "give the path without file://"),
    ],
)
def test_text_that_is_no_location(text: str, message: str) -> None:
    for turn in (locations.location, locations.local):
        with pytest.raises(ValueError, match=message):
            turn(text)
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        locations.location(text)


def test_a_path_is_a_path_whatever_is_in_its_name() -> None:
    for text in ("runs/a", "/tmp/gs/x", "a:b/c", "runs/50%", "gsx:/a"):
        assert locations.location(text) == locations.local(text) == Path(text)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(locations.PACKAGES, "gs", "not_installed_fs")
    with pytest.raises(ValueError, match=r"needs the package not_installed_fs; .*omnihuman-jax\[gcs\]"):
        locations.location("gs://bucket/run")


def test_checkpoints_go_to_gs_or_a_folder() -> None:
    CheckpointConfig(directory="gs://bucket/run").validate()
    CheckpointConfig(directory="/mnt/run").validate()
    for directory, message in (("s3://bucket/run", "Orbax cannot save there"), ("gs:/bucket", "write gs://")):
        with pytest.raises(ValueError, match=message):
            CheckpointConfig(directory=directory).validate()


def test_a_run_that_cannot_be_saved_is_refused_before_it_is_made(tmp_path: Path) -> None:
    config = tiny_config.get_config()
    config.checkpoint.directory = "s3://bucket/run"
    with pytest.raises(ValueError, match="s3://bucket/run: Orbax cannot save there"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


COMMANDS = {
    "train": ["train", "--config", "configs/demo.py", "--run", "s3://bucket/run"],
    "generate --out": ["generate", "--run", "runs/x", "--out", "s3://bucket/x.mp4"],
    "evaluate --out": ["evaluate", "--run", "runs/x", "--out", "gs://bucket/x"],
    "demo": ["demo", "--out", "gs://bucket/demo"],
    "bench-checkpoint": ["bench-checkpoint", "--out", "gs://bucket/x"],
    "curate, another cloud": ["curate", "--source", "az://container/raw", "--out", "x"],
    "curate, a typing error": ["curate", "--source", "gs:/bucket/raw", "--out", "x"],
    "curate --out": ["curate", "--source", "x", "--out", "az://bucket/clips"],
    "select --out": ["select", "x", "--out", "gs:/bucket/sets"],
    "encode": ["encode", "az://bucket/clips", "--text-encoder", "x", "--out", "x"],
    "encode --out": ["encode", "x", "--text-encoder", "x", "--out", "gs:/bucket/dataset"],
    "train, another cloud's dataset": [
        "train",
        "--config",
        "configs/demo.py",
        "--run",
        "run",
        "--config.data.dataset=az://bucket/d",
    ],
    "export, a typing error": ["export", "runs/x", "--to", "gs:/bucket/x"],
    "import, another cloud": ["import", "omnihuman", "--from", "az://c/x", "--to", "run"],
}


@pytest.mark.parametrize("argv", COMMANDS.values(), ids=COMMANDS)
def test_commands_that_need_a_folder_say_so_in_one_line_and_make_none(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(ROOT / part) if part.startswith("configs/") else part for part in argv]
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(argv)
    except SystemExit as ended:
        code = int(ended.code or 0)
    lines = [line for line in capsys.readouterr().err.splitlines() if "bucket" in line or "://" in line]
    assert code == 2 and lines and "Traceback" not in "".join(lines), lines
    assert [path.name for path in tmp_path.iterdir() if ":" in path.name] == []


@pytest.mark.parametrize("load", [DatasetSpec.load, Catalog.load, open_records])
def test_a_limit_of_the_cache_that_is_none_is_named(load, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("none", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("OMNIHUMAN_DATASET_CACHE_GB", value)
        with pytest.raises(ValueError, match=f"OMNIHUMAN_DATASET_CACHE_GB is '{value}'; it must be a number of GB"):
            load("gs://bucket/data")
