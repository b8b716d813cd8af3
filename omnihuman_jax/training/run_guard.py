"""What stands between a training run and the things that end it: where it watches, what it notes, and how it leaves."""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from omnihuman_jax.data.joined_records import Records
from omnihuman_jax.data.plan import Plan
from omnihuman_jax.runtime import exit_codes, processes, storage
from omnihuman_jax.runtime.incidents import Incidents, append_line, read_lines
from omnihuman_jax.runtime.processes import RunEnded, StopRequest
from omnihuman_jax.runtime.watchdog import Watchdog
from omnihuman_jax.training.numerics import NumericsConfig, Verdict

logger = logging.getLogger(__name__)

NONFINITE, SPIKES, QUARANTINE, ROLLBACKS = "nonfinite.jsonl", "spikes.jsonl", "quarantine.jsonl", "rollbacks.jsonl"

SEEN = ("loss", "grad_norm", "verdict", "skipped_in_a_row")
"""What is looked at of every step's metrics."""


class Rollbacks:
    """What was asked for and done about steps that went wrong in a row; survives restarts in `rollbacks.jsonl`.

    A rollback goes to a checkpoint before the first of them and jumps to the step after the last: the steps between are
    not trained, so that the same numbers do not come again. Nothing else of the data plan moves.
    """

    def __init__(self, run_dir: Path):
        self._path = run_dir / ROLLBACKS

    def _lines(self) -> list[dict[str, Any]]:
        return list(read_lines(self._path))

    def done(self) -> list[dict[str, Any]]:
        """Those that were carried out, in order: first and to (steps from 0), checkpoint (0, or a fork's step: what the
        run began with).
        """
        return [line for line in self._lines() if "checkpoint" in line]

    def pending(self) -> dict[str, Any] | None:
        """The one that the last attempt asked for, the same on all processes."""
        return processes.gather(self._lines()[-1] if self.is_pending() else None)[0]

    def is_pending(self) -> bool:
        """Whether there is one, as this process sees it."""
        lines = self._lines()
        return bool(lines) and "checkpoint" not in lines[-1]

    def request(self, first: int, to: int) -> None:
        """Steps [first, to) went wrong."""
        if jax.process_index() == 0:
            append_line(self._path, {"first": first, "to": to})

    def carried_out(self, asked: Mapping[str, Any], checkpoint: int) -> None:
        """`asked` went back to `checkpoint`."""
        if jax.process_index() == 0:
            append_line(self._path, {**asked, "checkpoint": checkpoint})
        processes.gather(None)

    def begun_anew_at(self, first: int = 0) -> int:
        """The step where the run went on from its beginning, step `first`, for the last time; that, if it never did."""
        return max((int(line["to"]) for line in self.done() if line["checkpoint"] == first), default=first)

    def jump_from(self, checkpoint: int) -> int | None:
        """Where a run that starts from this checkpoint goes on, None: where it is."""
        to = [line["to"] for line in self.done() if line["checkpoint"] == checkpoint]
        return processes.gather(to[-1] if to else None)[0]


