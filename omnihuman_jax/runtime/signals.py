"""SIGTERM and Ctrl-C from the first line of a training command to its exit, answered by a thread.

Python runs a signal's handler when the main thread comes back from C++, and joining, restoring and compiling may keep
it there for minutes. What the interpreter writes to its wakeup descriptor comes out of the signal itself, and a thread
can read that at once.

Before the first step there is nothing to save, so a stop ends the process there and then. From `hand_over` on the
training loop decides, between two steps: the thread only passes signals on. No JAX here: it listens while JAX is
imported.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from omnihuman_jax.runtime import exit_codes

logger = logging.getLogger(__name__)

STOPS = (signal.SIGTERM, signal.SIGINT)
POLL_S = 0.5
_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
_CODES = {signal.SIGTERM: exit_codes.RESTART, signal.SIGINT: exit_codes.INTERRUPTED}
_current: "Listener | None" = None
_last_acts: list[Callable[[], None]] = []


def exit_now(code: int, reason: str = "") -> NoReturn:
    """Ends this process without unwinding, with what it has printed; `reason` is for those who can tell others."""
    for act in _last_acts:
        with contextlib.suppress(Exception):
            act()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def before_exit(act: Callable[[], None]) -> Iterator[None]:
    """`exit_now` calls `act` first, which has to end soon by itself."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


class Listener:
    """Of a process, at most one at a time: `listening` makes it, `current` finds it.

    interrupted: Ctrl-C came.
    """

    def __init__(self, numbers: tuple[signal.Signals, ...]):
        self.interrupted = threading.Event()
        # Held while a signal is answered: `hand_over` returns either before that or never.
        self._lock = threading.Lock()
        self._in_loop = False
        self._end: Callable[[int, str], NoReturn] = exit_now
        self._notice: Callable[[], signal.Signals | None] = lambda: None
        self._pass_on: Callable[[signal.Signals], None] = lambda number: None
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._reader.settimeout(POLL_S)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # A handler of Python's has to be there, or the default action ends the process; the thread does the work.
        self._before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        threading.Thread(target=self._watch, name="omnihuman-signals", daemon=True).start()

    def joined(
        self,
        notice: Callable[[], signal.Signals | None],
        pass_on: Callable[[signal.Signals], None],
        end: Callable[[int, str], NoReturn],
    ) -> None:
        """This process is part of a job now, whose preemption notifier owns SIGTERM.

        Args:
            notice: which signal any process of the job was stopped by; asked every `POLL_S` until `hand_over`.
            pass_on: tells the job's notifier of a signal that came here.
            end: leaves with (code, reason), and takes the others along.
        """
        with self._lock:
            self._before.pop(signal.SIGTERM, None)
            self._notice, self._pass_on, self._end = notice, pass_on, end

    def hand_over(self) -> None:
        """From here on the training loop asks the job's notifier between its steps; that one forgets nothing."""
        with self._lock:
            self._in_loop = True

    def close(self) -> None:
        """Gives the signals back to whoever had them; in the main thread. A second call does nothing."""
        global _current
        if _current is self:
            _current = None
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup)
            self._writer.close()

    def _watch(self) -> None:
        while True:
            try:
                if not (numbers := self._reader.recv(64)):
                    return
            except TimeoutError:
                numbers = b""
            for number in numbers:
                self._answer(signal.Signals(number))
            with self._lock:
                if not self._in_loop and (noticed := self._notice()) is not None:
                    self._stop(noticed)

    def _answer(self, number: signal.Signals) -> None:
        with self._lock:
            if number not in STOPS:
                return
            if number == signal.SIGINT and self.interrupted.is_set():
                self._end(exit_codes.INTERRUPTED, "Ctrl-C, twice")
            if number == signal.SIGINT:
                self.interrupted.set()
            if self._in_loop:
                self._pass_on(number)
            else:
                self._stop(number)

    def _stop(self, number: signal.Signals) -> NoReturn:
        reason = f"stopped by {_NAMES[number]} before the first step"
        logger.warning("%s: there is nothing to save; the same command continues", reason)
        self._end(_CODES[number], reason)


def current() -> Listener | None:
    """The one that listens now."""
    return _current


@contextlib.contextmanager
def listening(*numbers: signal.Signals) -> Iterator[Listener | None]:
    """The one that listens already, or a new one until the end of this block; None outside the main thread."""
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield _current
        return
    _current = listener = Listener(numbers)
    try:
        yield listener
    finally:
        listener.close()
