"""`export`, `import` and checkpoints against a real GCS server and a real S3 server, with faults from a proxy."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from omnihuman_jax.checkpoint.folder import checkpoint_directory
from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.runtime.bucket_folder import copy_of
from omnihuman_jax.telemetry.metrics import read_metrics
from tests import quick_xla
from tests.interop.cases import odd_config, random_tensors
from tests.storage import servers
from tests.storage.servers import Server
from tests.training import runs

# What a process does, command after command: JAX starts once. Prints one line of JSON: the exit codes and errors.
PROGRAM = """
import contextlib, io, json, sys
from omnihuman_jax import cli
found = []
for argv in json.loads(sys.argv[1]):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(argv)
        except SystemExit as ended:
            code = ended.code
        except BaseException as raised:
            code, text = 1, f"{type(raised).__name__}: {raised}"
            error.write(text)
    found.append([code or 0, error.getvalue()[-2000:]])
print(json.dumps(found))
"""


@pytest.fixture(scope="module", params=["gs", "s3"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    start = {"gs": servers.gcs, "s3": servers.s3}[request.param]
    with start(tmp_path_factory.mktemp(request.param)) as started:
        yield started


@pytest.fixture(autouse=True)
def no_faults(server: Server) -> Iterator[None]:
    server.proxy.faults = lambda method, path, number: None
    yield
    server.proxy.faults = lambda method, path, number: None


def commands(server: Server | None, *argvs: list[str], timeout: float = 300) -> list[tuple[int, str]]:
    environment = os.environ | {"XLA_FLAGS": quick_xla.FLAGS} | (server.environment if server else {})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(argvs)], env=environment, capture_output=True, text=True,
        timeout=timeout, check=True,
    )  # fmt: skip
    return [(code, error) for code, error in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in several shards, as `export` writes one, on a disk."""
    from omnihuman_jax.interop import key_table, weights_export

    model = odd_config(width=32, num_heads=2, rope_axes=(4, 6, 6))
    table = key_table.key_table(model)
    tensors = table.from_torch(random_tensors(table, 3).__getitem__)
    leaves = key_table.flatten(tensors)
    out = tmp_path_factory.mktemp("exported") / "model"
    weights_export.export_params(
        model,
        table,
        lambda path, layer: leaves[path] if layer is None else leaves[path][layer],
        out,
        dtype="fp32",
        about={"weights": "raw", "dtype": "fp32", "step": 0, "run": "tests"},
        max_shard_bytes=200_000,
    )
    assert len(list(out.glob("*.safetensors"))) > 2
    return out


