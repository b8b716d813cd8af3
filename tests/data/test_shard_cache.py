"""A dataset's files come from the bucket once, whole, within a limit, for all processes of a host.

The bucket is fsspec's own, in memory, with generations as GCS has them; real servers are in `tests/storage`.
"""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from array_record.python import array_record_module
from fsspec.implementations.memory import MemoryFileSystem

from omnihuman_jax.data import shard_cache
from omnihuman_jax.data.dataset_files import CachedRecords
from omnihuman_jax.data.shard_cache import ChangedError, ShardCache, TransferError
from omnihuman_jax.runtime import files

HOME = "versioned://data/set"
SIZE = 1000


class Versioned(MemoryFileSystem):
    """Says of each object which write it is of, as GCS does."""

    protocol = "versioned"

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        found = super().info(path, **options)
        if found["type"] == "file":
            found["generation"] = str(self.store[self._strip_protocol(path)].modified)
        return dict(found)

    def find(self, path: str, *_: Any, **__: Any) -> dict[str, Any]:
        return {name: self.info(name) for name in super().find(path)}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("versioned://", "memory://")))


fsspec.register_implementation("versioned", Versioned, clobber=True)


@pytest.fixture(autouse=True)
def bucket() -> Iterator[Any]:
    store = fsspec.filesystem("versioned")
    store.store.clear()
    for name in ("a", "b", "c", "sub/d"):
        store.pipe_file(f"/data/set/{name}", name.encode() * (SIZE // len(name)))
    yield store
    store.store.clear()


def opened(folder: Path, limit: int = 10 * SIZE) -> ShardCache:
    return ShardCache(HOME, folder, limit)


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


def test_a_file_comes_once_and_is_the_object(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    assert cache.names == ["a", "b", "c", "sub/d"] and cache.num_bytes == 4 * SIZE
    assert cache.path("a").read_bytes() == b"a" * SIZE and cache.path("sub/d").read_bytes() == b"sub/d" * 200
    cache.path("a")
    use = cache.use
    assert (use.hits, use.fetched, use.fetched_bytes) == (1, 2, 2 * SIZE) and use.hit_rate == pytest.approx(1 / 3)
    again = opened(tmp_path)  # another process, later
    again.path("a")
    assert (again.use.hits, again.use.fetched) == (1, 0)


def test_what_was_not_used_for_longest_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache, "_TOUCH_S", 0.0)
    cache = opened(tmp_path, int(2.5 * SIZE))
    for name in ("a", "b", "a", "c"):
        cache.path(name)
        time.sleep(0.02)
    assert kept(tmp_path) == {"a", "c"}
    assert cache.path("b").read_bytes() == b"b" * SIZE and kept(tmp_path) == {"b", "c"}


def test_a_file_that_is_open_may_leave_and_is_read_to_its_end(tmp_path: Path) -> None:
    cache = opened(tmp_path, int(1.5 * SIZE))
    with cache.path("a").open("rb") as file:
        cache.path("b")
        assert kept(tmp_path) == {"b"} and file.read() == b"a" * SIZE


def test_a_shard_that_leaves_before_it_is_open_comes_again(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "written"), "group_size:1")
    writer.write(b"a window")
    writer.close()
    bucket.pipe_file("/data/set/a", (tmp_path / "written").read_bytes())
    cache = opened(tmp_path / "cache", 1 << 20)
    leaves = {"before it is looked at": iter((True, False, True)), "before it is open": iter((True,))}
    finding, opening = cache.path, array_record_module.ArrayRecordReader

    def left(place: Path, moment: str) -> Path:
        if next(leaves[moment], False):
            place.unlink()  # as another process of the host makes room
        return place

    def path(name: str) -> Path:
        return left(finding(name), "before it is looked at")

    def reader(place: str) -> Any:
        return opening(str(left(Path(place), "before it is open")))

    monkeypatch.setattr(cache, "path", path)
    monkeypatch.setattr(array_record_module, "ArrayRecordReader", reader)
    records = CachedRecords(cache, ["a"], [1])
    assert records[0] == b"a window" and cache.use.fetched == 4
    assert records[0] == b"a window" and cache.use.fetched == 4


def test_what_the_cache_did_not_fetch_stays(tmp_path: Path) -> None:
    own = [tmp_path / "talks" / "windows.array_record-00000", tmp_path / "0123456789abcdef" / "x.array_record-00000"]
    for path in own:
        path.parent.mkdir()
        path.write_bytes(b"the only copy" * SIZE)
    cache = opened(tmp_path, int(1.5 * SIZE))
    cache.path("a")
    cache.path("b")
    assert all(path.is_file() for path in own) and kept(cache.folder) == {"b"}


def test_a_limit_below_the_largest_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"versioned://data/set/\w+.* has .* GB; give it room for one file"):
        opened(tmp_path, SIZE - 1)


