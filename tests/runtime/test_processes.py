"""How long processes wait for one another."""

import json
import queue
import threading
import time
import types
from typing import Any

import jax
import pytest

from omnihuman_jax.runtime import processes
from omnihuman_jax.runtime.watchdog import WatchdogConfig


class Service:
    """The coordination service of two processes, as far as a gather needs it; the other one has answered 5."""

    def __init__(self) -> None:
        self.stored: dict[str, str] = {}
        self.limits_s: list[float] = []

    def key_value_set(self, key: str, value: str) -> None:
        self.stored |= {key: value, f"{key[:-1]}1": "5"}

    def wait_at_barrier(self, name: str, timeout_ms: int) -> None:
        self.limits_s.append(timeout_ms / 1000)

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, Any]]:
        return [(key, value) for key, value in self.stored.items() if key.startswith(prefix)]

    def key_value_delete(self, key: str) -> None:
        """Of the one before."""


def test_nobody_is_given_up_before_his_own_watchdog_would(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setattr(processes, "_client", lambda: service)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "_barrier_timeout_s", processes._barrier_timeout_s)
    config = WatchdogConfig(restore_s=7200.0)
    assert processes.gather(3) == [3, 5]
    processes.set_barrier_timeout(config.longest_s)
    assert processes.gather(4) == [4, 5]
    processes.wait_for_peers("compiled")
    assert (
        service.limits_s[1]
        == service.limits_s[2]
        > config.restore_s
        > service.limits_s[0]
        >= WatchdogConfig().restore_s
    )
    assert WatchdogConfig(save_s=0).longest_s > 7 * 86400  # no limit


def test_process_0_stays_until_the_others_have_read_why_one_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its service ends with it: who has not read by then is ended by JAX, with 134 in place of the one's own code."""
    service, left = Service(), queue.SimpleQueue()
    service.stored = {f"{processes._LEFT}2": json.dumps([130, "Ctrl-C"])}

    def exit_now(code: int) -> None:
        left.put((code, time.monotonic()))
        threading.Event().wait()  # as a thread that is gone

    monkeypatch.setattr(processes, "_client", lambda: service)
    monkeypatch.setattr(processes.signals, "exit_now", exit_now)
    monkeypatch.setattr(processes, "LINGER_S", 0.5)
    for index in (1, 0):
        state = types.SimpleNamespace(process_id=index, num_processes=3)
        monkeypatch.setattr(processes.distributed, "global_state", state)
        begin = time.monotonic()
        processes.follow(0.01)
        code, end = left.get(timeout=30)
        assert code == 130 and (end - begin >= 0.5) == (index == 0)
