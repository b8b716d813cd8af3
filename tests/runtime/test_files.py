"""Files and folders appear whole or not at all, whenever the writer is killed, and nobody does it by hand."""

import ast
import hashlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnihuman_jax.runtime import files, folders

ROOT = Path(__file__).resolve().parents[2]
# (file, function): the module that does it, what every export carries alone, and moves of what was whole already.
RENAMES = {
    ("omnihuman_jax/runtime/folders.py", "replace_folder"),
    ("omnihuman_jax/runtime/files.py", "move_into_place"),
    ("omnihuman_jax/runtime/folders.py", "_sweep"),
    ("omnihuman_jax/serving/media_omnihuman.py", "write_video"),
    ("omnihuman_jax/checkpoint/manifest.py", "set_aside"),
    ("omnihuman_jax/checkpoint/shards.py", "remove"),
}
HASHES = {
    ("omnihuman_jax/runtime/files.py", "file_md5"),
    ("omnihuman_jax/runtime/files.py", "file_sha256"),
    ("omnihuman_jax/serving/folders_omnihuman.py", "file_sha256"),
}


def calls(source: str) -> Iterator[tuple[str, ast.Call, str]]:
    """(innermost function, call, the called name as it is written) of every call."""

    def visit(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call, str]]:
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.Call):
                yield function, child, ast.unparse(child.func)
            yield from visit(child, child.name if is_function else function)

    yield from visit(ast.parse(source), "")


def renames(source: str) -> set[str]:
    """Functions that rename files, or make temporary ones that outlive a `with`, themselves."""
    found = set()
    for function, call, name in calls(source):
        last = name.rsplit(".", 1)[-1]
        by_os = name in {"os.replace", "os.rename", "os.renames", "shutil.move", "tempfile.mkstemp"}
        # `str.replace` takes two arguments.
        by_path = last in {"rename", "replace"} and len(call.args) == 1 and not call.keywords
        by_path &= "." in name and name != "dataclasses.replace"
        if by_os or by_path or last == "NamedTemporaryFile":
            found.add(function)
    return found


def hashes(source: str) -> set[str]:
    """Functions that hash a file themselves."""
    return {function for function, _, name in calls(source) if name.rsplit(".", 1)[-1] == "file_digest"}


@pytest.mark.parametrize(("find", "allowed"), [(renames, RENAMES), (hashes, HASHES)])
def test_nobody_does_it_by_hand(find, allowed) -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), function)
        for package in ("omnihuman_jax", "data_pipelines", "launch")
        for path in (ROOT / package).rglob("*.py")
        for function in find(path.read_text())
    }
    assert found - allowed == set(), "use omnihuman_jax.runtime.files"
    assert allowed - found == set(), "these do not do it any more: take them out of the list"


@pytest.mark.parametrize(
    "line",
    [
        "os.replace(partial, path)",
        "os.rename(a, b)",
        "temporary.replace(path)",
        "path.with_suffix('.part').rename(path)",
        "shutil.move(a, b)",
        "tempfile.mkstemp()",
    ],
)
def test_the_rule_catches(line: str) -> None:
    assert renames(f"def f():\n    {line}\n") == {"f"}


@pytest.mark.parametrize("line", ["text.replace('a', 'b')", "dataclasses.replace(a)", "replace(a, b=1)"])
def test_the_rule_allows(line: str) -> None:
    assert not renames(f"def f():\n    {line}\n")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_text(path, "one \u00e4\n")
    assert path.read_bytes() == b"one \xc3\xa4\n"
    files.write_bytes(str(path), b"two")
    assert path.read_bytes() == b"two"
    with pytest.raises(RuntimeError), files.whole_file(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("half of th")
        raise RuntimeError
    assert path.read_bytes() == b"two" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError), files.whole_file(path):
        pass  # who writes nothing gets no empty file
    assert path.read_bytes() == b"two"
    with pytest.raises(FileNotFoundError):
        files.write_text(tmp_path / "nowhere" / "a", "")