@pytest.fixture(scope="module")
def run(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a run folder on a disk."""
    folder = tmp_path_factory.mktemp("imported") / "run"
    ((code, error),) = commands(None, ["import", "omnihuman", "--from", str(exported), "--to", str(folder)])
    assert code == 0, error
    return folder


def tensors_of(data: bytes) -> bytes:
    """What a safetensors file holds, without the header, which says which export it is of."""
    return data[8 + int.from_bytes(data[:8], "little") :]


def sums(metadata: str) -> object:
    """The fingerprints of a checkpoint's arrays, which its bits decide."""
    return json.loads(metadata)["custom_metadata"]["sums"]


def read(server: Server, uri: str) -> bytes:
    program = "import sys; from etils import epath; sys.stdout.buffer.write(epath.Path(sys.argv[1]).read_bytes())"
    return subprocess.run(
        [sys.executable, "-c", program, uri], env=os.environ | server.environment, capture_output=True, check=True
    ).stdout


def upload(server: Server, folder: Path, uri: str) -> None:
    program = "import sys, fsspec.core; fs, path = fsspec.core.url_to_fs(sys.argv[2]); fs.put(sys.argv[1], path, True)"
    subprocess.run([sys.executable, "-c", program, f"{folder}/", uri], env=os.environ | server.environment, check=True)


def listing(server: Server, uri: str) -> list[str]:
    program = (
        "import sys, fsspec.core\nfs, path = fsspec.core.url_to_fs(sys.argv[1])\n"
        "print('\\n'.join(name.removeprefix(path) for name in fs.find(path)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, uri],
        env=os.environ | server.environment,
        capture_output=True,
        check=True,
        text=True,
    )
    return sorted(line.lstrip("/") for line in done.stdout.splitlines() if line)


@pytest.mark.slow
def test_an_export_goes_to_a_bucket_whole_and_comes_back_bit_for_bit(
    server: Server, run: Path, exported: Path, tmp_path: Path
) -> None:
    to, back = f"{server.bucket}/exports/one", tmp_path / "back"
    found = commands(
        server,
        ["export", str(run), "--to", to, "--max-shard-gb", "0.0002"],
        ["import", "omnihuman", "--from", to, "--to", str(back)],
        ["export", str(run), "--to", to],  # what is there is not replaced
    )
    assert [code for code, _ in found] == [0, 0, 2], found
    assert "is not empty; choose another folder of the bucket" in found[2][1]
    names = listing(server, to)
    assert names == sorted(path.name for path in exported.iterdir())
    for name in (name for name in names if name.endswith(".safetensors")):
        assert tensors_of(read(server, f"{to}/{name}")) == tensors_of((exported / name).read_bytes())
    stored = [(folder / "checkpoints" / "0" / "_CHECKPOINT_METADATA").read_text() for folder in (run, back)]
    assert sums(stored[0]) == sums(stored[1])


@pytest.mark.slow
def test_an_import_goes_to_a_bucket_and_is_exported_from_there(
    server: Server, run: Path, exported: Path, tmp_path: Path
) -> None:
    to, out = f"{server.bucket}/imports/one", tmp_path / "out"
    found = commands(
        server,
        ["import", "omnihuman", "--from", str(exported), "--to", to],
        ["export", to, "--to", str(out), "--max-shard-gb", "0.0002"],
    )
    if server.scheme == "s3":
        assert [code for code, _ in found] == [2, 2] and "Orbax cannot save there" in found[0][1], found
        assert listing(server, to) == []
        return
    assert [code for code, _ in found] == [0, 0], found
    for path in exported.glob("*.safetensors"):
        assert tensors_of((out / path.name).read_bytes()) == tensors_of(path.read_bytes())


def nth(count: int, fault: int | str, method: str, part: str) -> Callable[[str, str, int], int | str | None]:
    """`fault` for the first `count` requests of `method` with `part` in their path."""
    left = [count]

    def of(found: str, path: str, number: int) -> int | str | None:
        if found in method and part in path and left[0] > 0:
            left[0] -= 1
            return fault
        return None

    return of


@pytest.mark.slow
@pytest.mark.parametrize("fault", [503, 429, "cut"])
def test_what_passes_is_waited_for(server: Server, run: Path, exported: Path, tmp_path: Path, fault: int | str) -> None:
    """Three bad answers to reads, then to writes: the same bits in the end."""
    to, back = f"{server.bucket}/faults/{fault}", tmp_path / "back"
    if fault != "cut":
        server.proxy.faults = nth(3, fault, "PUT POST", "faults")
    ((code, error),) = commands(server, ["export", str(run), "--to", to, "--max-shard-gb", "0.0002"])
    assert code == 0, error
    server.proxy.faults = nth(3, fault, "GET", "safetensors")
    ((code, error),) = commands(server, ["import", "omnihuman", "--from", to, "--to", str(back)])
    assert code == 0, error
    stored = [(folder / "checkpoints" / "0" / "_CHECKPOINT_METADATA").read_text() for folder in (run, back)]
    assert sums(stored[0]) == sums(stored[1])


@pytest.mark.slow
def test_an_export_that_is_cut_short_is_never_believed(server: Server, run: Path, tmp_path: Path) -> None:
    to = f"{server.bucket}/half/one"

    def dies(method: str, path: str, number: int) -> int | str | None:
        return 403 if method in ("PUT", "POST") and "config.json" in path else None

    server.proxy.faults = dies
    ((code, error),) = commands(server, ["export", str(run), "--to", to, "--max-shard-gb", "0.0002"])
    assert code != 0, error
    server.proxy.faults = lambda method, path, number: None
    assert listing(server, to) == []
    # Killed: nobody tidied up.
    marker = "import sys; from etils import epath; (epath.Path(sys.argv[1]) / '.incomplete').write_text('')"
    subprocess.run([sys.executable, "-c", marker, to], env=os.environ | server.environment, check=True)
    found = commands(
        server,
        ["import", "omnihuman", "--from", to, "--to", str(tmp_path / "back")],
        ["export", str(run), "--to", to],
        ["import", "omnihuman", "--from", to, "--to", str(tmp_path / "back")],
    )
    assert [code for code, _ in found] == [2, 0, 0], found
    assert checkpoint_directory(tmp_path / "back") == tmp_path / "back" / "checkpoints"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False


# Opens the dataset with room for less than half of it and reads it twice; prints the sha256 of all records and the use.
READER = """
import hashlib, json, os, sys
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import encode_record
source, catalog = open_records(sys.argv[1], retries=3, delay_s=0.1), Catalog.load(sys.argv[1])
digest = hashlib.sha256(catalog.fingerprint().encode())
for index in [*range(len(source)), *range(len(source))]:
    digest.update(encode_record(source[index], source.spec))
use = source.cache_use
print(json.dumps([digest.hexdigest(), use and [use.hits, use.fetched, use.fetched_bytes], source.unreadable]))
"""


def test_a_dataset_in_a_bucket_is_the_one_on_a_disk(server: Server, tmp_path: Path) -> None:
    """Through a cache that cannot hold it, with answers that are cut, refused, and never come."""
    dataset = runs.write_dataset(tmp_path / "dataset", shards=6)
    uri, cache = f"{server.bucket}/data/two", tmp_path / "cache"
    upload(server, dataset, uri)
    sizes = [path.stat().st_size for path in dataset.glob("*.array_record-*")]
    others = sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file()) - sum(sizes)
    room = others + 2.5 * max(sizes)
    assert len(sizes) == 6

    def read_all(where: str) -> list[Any]:
        limits = {
            "OMNIHUMAN_DATASET_CACHE": str(cache),
            "OMNIHUMAN_DATASET_CACHE_GB": str(room / 1e9),
            "OMNIHUMAN_REQUEST_TIMEOUT_S": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", READER, where], env=os.environ | server.environment | limits, capture_output=True,
            text=True, timeout=300, check=True,
        )  # fmt: skip
        return list(json.loads(done.stdout.splitlines()[-1]))

    bad = iter(["silence", *[503, "cut", 429] * 4])
    server.proxy.faults = lambda method, path, number: (
        next(bad, None) if method == "GET" and "array_record" in path and number % 3 == 0 else None
    )
    expected, remote = read_all(str(dataset)), read_all(uri)
    assert remote[0] == expected[0] and remote[2] == expected[2] == {}
    hits, fetched, _ = remote[1]
    assert fetched > len(sizes) and hits > 0
    kept = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file() and not path.name.startswith("."))
    assert kept <= room


