"""Several processes as one job: joining, agreeing, stopping at the same step, and leaving through one door.

JAX's coordination service is always there, for one process too, so that SIGTERM, votes and the way out are the same on
a laptop and
on a pod. Nothing here uses a device: a vote works while the devices hang.
"""

import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed, xla_bridge
from jax.experimental import multihost_utils

from omnihuman_jax.runtime import platform_flags, signals, variables

logger = logging.getLogger(__name__)

_LEFT = "omnihuman/left/"
_BY_HAND = "by_hand"
# Where JAX's preemption sync manager says, to all processes, that one of them had SIGTERM or another notice of
# preemption.
_PREEMPTION_NOTICE = "RECEIVED_PREEMPTION_NOTICE"
# How long the coordinator stays after a failure, so that its peers can read why: they look every second.
LINGER_S = 2.5
_gathers = itertools.count()
# How long one process waits for what another does meanwhile. No shorter than the watchdog's limits, which end what
# hangs.
_barrier_timeout_s = 3600.0


class RunEnded(Exception):
    """A run that ends before its schedule does: the message says why, `exit_code` what a launcher does.

    alone: only this process knows; otherwise all end alike, at the same step.
    """

    def __init__(self, message: str, code: int, *, alone: bool = False):
        super().__init__(message)
        self.exit_code, self.alone = code, alone


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    automatic: bool = False,
    timeout_s: int = 300,
    heartbeat_s: int = 60,
    shutdown_s: int = 30,
) -> bool:
    """Makes this process part of a job: the one that arguments or environment name, or a job of its own.

    Args:
        coordinator, num_processes, process_id: HOST:PORT of process 0, their number, and which of them this is.
        automatic: JAX finds its peers by itself (TPU pods, SLURM).
        timeout_s: how long to wait for the others.
        heartbeat_s: a process that was silent for so long is dead, and ends the job.
        shutdown_s: how long those that are done wait for the others.

    A stop that comes before the first step ends the whole job from here on, if this process listens
    (`signals.listening`).

    Returns:
        False where JAX is in use already (a notebook, a test): that program keeps its signals and its way out.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = num_processes or variables.whole("JAX_NUM_PROCESSES", 0)
    index = process_id if process_id is not None else variables.whole("JAX_PROCESS_ID", -1)
    times: dict[str, Any] = {
        "initialization_timeout": timeout_s,
        "heartbeat_timeout_seconds": heartbeat_s,
        "shutdown_timeout_seconds": shutdown_s,
    }
    if automatic:
        jax.distributed.initialize(local_device_ids=platform_flags.slurm_device_ids(os.environ), **times)
        _listen_for_all(signals.current())
        return True
    _check_job(coordinator, count, index)
    if coordinator is None or count == 1:
        if xla_bridge.backends_are_initialized():
            if (listener := signals.current()) is not None:
                listener.close()
            return False
        # Collectives between the devices of one process need no network: through gloo they take 30 times as long on a
        # CPU.
        jax.config.update("jax_cpu_collectives_implementation", None)
    if coordinator is None:
        coordinator, count, index = f"127.0.0.1:{_free_port()}", 1, 0
        times["coordinator_bind_address"] = coordinator
    jax.distributed.initialize(coordinator, count, index, cluster_detection_method="deactivate", **times)
    _listen_for_all(signals.current())
    return True


def _check_job(coordinator: str | None, count: int, index: int) -> None:
    """ValueError unless these name a job and one of its processes, or nothing; -1: no index is given."""
    if coordinator is None:
        if count > 1:
            raise ValueError(
                f"{count} processes are asked for and no coordinator: give --coordinator HOST:PORT (or"
                " JAX_COORDINATOR_ADDRESS), or --distributed where JAX finds its peers itself"
            )
        return
    if not count or index < 0:
        raise ValueError(f"coordinator {coordinator} is given: --num-processes and --process-id are needed too")
    host, _, port = coordinator.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"coordinator {coordinator!r} must be HOST:PORT of process 0, such as 10.0.0.1:8476")
    if index >= count:
        raise ValueError(f"process {index} of {count}: --process-id (JAX_PROCESS_ID) must be in 0..{count - 1}")


def start_devices() -> None:
    """ValueError where JAX_PLATFORMS names what this environment's JAX cannot have; other failures may pass."""
    try:
        jax.local_devices()
    except RuntimeError as error:
        if "is not in the list of known backends" not in str(error):
            raise
        asked, reason = os.environ.get("JAX_PLATFORMS", ""), str(error).split(": ", 1)[-1].split(". (")[0]
        raise ValueError(
            f"JAX_PLATFORMS is {asked!r}: {reason}; unset it, or install the package of that platform"
        ) from None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _client() -> Any:
    """The coordination service's client, None without one. Private to JAX, which has no other barrier without a
    collective.
    """
    return distributed.global_state.client


