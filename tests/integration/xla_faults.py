"""Are the two faults of XLA:CPU that this code works around still there? For after an upgrade of JAX.

    python -m tests.integration.xla_faults --fault partitioner     # wrong gradients where it places activations itself
    python -m tests.integration.xla_faults --fault cache --runs 3  # collectives of a program from the persistent cache

partitioner: the gradient of a tiny model on data 2 x fsdp 2 x tensor 2 against that on data 8, with what
`models/layers.py` pins left to XLA. cache: one process compiles the gradient of a context-parallel model and stores it,
others read it back and run it. What was seen is in docs/versions.md.
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


def gradients_left_to_the_partitioner() -> str:
    """Largest difference of a parameter's gradient, as a share of its largest value, and the loss's."""
    from omnihuman_jax.models import layers
    from tests.integration import test_mesh_invariance as mesh_tests

    layers.pin = lambda x, *axes: x
    layers.gathered = lambda kernel, stored, used: kernel
    (plain_loss, _), plain = mesh_tests.computed(mesh_tests.PLAIN, True)
    (loss, _), split = mesh_tests.computed((2, 2, 1, 2), True)
    worst, error = mesh_tests.worst_error(split, plain)
    return f"loss off by {abs(loss / plain_loss - 1):.1e}, a gradient by up to {error:.1e} ({worst})"


def run_from_the_cache(mode: str) -> str:
    """Compiles, or reads from the cache of the environment, and runs the gradient of one way to share a context."""
    import jax

    from tests.integration import test_mesh_invariance as mesh_tests

    hits = []
    jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
    # Through the cache here, which the test itself avoids.
    mesh_tests.uncached = lambda lowered: lowered.compile()
    (loss, _), _ = mesh_tests.computed(WAYS[mode], True, mode)
    return f"loss {float(loss):.7f}, {len(hits)} programs from the cache"


def answer_of(argv: list[str], cache: str | None) -> str:
    """What a process that does it said, or how it ended."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_ENABLE_COMPILATION_CACHE": str(cache is not None).lower(), "JAX_COMPILATION_CACHE_DIR": cache or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.integration.xla_faults", "--one", *argv]
    begin = time.monotonic()
    try:
        done = subprocess.run(command, env=environment, timeout=LIMIT_S, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT_S} s"
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    said = next((line for line in lines if "timeout" in line.lower()), lines[-1]) if done.returncode else lines[0]
    return f"exit code {done.returncode}: {said[:300]} ({time.monotonic() - begin:.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", choices=("partitioner", "cache"), required=True)
    parser.add_argument("--mode", choices=WAYS, default="ulysses_ring", help="context parallelism (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="processes that read the cache (%(default)s)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(run_from_the_cache(options.mode) if options.fault == "cache" else gradients_left_to_the_partitioner())
        return
    print(f"jax {version('jax')}")
    if options.fault == "partitioner":
        print(answer_of(["--fault", "partitioner"], cache=None))
        return
    with tempfile.TemporaryDirectory() as cache:
        for run in range(options.runs + 1):
            answer = answer_of(["--fault", "cache", "--mode", options.mode], cache)
            print(f"{'compiled' if run == 0 else 'read back'}: {answer}", flush=True)


if __name__ == "__main__":
    main()
