"""The trainer's image, built on one machine without a registry or a daemon: a base by debootstrap, the Dockerfile by
buildah.

    image = build(folder)
    image.run("python", "-c", "import jax", mounts={"/data": (dataset, "ro")})

Needs root. The base is a stand-in for Debian's Python by digest, which the Dockerfile asks for: the same Debian, and
the Python that runs this file copied to where python:3.12-slim has its own.
"""

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOOLS = ("buildah", "debootstrap", "unshare")
INSTALL = "apt-get install buildah debootstrap util-linux"
ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "launch" / "docker" / "trainer.Dockerfile"
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
# What CPython's own modules link to.
LIBRARIES = "ca-certificates,libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,zlib1g,libreadline8"
BASE, TAG = "localhost/python:3.12", "localhost/trainer:tpu"
# More options for `buildah bud`, such as --volume of a pip.conf: where packages come from a mirror.
OPTIONS = "IMAGE_BUILD_OPTIONS"
_SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing() -> str:
    """Why no image can be built here; "" if one can."""
    if tools := [tool for tool in TOOLS if shutil.which(tool, path=_SBIN) is None]:
        return f"{', '.join(tools)} missing; Debian, Ubuntu: {INSTALL}"
    if os.geteuid() != 0:
        return "debootstrap and buildah's chroot isolation need root"
    if sys.version_info[:2] != (3, 12):
        return f"the image has Python 3.12, this one is {sys.version.split()[0]}; it would be copied into the base"
    if Path(sys.base_prefix) == Path("/usr"):
        return "Python must have a prefix of its own (pyenv, uv) to be copied into the base; this is the system's"
    return ""


def _call(*argv: str | Path) -> str:
    """Its output; ChildProcessError with the end of it where it fails."""
    done = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, check=False, env=os.environ | {"PATH": _SBIN}
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise ChildProcessError(f"{shlex.join(map(str, argv))} exited with {done.returncode}:\n{said}")
    return done.stdout


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """A built image and the container that is made of it; `folder` holds buildah's storage."""

    folder: Path
    container: str

    def buildah(self, *argv: str | Path) -> str:
        """One call on this storage."""
        return _buildah(self.folder, *argv)

    def config(self) -> dict[str, Any]:
        """What a runtime reads: User, Env, Cmd, WorkingDir."""
        found: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", TAG))["OCIv1"]["config"]
        return found

    def run(self, *argv: str, mounts: Mapping[str, tuple[Path, str]] | None = None, **environment: str) -> str:
        """Output of a command inside, as the image's own user; mounts: place inside -> (folder, `ro` or `rw`)."""
        options = [f"--volume={folder}:{place}:{mode}" for place, (folder, mode) in (mounts or {}).items()]
        options += [f"--env={name}={value}" for name, value in environment.items()]
        return self.buildah("run", "--isolation=chroot", *options, self.container, "--", *argv)


def _buildah(folder: Path, *argv: str | Path) -> str:
    # vfs: plain folders, where nothing can be mounted over another.
    storage = ("--root", folder / "storage", "--runroot", folder / "run", "--storage-driver", "vfs")
    return _call("buildah", *storage, *argv)


def base(folder: Path) -> None:
    """Debian by debootstrap, with this Python in /usr/local: BASE in the folder's storage."""
    tree = folder / "base"
    # unshare: what it mounts inside (/proc, /sys) is gone with it, whatever happens: the folder is removed later.
    _call("unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={LIBRARIES}", SUITE, tree, MIRROR)
    local, prefix = tree / "usr" / "local", Path(sys.base_prefix)
    left_out = shutil.ignore_patterns("__pycache__", "test", "*.a")
    for part in ("bin", "include", "lib"):
        shutil.copytree(prefix / part, local / part, symlinks=True, ignore=left_out, dirs_exist_ok=True)
    # What the environment's owner has installed there is no part of Python.
    shutil.rmtree(local / "lib" / "python3.12" / "site-packages")
    (local / "lib" / "python3.12" / "site-packages").mkdir()
    (local / "bin" / "python").unlink(missing_ok=True)
    (local / "bin" / "python").symlink_to("python3.12")
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        _call("chroot", tree, "ldconfig")
    _call("chroot", tree, "/usr/local/bin/python", "-c", "import bz2, ctypes, lzma, readline, sqlite3, ssl, zlib")
    container = _buildah(folder, "from", "scratch").strip()
    _buildah(folder, "copy", "--quiet", container, tree, "/")
    _buildah(folder, "config", "--env", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    _buildah(folder, "commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(tree)


def build(folder: Path) -> Image:
    """Base and image; minutes, and about 10 GB of disk in `folder` while it lasts."""
    os.environ.setdefault("TMPDIR", str(folder))  # buildah's own copies
    base(folder)
    more = shlex.split(os.environ.get(OPTIONS, ""))
    options = ("--isolation=chroot", "--network=host", f"--build-arg=BASE={BASE}", "--build-arg=ACCELERATOR=tpu")
    _buildah(folder, "bud", "--quiet", *options, *more, "--file", DOCKERFILE, "--tag", TAG, ROOT)
    return Image(folder, _buildah(folder, "from", "--pull-never", TAG).strip())