def own_index() -> int:
    """`jax.process_index`, without starting the devices, which may be what hangs."""
    return int(distributed.global_state.process_id)


def own_count() -> int:
    """`jax.process_count`, without starting the devices; 1 before this process has joined others."""
    return int(distributed.global_state.num_processes or 1)


def set_barrier_timeout(seconds: float) -> None:
    """How long `gather` and `wait_for_peers` wait for the other processes, from now on; 3600 s by default."""
    global _barrier_timeout_s
    _barrier_timeout_s = seconds


def wait_for_peers(name: str) -> None:
    """Until every process is here. The first collective of a program waits 30 s for the others, compilers may differ by
    more.
    """
    if (client := _client()) is not None:
        client.wait_at_barrier(name, int(_barrier_timeout_s * 1000))


def gather(value: Any) -> list[Any]:
    """Everyone's `value` (JSON), by process: all processes call it, in the same order, and none goes on before all
    have.
    """
    client = _client()
    if client is None or jax.process_count() == 1:
        return [value]
    call = next(_gathers)
    key = f"omnihuman/gather/{call}"
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    client.wait_at_barrier(key, int(_barrier_timeout_s * 1000))
    found = dict(client.key_value_dir_get(f"{key}/"))
    if jax.process_index() == 0 and call:
        # Whoever came to this barrier has read the answers of the one before.
        client.key_value_delete(f"omnihuman/gather/{call - 1}/")
    return [json.loads(found[f"{key}/{index}"]) for index in range(jax.process_count())]


def post(key: str, value: Any) -> None:
    """Something for the other processes to find, whenever they look; any thread may."""
    if (client := _client()) is not None and distributed.global_state.num_processes != 1:
        with contextlib.suppress(Exception):
            client.key_value_set(
                f"omnihuman/post/{key}/{distributed.global_state.process_id}", json.dumps(value), allow_overwrite=True
            )


def posted(key: str) -> dict[str, Any]:
    """What others, or this one, have posted under `key`: process -> value."""
    if (client := _client()) is None or distributed.global_state.num_processes == 1:
        return {}
    return {
        name.rsplit("/", 1)[1]: json.loads(value) for name, value in client.key_value_dir_get(f"omnihuman/post/{key}/")
    }


def _listen_for_all(listener: signals.Listener | None) -> None:
    if listener is not None:
        listener.joined(lambda: _stop_notice(listener.interrupted.is_set()), _pass_on, abandon)


def _stop_notice(interrupted: bool) -> signal.Signals | None:
    """What a process of this job was asked to stop by, None if none was, as far as the coordination service knows."""
    try:
        _client().key_value_try_get(_PREEMPTION_NOTICE)
        return signal.SIGINT if interrupted or posted(_BY_HAND) else signal.SIGTERM
    except Exception:  # not there; or the service is gone, and JAX itself ends this process
        return None


