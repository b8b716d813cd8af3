"""A bucket in memory behind `gs://`, as gcsfs shows one: objects with names, no folders, listings that are kept."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
from etils.epath import backend


class Bucket(fsspec.AbstractFileSystem):
    """`objects` is what others, such as TensorStore, see and write."""

    protocol = ("gs", "gcs")
    cachable = False
    objects: ClassVar[dict[str, bytes]] = {}

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Nothing, below a bucket."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """The same."""

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        if (found := self.dircache.get(path)) is None:
            found = [{"name": path, "size": len(self.objects[path]), "type": "file"}] if path in self.objects else []
            inside = {name[len(path) + 1 :].split("/")[0] for name in self.objects if name.startswith(f"{path}/")}
            for name in (f"{path}/{part}" for part in sorted(inside)):
                is_file = name in self.objects
                size = len(self.objects[name]) if is_file else 0
                found.append({"name": name, "size": size, "type": "file" if is_file else "directory"})
            if not found:
                raise FileNotFoundError(path)
            self.dircache[path] = found
        return found if detail else [entry["name"] for entry in found]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        source = self._strip_protocol(path1)
        if source in self.objects:  # a folder is nothing that could be copied
            self.objects[self._strip_protocol(path2)] = self.objects[source]
            self.invalidate_cache()

    def _rm(self, path: str) -> None:
        self.objects.pop(self._strip_protocol(path), None)
        self.invalidate_cache()

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        if "r" not in mode:
            return _Upload(self, path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return io.BytesIO(self.objects[path])


class _Upload(io.BytesIO):
    """There once it is closed."""

    def __init__(self, bucket: Bucket, path: str):
        super().__init__()
        self._bucket, self._path = bucket, path

    def close(self) -> None:
        if not self.closed:
            self._bucket.objects[self._path] = self.getvalue()
            self._bucket.invalidate_cache()
        super().close()


@contextlib.contextmanager
def empty_bucket() -> Iterator[dict[str, bytes]]:
    """Name -> bytes of all objects of all `gs://` buckets, which are these while the block lasts."""
    before = {name: fsspec.get_filesystem_class(name) for name in Bucket.protocol}
    for name in Bucket.protocol:
        fsspec.register_implementation(name, Bucket, clobber=True)
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    Bucket.objects.clear()
    try:
        yield Bucket.objects
    finally:
        for name, real in before.items():
            fsspec.register_implementation(name, real, clobber=True)
        backend._FileSystemSpecBackend._get_filesystem.cache_clear()