class RunGuard:
    """Of one attempt at a run: the watchdog, the incidents, the verdicts on its steps, the records that could not be
    read.

    Args:
        watchdog, numbers: of this process; the limits.
        run_dir: of the run; gets incidents.jsonl, nonfinite.jsonl, spikes.jsonl, rollbacks.jsonl, quarantine.jsonl and
            stacks-<process>.txt, each when there is something to say.
        plan: names what a step trains on.
        records: knows which of its records could not be read so far, and why.
    """

    def __init__(self, watchdog: Watchdog, numbers: NumericsConfig, run_dir: Path, plan: Plan, records: Records):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir, self._numbers, self._plan, self._records = run_dir, numbers, plan, records
        self.incidents = Incidents(run_dir)
        self.rollbacks = Rollbacks(run_dir)
        self.watchdog = watchdog
        self._in_flight: tuple[int, dict[str, Any]] | None = None
        self._quarantined = {line["record"] for line in read_lines(run_dir / QUARANTINE)}

    def note(self, kind: str, details: Mapping[str, Any]) -> None:
        """What the checkpoints have to say."""
        self.incidents.note(kind, details)

    def dispatched(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The devices have `step` (from 0), which will give these metrics; the step before it is observed.

        One step in flight: the host prepares the next while the devices work, and never runs further ahead.
        """
        before, self._in_flight = self._in_flight, (step, {name: metrics[name] for name in SEEN})
        if before is not None:
            self.observe(*before)

    def drain(self) -> None:
        """Observes the step in flight: there is no next one."""
        before, self._in_flight = self._in_flight, None
        if before is not None:
            self.observe(*before)

    def observe(self, step: int, seen: Mapping[str, Any]) -> None:
        """The step (counted from 0) is finished: feeds the watchdog, writes down what was wrong, RunEnded if too much
        was.

        Args:
            step: which; all processes see the same values.
            seen: those of its metrics that `SEEN` names; waited for here.
        """
        seen = jax.device_get(dict(seen))
        self.watchdog.beat()
        self._quarantine()
        verdict = seen["verdict"]
        if verdict.is_wrong:
            self._report(step, float(seen["loss"]), float(seen["grad_norm"]), verdict)
        in_a_row = int(seen["skipped_in_a_row"])
        if in_a_row >= self._numbers.max_skipped:
            self._roll_back(step - in_a_row + 1, step + 1)

    def compare(self, step: int, differing: int) -> None:
        """A step was computed twice: RunEnded if any process saw a difference."""
        if worst := max(processes.gather(differing)):
            self.incidents.note("corrupt_computation", {"step": step + 1, "arrays": worst})
            raise RunEnded(
                f"step {step + 1}, computed twice, differs in {worst} arrays: a device computes wrong; nothing of it is"
                " kept",
                exit_codes.RETRY,
            )

    def _report(self, step: int, loss: float, norm: float, verdict: Verdict) -> None:
        wrong = [name for name, value in (("loss", loss), ("gradient", norm)) if not math.isfinite(value)]
        what = "a spike" if verdict.finite else f"{' and '.join(wrong)} not finite"
        logger.warning(
            "step %d: %s (loss %g, gradient norm %g); the update is %s; `omnihuman replay --run %s %d` looks at it",
            step + 1, what, loss, norm, "applied" if verdict.applied else "skipped", self.run_dir, step + 1,
        )  # fmt: skip
        line = {
            "step": step + 1,
            "stage": self._plan.schedule.stage_at(step)[1].name,
            "loss": repr(loss),
            "grad_norm": repr(norm),
            "not_finite": wrong,
        }
        self.incidents.note("spike" if verdict.finite else "update_skipped", line | {"applied": bool(verdict.applied)})
        if jax.process_index() == 0:
            append_line(
                self.run_dir / (SPIKES if verdict.finite else NONFINITE), line | {"windows": self._windows(step)}
            )

    def _roll_back(self, first: int, to: int) -> None:
        reason = f"{to - first} steps in a row, {first + 1} to {to}, had a loss or gradient that is not finite"
        if (before := len(self.rollbacks.done())) >= self._numbers.max_rollbacks:
            raise RunEnded(
                f"{reason}, after {before} rollbacks; look at {self.run_dir / NONFINITE}, lower"
                " optimizer.learning_rate, or allow more with numerics.max_rollbacks",
                exit_codes.USER_ERROR,
            )
        self.rollbacks.request(first, to)
        self.incidents.note("rollback_asked", {"first": first + 1, "last": to})
        raise RunEnded(
            f"{reason}; the next start goes back to a checkpoint before them and on from step {to}", exit_codes.RETRY
        )

    def _windows(self, step: int) -> list[dict[str, Any]]:
        ids = self._plan.catalog.window_id
        return [{"window": str(ids[placed.row]), "slot": placed.slot} for placed in self._plan.batch(step).windows]

    def _quarantine(self) -> None:
        """A line for each record that this process could not read, and no process of an earlier attempt."""
        catalog, unreadable = self._plan.catalog, dict(self._records.unreadable)
        for record in [record for record in unreadable if record not in self._quarantined]:
            self._quarantined.add(record)
            window = str(catalog.window_id[catalog.row_of(record)])
            reason, process = unreadable[record], jax.process_index()
            append_line(
                self.run_dir / QUARANTINE, {"record": record, "window": window, "reason": reason, "process": process}
            )

    def finish(self, done: int, total: int, *, unsaved: str, stop: StopRequest | None) -> None:
        """After the last save: RunEnded if the run was asked to stop, or could not be saved (`unsaved` says why)."""
        if unreadable := self._records.unreadable:
            where = self.run_dir / QUARANTINE
            logger.warning("%d unreadable records were masked; %s names them", len(unreadable), where)
        if stop is not None:
            who = "by hand" if stop.by_hand else "by a signal"
            self.incidents.note("stopped", {"step": done, "by_hand": stop.by_hand, "saved": not unsaved})
            lost = f"; it could NOT be saved ({unsaved}): the next start goes back to the checkpoint before"
            raise RunEnded(
                f"stopped {who} at step {done} of {total}; the same command continues{lost if unsaved else ''}",
                exit_codes.INTERRUPTED if stop.by_hand else exit_codes.RESTART,
            )
        if unsaved:
            cure = "make room" if storage.has_no_room(unsaved) else "mend that"
            raise RunEnded(
                f"step {done} of {total} could not be saved ({unsaved}); {cure} and start again", exit_codes.RETRY
            )


@contextlib.contextmanager
def exit_with_code(command: str) -> Iterator[None]:
    """Around everything that a process of a job does: whatever ends it, it exits with the code that says so, at once.

    An exception that unwinds to the end of the interpreter would wait there for the other processes, and lose its code.
    """
    processes.follow()
    try:
        yield
    except RunEnded as ended:
        logger.warning("%s", ended)
        if ended.alone:
            processes.abandon(ended.exit_code, str(ended))
        processes.leave(ended.exit_code)
    except BaseException as error:
        code = exit_codes.of_error(error)
        reason = " ".join(str(error).split()) or type(error).__name__
        if code == exit_codes.USER_ERROR:
            if processes.own_count() == 1:  # JAX may have no device to ask
                jax.distributed.shutdown()
                raise  # nobody waits; the command line prints its one line
            logger.error("%s: %s", command, reason)
        else:
            logger.error("%s: %s", type(error).__name__, reason, exc_info=error)
        processes.abandon(code, f"{type(error).__name__}: {reason[:300]}")
    else:
        processes.leave(exit_codes.OK)