def test_nothing_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="versioned://data/other: no dataset here"):
        ShardCache("versioned://data/other", tmp_path, SIZE)
    with pytest.raises(FileNotFoundError, match="versioned://data/set/x: no such file"):
        opened(tmp_path).path("x")


def test_threads_that_ask_at_once_fetch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = [opened(tmp_path) for _ in range(4)]  # as four processes: each has its own locks' descriptors
    slow(monkeypatch, caches[0])
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda cache=cache: found.append(cache.path("a").read_bytes())) for cache in caches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"a" * SIZE] * 4 and sum(cache.use.fetched for cache in caches) == 1


def slow(monkeypatch: pytest.MonkeyPatch, cache: ShardCache) -> None:
    opening = cache._fs.open

    def delayed(*args: Any, **options: Any) -> Any:
        time.sleep(0.2)
        return opening(*args, **options)

    monkeypatch.setattr(cache._fs, "open", delayed)


@pytest.mark.parametrize("content", [b"x" * SIZE, b"longer" * SIZE])
def test_an_object_that_was_replaced_is_refused(tmp_path: Path, bucket: Any, content: bytes) -> None:
    cache = opened(tmp_path, 100 * SIZE)
    bucket.pipe_file("/data/set/a", content)
    with pytest.raises(ChangedError, match="versioned://data/set/a was replaced since the dataset was opened"):
        cache.path("a")
    assert kept(tmp_path) == set()


def test_another_object_of_the_name_is_fetched_again(tmp_path: Path, bucket: Any) -> None:
    opened(tmp_path).path("a")
    bucket.pipe_file("/data/set/a", b"x" * SIZE)
    assert opened(tmp_path).path("a").read_bytes() == b"x" * SIZE


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"y" + data[1:]], ids=["cut", "flipped"])
def test_a_body_that_arrives_damaged_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    import base64
    import hashlib
    import io

    cache = opened(tmp_path)
    stored = cache._objects["a"]
    md5 = hashlib.md5(b"a" * SIZE).digest()
    hashed = dict(cache._fs.info("/data/set/a"), md5Hash=base64.b64encode(md5).decode())
    cache._objects["a"] = shard_cache.StoredObject.of(hashed)  # as GCS has it
    assert cache._objects["a"].version == stored.version
    monkeypatch.setattr(cache._fs, "open", lambda *_, **__: io.BytesIO(damage(b"a" * SIZE)))
    with pytest.raises(TransferError, match=r"versioned://data/set/a arrives with .* in the bucket it has 1,000"):
        cache.path("a")
    assert kept(tmp_path) == set()
    monkeypatch.undo()
    assert cache.path("a").read_bytes() == b"a" * SIZE


def test_what_a_killed_process_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = opened(tmp_path, 3 * SIZE)
    left = cache.folder / ".a.1234abcd.part"
    left.write_bytes(b"x" * 2 * SIZE)
    cache.path("b")
    assert left.exists()  # it may still be written
    monkeypatch.setattr(files, "DEAD_S", 0.0)
    time.sleep(0.01)
    cache.path("c")
    assert not left.exists() and kept(tmp_path) == {"b", "c"}
