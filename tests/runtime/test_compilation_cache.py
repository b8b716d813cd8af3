"""The cache is code: a folder that others may write to is refused; one of our own is used."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from omnihuman_jax.runtime import compilation_cache


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv(compilation_cache.VARIABLE, raising=False)
    yield monkeypatch
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_new_folder_is_this_users_alone(tmp_path: Path, setting: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a" / "cache"
    assert compilation_cache.use(None) is None
    assert compilation_cache.use(str(folder)) == str(folder) == jax.config.jax_compilation_cache_dir
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720])
def test_what_others_may_write_is_refused(tmp_path: Path, setting: pytest.MonkeyPatch, mode: int) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    for use in (lambda: compilation_cache.use(str(folder)), lambda: compilation_cache.use(None)):
        with pytest.raises(ValueError, match=rf"can be written by other users \(mode {mode:o}\).*chmod go-w"):
            use()
        setting.setenv(compilation_cache.VARIABLE, str(folder))  # JAX's own variable is no way around
    folder.chmod(0o755)
    assert compilation_cache.use(None) == str(folder)


def test_another_users_folder_and_what_is_none(tmp_path: Path, setting: pytest.MonkeyPatch) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir(mode=0o755)
    if os.getuid() == 0:
        os.chown(foreign, 4242, 4242)
    else:
        owner = os.getuid()
        setting.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(ValueError, match="belongs to user"):
        compilation_cache.check_trust(foreign)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is no folder"):
        compilation_cache.use(str(tmp_path / "file"))
    assert compilation_cache.use("gs://bucket/cache") == "gs://bucket/cache"


def test_a_second_process_loads_what_the_first_compiled(tmp_path: Path) -> None:
    code = (
        "import sys, jax, jax.numpy as jnp\n"
        "from omnihuman_jax.runtime import compilation_cache\n"
        "compilation_cache.use(sys.argv[1])\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "hits = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))\n"
        "jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4)))\n"
        "print(sum('cache_hits' in name for name in hits))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != compilation_cache.VARIABLE}
    counts = [
        int(subprocess.check_output([sys.executable, "-c", code, str(tmp_path / "cache")], env=environment, text=True))
        for _ in range(2)
    ]
    assert counts[0] == 0 and counts[1] > 0
