"""Traces of a few steps for xprof: at steps that `--profile` names, or when somebody makes the file RUN/PROFILE."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from omnihuman_jax.runtime.incidents import append_line

logger = logging.getLogger(__name__)

FOLDER, ASK = "profile", "PROFILE"
# Steps of a trace that the file asks for, unless it says how many.
_STEPS = 5


def parse_steps(text: str) -> range:
    """`100:105` as steps 100 to 104, `100` as that one, counted from 1 like every line of a run; ValueError if none."""
    match = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", text)
    steps = range(int(match[1]), int(match[2] or int(match[1]) + 1)) if match else range(0)
    if not steps:
        raise ValueError(f"--profile {text!r}: give FIRST:STOP, such as 100:105 for the steps 100 to 104")
    return steps


class Profiler:
    """Of one attempt. Every process traces its own devices at `steps`; what the file asks for, process 0 alone.

    A trace that fails is a warning: the run goes on.
    """

    def __init__(self, run_dir: Path, steps: range | None):
        self._run_dir, self._steps = run_dir, steps or range(0)
        self._until: int | None = None

    def before(self, step: int) -> None:
        """`step` (from 1) is about to be dispatched."""
        if self._until is not None:
            return
        if step in self._steps:
            self._start(step, self._steps.stop)
        elif jax.process_index() == 0 and (asked := self._asked()):
            self._start(step, step + asked)

    def after(self, step: int, result: Any) -> None:
        """`step` is dispatched, and gives `result`: waited for at the end of a trace."""
        if self._until is not None and step + 1 >= self._until:
            with contextlib.suppress(Exception):
                jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that is open."""
        if self._until is None:
            return
        self._until = None
        with self._tolerated("written"):
            jax.profiler.stop_trace()
            logger.info("trace written: %s; docs/tracking.md says how to open it", self._run_dir / FOLDER)

    def _start(self, step: int, until: int) -> None:
        with self._tolerated("begun"):
            jax.profiler.start_trace(str(self._run_dir / FOLDER))
            self._until = until
            if jax.process_index() == 0:
                append_line(self._run_dir / FOLDER / "steps.jsonl", {"first": step, "last": until - 1})

    def _asked(self) -> int:
        """Steps that the file asks for, which is taken away; 0 without one."""
        file = self._run_dir / ASK
        if not file.is_file():
            return 0
        try:
            text = file.read_text(encoding="utf-8", errors="replace").strip()
            file.unlink()
        except OSError:
            return 0
        return min(int(text), 1000) if re.fullmatch(r"[1-9]\d{0,5}", text) else _STEPS

    @contextlib.contextmanager
    def _tolerated(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._steps = range(0)
            logger.warning("a trace could not be %s (%s); the run goes on", what, error)
