"""The bar that a person watches."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def progress_bar(start: int, total: int, *, enabled: bool) -> Iterator[Callable[[int, Mapping[str, Any] | None], None]]:
    """Yields `f(finished steps, logged line or None)` that keeps a bar with loss and time left up to date."""
    if not enabled:
        yield lambda done, line: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False), refresh_per_second=1
    ) as bar:
        task = bar.add_task("train", total=total, completed=start, text="compiling")

        def show(done: int, line: Mapping[str, Any] | None) -> None:
            bar.update(task, completed=done)
            if line is not None:
                # The first line after a start has no speed: its step was the compilation.
                speed = f" {line['step_time_s']:.2f} s/step" if "step_time_s" in line else ""
                bar.update(task, text=f"{line['stage']} loss {line['loss']:.4f}{speed}")

        yield show