@pytest.mark.slow
def test_a_server_that_never_answers_is_one_line(server: Server, tmp_path: Path) -> None:
    """Asked often enough, then told apart from a mistake of the user's by its exit code."""
    server.proxy.faults = lambda method, path, number: "silence"
    argv = ["plan", "--config", str(runs.CONFIG), f"--config.data.dataset={server.bucket}/data/none"]
    done = subprocess.run(
        [sys.executable, "-m", "omnihuman_jax.cli", *argv],
        env=os.environ | server.environment | {"OMNIHUMAN_REQUEST_TIMEOUT_S": "0.3"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == exit_codes.RETRY, done.stderr
    assert "omnihuman plan: storage does not answer (" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and len(server.proxy.requests) >= 4


def without(part: str) -> Callable[[bytes], bytes]:
    """A listing of GCS as it was before what has `part` in its name was there."""

    def of(body: bytes) -> bytes:
        told = json.loads(body)
        told["items"] = [item for item in told.get("items", []) if part not in item["name"]]
        told["prefixes"] = [prefix for prefix in told.get("prefixes", []) if part not in prefix]
        return json.dumps(told).encode()

    return of


@pytest.mark.slow
@pytest.mark.parametrize("server", ["gs"], indirect=True)  # with s3:// no run begins: test_locations
def test_a_listing_that_lags(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run is not told of its newest checkpoint: it goes on from the one before, saves that step again, and
    ends with the same bits.
    """
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    dataset, interval = runs.write_dataset(tmp_path / "dataset"), "--config.checkpoint.interval=3"
    runs.train(tmp_path / "disk", dataset, interval)
    uri = f"{server.bucket}/runs/lags"
    runs.train(uri, dataset, interval, "--stop-after=6")
    assert read(server, f"{uri}/checkpoints/6/manifest.json")

    def lags(method: str, path: str, number: int) -> Callable[[bytes], bytes] | None:
        return without("lags/checkpoints/6") if method == "GET" and path.partition("?")[0].endswith("/o") else None

    server.proxy.faults = lags
    output = runs.train(uri, dataset, interval)
    assert "step 3 of 12" in output, output
    server.proxy.faults = lambda method, path, number: None
    found = sums(read(server, f"{uri}/checkpoints/12/_CHECKPOINT_METADATA").decode())
    assert found == sums((tmp_path / "disk" / "checkpoints" / "12" / "_CHECKPOINT_METADATA").read_text())
    logged = {line["step"]: line for line in runs.records(copy_of(uri))}
    assert logged == {line["step"]: line for line in runs.records(tmp_path / "disk")}


@pytest.mark.slow
@pytest.mark.parametrize("server", ["gs"], indirect=True)  # with s3:// no run begins: test_locations
def test_a_run_in_a_bucket_is_the_run_on_a_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle, with storage that fails now and then: the same bits in the end, and its logs are read."""
    cache = {"OMNIHUMAN_DATASET_CACHE": str(tmp_path / "cache"), "OMNIHUMAN_DATASET_CACHE_GB": "0.1"}
    for name, value in (server.environment | cache).items():
        monkeypatch.setenv(name, value)
    dataset = runs.write_dataset(tmp_path / "dataset")
    runs.train(tmp_path / "disk", dataset, "--config.checkpoint.interval=3")
    uri, interval = f"{server.bucket}/runs/one", "--config.checkpoint.interval=3"

    def fails(method: str, path: str, number: int) -> int | str | None:
        return 503 if number % 17 == 0 else None

    server.proxy.faults = fails
    options = (interval, "--config.logging.tensorboard=True")
    there = f"{server.bucket}/data/one"
    upload(server, dataset, there)
    process = runs.start(uri, there, *options)
    until = time.monotonic() + 300
    # Asked of the server itself: no process of Python each time.
    saved = f"{server.proxy.url}/storage/v1/b/{servers.BUCKET}/o/runs%2Fone%2Fcheckpoints%2F6%2Fmanifest.json"
    while not _answers(saved):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.2)
    process.kill()
    process.communicate()
    runs.train(uri, there, *options)
    server.proxy.faults = lambda method, path, number: None
    found = listing(server, uri)
    names = {name.split("/")[1] for name in found if name.startswith("checkpoints/")}
    assert {"6", "9", "12"} <= names and not any("tmp" in name for name in names), names
    assert any(name.startswith("tensorboard/events") for name in found)
    found_sums = sums(read(server, f"{uri}/checkpoints/12/_CHECKPOINT_METADATA").decode())
    assert found_sums == sums((tmp_path / "disk" / "checkpoints" / "12" / "_CHECKPOINT_METADATA").read_text())
    # Of the killed attempt the last seconds' lines may be gone; those of the one that ended are all there.
    logs = copy_of(uri)
    assert read_metrics(logs)[-1]["dataset_cache_hit_rate"] > 0.5
    logged = {line["step"]: line for line in runs.records(logs)}
    assert logged.keys() >= {10, 11, 12}
    assert logged.items() <= {line["step"]: line for line in runs.records(tmp_path / "disk")}.items()
    monkeypatch.chdir(tmp_path)
    found = commands(
        server,
        ["--simulate-devices", "4", "replay", "--run", uri, "12"],
        ["goodput", uri],
        ["report", "--run", uri],
        ["goodput", f"{uri}-none"],
    )
    assert [code for code, _ in found] == [0, 0, 0, 2] and "no such run" in found[3][1], found
    assert (tmp_path / "goodput.svg").exists() and "steps trained" in (tmp_path / "report.html").read_text()
