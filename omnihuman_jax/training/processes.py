"""Several processes as one job: joining, waiting for each other, and stopping at the same step."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed
from jax.experimental import multihost_utils


def join(
    coordinator: str | None, num_processes: int | None, process_id: int | None, *, automatic: bool = False, timeout_s: int = 300
) -> bool:
    """Joins the job's other processes if arguments or environment name any (or `automatic`: JAX finds them); True if it did."""
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = num_processes or int(os.environ.get("JAX_NUM_PROCESSES", "0"))
    index = process_id if process_id is not None else os.environ.get("JAX_PROCESS_ID")
    if automatic:
        jax.distributed.initialize()
        return True
    if coordinator is None:
        return False
    if not processes or index is None:
        raise ValueError(f"coordinator {coordinator} is given: --num-processes and --process-id are needed too")
    jax.distributed.initialize(
        coordinator, processes, int(index),
        initialization_timeout=timeout_s, heartbeat_timeout_seconds=60, shutdown_timeout_seconds=30,
    )  # fmt: skip
    return True


def wait_for_peers(name: str, timeout_s: int = 3600) -> None:
    """Until every process is here. The first collective of a program waits 30 s for the others, compilers may differ by more."""
    client = distributed.global_state.client  # private to JAX, which has no other barrier without a collective
    if client is not None:
        client.wait_at_barrier(name, timeout_s * 1000)


@contextlib.contextmanager
def stop_request() -> Iterator[Callable[[int], bool]]:
    """Yields `f(step) -> bool`: has someone asked this job to stop (Ctrl-C, SIGTERM, a preemption notice)?

    With several processes JAX's own notifier is asked, which makes all of them agree on the step; every process must ask at
    every step. It owns SIGTERM then, and nothing may be installed over it.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    asked = threading.Event()

    def handle(number: int, _frame: Any) -> None:
        # A second Ctrl-C means it.
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda step: asked.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
