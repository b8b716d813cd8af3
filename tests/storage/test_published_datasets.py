"""A dataset and what is appended to it, brought into a bucket: a reader has the generation of before or the new one."""

import hashlib
import json
from pathlib import Path

import fsspec
import pytest

from omnihuman_jax import cli
from omnihuman_jax.data import dataset_files, publish
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.generations import Generation, read_manifest, write_manifest
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import encode_record
from tests.data import synthetic
from tests.data_pipelines.test_sources import server
from tests.storage import servers
from tests.storage.servers import Server
from tests.storage.test_buckets_of_servers import nth
from tests.training import runs

__all__ = ["server"]


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dataset_files.FOLDER_VARIABLE, str(tmp_path / "cache"))


def contents(dataset: Path | str) -> str:
    """The digest of all records and of the catalog, as a process sees them that has just begun."""
    dataset_files.cache_of.cache_clear()
    dataset_files._listed_generations.cache_clear()
    source, catalog = open_records(dataset, retries=3, delay_s=0.1), Catalog.load(dataset)
    digest = hashlib.sha256(catalog.fingerprint().encode())
    for index in catalog.record.tolist():
        record = source[index]
        assert record is not None
        digest.update(encode_record(record, source.spec))
    return digest.hexdigest()


def names(server: Server, uri: str) -> list[str]:
    import fsspec.core

    fs, root = fsspec.core.url_to_fs(uri)
    return sorted(name.removeprefix(root).lstrip("/") for name in fs.find(root))


def killed(*arguments: object) -> str:
    raise KeyboardInterrupt


def test_an_append_comes_into_a_bucket_whole(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, uri = runs.write_dataset(tmp_path / "dataset", shards=3), f"{server.bucket}/data/grown"
    command = ["data", "publish", str(dataset), "--to", uri]
    server.proxy.faults = nth(3, 503, "PUT POST", servers.BUCKET)
    try:
        assert cli.main(command) == 0, capsys.readouterr().err
    finally:
        server.proxy.faults = lambda method, path, number: None
    files = [path.relative_to(dataset).as_posix() for path in dataset.rglob("*") if path.is_file()]
    assert names(server, uri) == sorted([*files, "manifest.json"])
    first = contents(dataset)
    assert contents(uri) == contents(f"{uri}@1") == first
    synthetic.append(dataset, synthetic.catalog(6, seed=3, latent_frames=(1, 3)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(publish, "manifest_text", killed)
        publish.publish(dataset, uri)
    assert any(name.startswith("generations/00002/") for name in names(server, uri))
    assert contents(uri) == first, "what the manifest does not name is not there"
    assert cli.main(command) == 0 and "generation 2 brought" in capsys.readouterr().out
    assert cli.main(command) == 0 and "up to date" in capsys.readouterr().out
    assert contents(uri) == contents(f"{uri}@2") == contents(f"{dataset}@2") != first
    assert contents(f"{uri}@1") == first and len(read_manifest(dataset)) == 2
    with pytest.raises(ValueError, match="grown@3: there is no such generation"):
        contents(f"{uri}@3")
    other = runs.write_dataset(tmp_path / "other", shards=2)
    with pytest.raises(ValueError, match="holds generations that"):
        publish.publish(other, uri)
    with pytest.raises(ValueError, match="a copy is all that is needed"):
        publish.publish(dataset, str(tmp_path / "copy"))
    with pytest.raises(FileNotFoundError, match="no dataset here"):
        publish.publish(tmp_path / "nowhere", uri)


@pytest.mark.parametrize("server", ["gs"], indirect=True)
def test_a_folder_that_holds_something_else_is_left_alone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{server.bucket}/data/else"
    one, other = (runs.write_dataset(tmp_path / name, shards=1) for name in ("one", "other"))
    synthetic.damage(other, runs.catalog(), 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(publish, "manifest_text", killed)
        publish.publish(one, uri)
    before = names(server, uri)
    with pytest.raises(ValueError, match="is there, and is not"):
        publish.publish(other, uri)
    assert names(server, uri) == before


def test_a_data_set_of_the_same_sizes_is_told_apart_without_md5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As S3 has it, whether the bucket has all of the other or what a killed call brought."""
    monkeypatch.setattr(publish.locations, "location", str)
    monkeypatch.setattr(publish.locations, "is_remote", lambda place: True)
    monkeypatch.setattr(publish, "_THREADS", 1)
    bucket, uri = fsspec.filesystem("memory"), "memory://published/set"

    def write(shard: str, generations: list[Generation]) -> None:
        for name, text in (("dataset.json", "{}"), ("encode.json", json.dumps({"sha256": shard})), ("a", shard)):
            (tmp_path / name).write_text(text)
        if generations:
            write_manifest(tmp_path, generations)

    def refused() -> bool:
        before = {name: bucket.cat_file(name) for name in bucket.find("/published")}
        with pytest.raises(ValueError, match=r"encode\.json: is there, and is not"):
            publish.publish(tmp_path, uri)
        return {name: bucket.cat_file(name) for name in bucket.find("/published")} == before

    write("first", [])
    try:
        assert publish.publish(tmp_path, uri) == [1] and publish.publish(tmp_path, uri) == []
        write("other", [])
        assert refused(), "neither has a manifest that says what it is"
        write("other", [Generation(number=1, windows=3, records=3, summary_sha256="s")])
        assert refused()
        bucket.rm("/published", recursive=True)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(publish, "manifest_text", killed)
            publish.publish(tmp_path, uri)
        write("third", [])
        assert refused()
        write("other", [])
        assert publish.publish(tmp_path, uri) == [1] and bucket.cat_file("/published/set/a") == b"other"
    finally:
        bucket.store.clear()
