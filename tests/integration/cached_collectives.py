"""Do programs of XLA:CPU with independent collectives still run once they come from the persistent cache?

    python -m tests.integration.cached_collectives [--mode ulysses_ring] [--runs 3]

The first process compiles a gradient and stores it, the others read it back and run it: docs/meshes.md has the answers.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

WAYS = {"gather": (1, 2, 2, 2), "ulysses": (2, 2, 2, 1), "ring": (2, 1, 4, 1), "ulysses_ring": (2, 1, 4, 1)}
LIMIT_S = 240  # XLA itself ends a process whose collectives waited for 40 s


def run_one(mode: str) -> None:
    import jax

    from tests.integration import test_mesh_invariance as mesh_tests

    hits = []
    jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
    # Through the cache here, which the test itself avoids.
    mesh_tests.uncached = lambda lowered: lowered.compile()
    (loss, _), _ = mesh_tests.computed(WAYS[mode], True, mode)
    print(f"loss {float(loss):.7f}, {len(hits)} programs from the cache")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mode", choices=WAYS, default="ulysses_ring", help="context parallelism (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=3, help="processes that read the cache (default: %(default)s)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments.mode)
        return
    print(f"jax {version('jax')}, {arguments.mode} on data, fsdp, context, tensor = {WAYS[arguments.mode]}")
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
            "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.integration.cached_collectives", "--one", "--mode", arguments.mode]
        for run in range(arguments.runs + 1):
            begin = time.monotonic()
            try:
                done = subprocess.run(
                    command, env=environment, timeout=LIMIT_S, capture_output=True, text=True, check=False
                )
                lines = (done.stdout + done.stderr).strip().splitlines()
                answer = f"exit code {done.returncode}: {lines[-1][:200] if lines else ''}"
            except subprocess.TimeoutExpired:
                answer = f"not done after {LIMIT_S} s"
            print(f"{'compiled' if run == 0 else 'read back'}: {answer} ({time.monotonic() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
