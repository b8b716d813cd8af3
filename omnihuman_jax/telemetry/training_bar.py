"""The bar of a training run."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omnihuman_jax.runtime import progress


@contextlib.contextmanager
def progress_bar(start: int, total: int, *, enabled: bool) -> Iterator[Callable[[int, Mapping[str, Any] | None], None]]:
    """Yields `f(finished steps, logged line or None)` that keeps a bar with loss and time left up to date; where there
    is no terminal, the run's own lines are enough.
    """
    with progress.progress_bar(enabled=enabled, stays=True, lines=False) as bar:
        task = bar.add_task("train", total=total, completed=start, text="compiling")

        def show(done: int, line: Mapping[str, Any] | None) -> None:
            bar.update(task, completed=done)
            if line is not None:
                # The first line after a start has no speed: its step was the compilation.
                speed = f" {line['step_time_s']:.2f} s/step" if "step_time_s" in line else ""
                bar.update(task, text=f"{line['stage']} loss {line['loss']:.4f}{speed}")

        yield show