def test_others_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        files.write_text(tmp_path / "a", "")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_bytes_reach_the_disk_before_the_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    fsync, replace = os.fsync, os.replace
    name_of = lambda descriptor: Path(os.readlink(f"/proc/self/fd/{descriptor}")).name  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(f"sync {name_of(fd)}"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(f"rename {Path(b).name}"), replace(a, b)))
    files.write_text(tmp_path / "a", "text")
    (written, *rest) = order
    assert written.startswith("sync .a.") and rest == ["rename a", f"sync {tmp_path.name}"]
    order.clear()
    with folders.whole_folder(tmp_path / "folder") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "b").write_text("text")
        name = folder.name
    assert order == [f"sync {name}", "sync b", "sync inside", "rename folder", f"sync {tmp_path.name}"]


@pytest.mark.parametrize(("sync", "left"), [(1, "old"), (2, "new")])
def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path: Path, sync: int, left: str) -> None:
    """kill -9 after the bytes are written and before the rename, and after the rename."""
    path = tmp_path / "file"
    path.write_text("old")
    code = textwrap.dedent(
        f"""
        import os, time
        from omnihuman_jax.runtime import files
        calls, fsync = [], os.fsync
        def slow(descriptor):
            calls.append(descriptor)
            if len(calls) == {sync}:
                print("ready", flush=True)
                time.sleep(60)
            fsync(descriptor)
        os.fsync = slow
        files.write_text({str(path)!r}, "new")
        """
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert path.read_text() == left


def test_a_file_system_that_cannot_sync_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> None:
        def fsync(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    refuse(22)  # EINVAL, of buckets that are mounted as a folder
    files.write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
    refuse(5)  # EIO
    with pytest.raises(OSError, match="Input/output error"):
        files.write_text(tmp_path / "b", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_sha256_of_a_file(tmp_path: Path) -> None:
    data = os.urandom(700_001)
    (tmp_path / "a").write_bytes(data)
    read: list[int] = []
    assert files.file_sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    assert files.file_sha256(tmp_path / "a", read.append) == hashlib.sha256(data).hexdigest()
    assert sum(read) == len(data)


def test_files_need_no_jax() -> None:
    code = (
        "import sys; from omnihuman_jax.runtime import files; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_whole_folder_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), folders.whole_folder(target) as folder:
        (folder / "half").write_text("x")
        assert not target.exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with folders.whole_folder(target) as folder:
        (folder / "a").write_text("1")
    assert [p.name for p in target.iterdir()] == ["a"]
    with (
        pytest.raises(FileExistsError, match="not empty; choose another folder, or empty it"),
        folders.whole_folder(target),
    ):
        pass
    with pytest.raises(RuntimeError), folders.whole_folder(target, overwrite=True) as folder:
        raise RuntimeError
    assert (target / "a").read_text() == "1"
    with folders.whole_folder(target, overwrite=True) as folder:
        (folder / "b").write_text("2")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_swept_by_the_next(tmp_path: Path) -> None:
    """kill -9 in the middle: the target does not exist; the next call removes the remains and puts the target there."""
    code = textwrap.dedent(
        f"""
        import time, pathlib
        from omnihuman_jax.runtime.folders import whole_folder
        with whole_folder(pathlib.Path({str(tmp_path / "out")!r})) as folder:
            (folder / "half").write_text("x")
            print("ready", flush=True)
            time.sleep(60)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 1
    with folders.whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_an_earlier_process_of_the_same_number_left_is_swept(tmp_path: Path) -> None:
    """In a container each is process 1."""
    left = tmp_path / f".out.incomplete-{socket.gethostname()}-{os.getpid()}"
    left.mkdir()
    (left / "half").touch()
    with folders.whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "a"]


def test_a_folder_taken_away_by_a_killed_overwrite_comes_back(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    replaced = tmp_path / f".out.incomplete-{socket.gethostname()}-{dead.pid}-replaced"
    replaced.mkdir()
    (replaced / "old").write_text("old")
    with pytest.raises(FileExistsError), folders.whole_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "old").read_text() == "old"


def test_names_are_safe_and_never_shared() -> None:
    for text in ("clip-000_1.a", "a" * 200):
        assert files.safe_name(text) == text
    texts = ["a/b", "a_b", "a:b", "\u00e4", "\u00f6", "", ".", "..", "a b", "a\nb", "x/" * 300, "a" * 201, "\udcff"]
    names = [files.safe_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert all(name.strip(".") and len(name) < 120 and name.isascii() and "/" not in name for name in names)