def _pass_on(number: signal.Signals) -> None:
    """Tells JAX's notifier, which knows SIGTERM alone; posts first that it was Ctrl-C, for who acts on the notice."""
    if number == signal.SIGINT:
        post(_BY_HAND, True)
    os.kill(os.getpid(), signal.SIGTERM)


class StopRequest:
    """Asked after every step, by every process: has someone asked this job to stop?

    by_hand: it was Ctrl-C, on any of them (known once `agreed` was true): a person does not want a restart.
    """

    def __init__(self, asked: Callable[[int], bool], interrupted: threading.Event):
        self._asked = asked
        self._interrupted = interrupted
        self.by_hand = False

    def agreed(self, steps: int) -> bool:
        """True at the same step on all processes. `steps`: 1 at the first call and one more at each, wherever training
        began.

        JAX's sync point is one more than the largest number that any process has asked with, 0 before all: a process
        whose first question is another than 1 may never meet it.
        """
        if not self._asked(steps):
            return False
        self.by_hand = any(gather(self._interrupted.is_set()))
        return True


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Around the training loop: Ctrl-C, SIGTERM and preemption notices as one question.

    JAX's notifier owns SIGTERM once a process has joined; a handler of Python's installed over it would hide preemption
    from all. Ctrl-C is passed on to it, and a second one means it. Where nothing was joined, plain handlers answer.
    """
    if _client() is None:
        with _plain_handlers() as request:
            yield request
        return
    with signals.listening(signal.SIGINT) as listener:
        interrupted = threading.Event()
        if listener is not None:
            interrupted = listener.interrupted
            _listen_for_all(listener)
            listener.hand_over()
        # Once one has asked JAX nobody may leave at a signal: the one who asks would wait for him, with Python's lock
        # held. Until all have come here he who is late still ends them all at once, and who waits follows him.
        gather("handed over")
        yield StopRequest(multihost_utils.reached_preemption_sync_point, interrupted)


@contextlib.contextmanager
def _plain_handlers() -> Iterator[StopRequest]:
    asked, interrupted = threading.Event(), threading.Event()
    request = StopRequest(lambda steps: asked.is_set(), interrupted)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def interrupt(number: int, _frame: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        asked.set()

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, interrupt),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: asked.set()),
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(code: int) -> NoReturn:
    """The end of a process whose peers end as well: waits for them (`shutdown_s`), then exits."""
    with contextlib.suppress(Exception):
        jax.distributed.shutdown()
    signals.exit_now(code)


def abandon(code: int, reason: str) -> NoReturn:
    """The end of a process that failed: tells the others, and exits at once. To unwind would wait for them, and lose
    the code.
    """
    client, state = _client(), distributed.global_state
    if client is not None and state.num_processes != 1:
        # In a thread: the service may be what hangs.
        tell = threading.Thread(
            target=lambda: client.key_value_set(
                f"{_LEFT}{state.process_id}", json.dumps([code, reason]), allow_overwrite=True
            ),
            daemon=True,
        )
        tell.start()
        tell.join(LINGER_S)
        if state.process_id == 0:
            time.sleep(LINGER_S)
    signals.exit_now(code)


def follow(poll_s: float = 1.0) -> None:
    """From now on this process leaves, with the same code, as soon as another one says that it failed."""
    if _client() is None or distributed.global_state.num_processes == 1:
        return

    def watch() -> None:
        while True:
            time.sleep(poll_s)
            try:
                left = _client().key_value_dir_get(_LEFT)
            except Exception:  # the service is gone: JAX itself ends this process
                return
            for key, value in left:
                if key == f"{_LEFT}{distributed.global_state.process_id}":
                    continue
                code, reason = json.loads(value)
                logger.error(
                    "process %s left with exit code %d (%s); so does this one", key.removeprefix(_LEFT), code, reason
                )
                if distributed.global_state.process_id == 0:
                    time.sleep(LINGER_S)  # the others still have to read it, from the service that ends with this one
                signals.exit_now(code)

    threading.Thread(target=watch, name="omnihuman-follow", daemon=True).start()
