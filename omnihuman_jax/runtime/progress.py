"""The bar that a person watches. One maker, so that all commands show the same: how much of how much, a word on what is
being done, the time so far and the time left. Where no person watches, a line a minute says the same.
"""

import datetime
import threading
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task

Unit = Literal["items", "bytes", "share"]

LINE_EVERY_S = 60.0


def progress_bar(
    unit: Unit = "items",
    *,
    enabled: bool = True,
    stays: bool = False,
    lines: bool = True,
    console: "Console | None" = None,
) -> "Progress":
    """rich's bar, for a `with`. `add_task(description, total=...)` begins a row, `update(row, completed=..., text=...)`
    moves it (`text` is the word on what is being done), and `track(things, description=...)` counts what it passes on.

    Args:
        unit: what is counted: items, bytes, or a share, shown in per cent.
        enabled: False shows nothing.
        stays: the finished bar stays on the screen.
        lines: where the console is no terminal, a line for each row every `LINE_EVERY_S`; False: nothing there.
        console: to draw on; stderr by default, so that what a command prints can be piped.
    """
    from rich import progress
    from rich.console import Console
    from rich.text import Text

    class Doing(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            return Text(task.fields.get("text", ""))

    count: dict[Unit, progress.ProgressColumn] = {
        "items": progress.MofNCompleteColumn(),
        "bytes": progress.DownloadColumn(),
        "share": progress.TaskProgressColumn(),
    }

    class Bar(progress.Progress):
        """Draws on a terminal, and writes lines elsewhere."""

        def start(self) -> None:
            super().start()
            if self.disable and enabled and lines:
                self._ended = threading.Event()
                self._writer = threading.Thread(target=self._write, daemon=True)
                self._writer.start()

        def stop(self) -> None:
            if hasattr(self, "_writer"):
                self._ended.set()
                self._writer.join()
            super().stop()

        def _write(self) -> None:
            while not self._ended.wait(LINE_EVERY_S):
                for task in self.tasks:
                    if not task.finished:
                        self.console.print(line_of(task, unit), soft_wrap=True, markup=False, highlight=False)

    console = console or Console(stderr=True)
    return Bar(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        count[unit],
        Doing(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        transient=not stays,
        refresh_per_second=2,
        disable=not enabled or not console.is_terminal,
    )


def line_of(task: "Task", unit: Unit) -> str:
    """A row in words: what, how much of how much, the word on what is being done, the time so far and the time left."""
    done, total, elapsed = task.completed, task.total, task.elapsed or 0.0
    counts: dict[Unit, tuple[str, str, str]] = {
        "items": (f"{done:,.0f}", f"{total or 0:,.0f}", ""),
        "bytes": (f"{done / 1e9:,.2f}", f"{(total or 0) / 1e9:,.2f}", " GB"),
        "share": (f"{task.percentage:.0f}", "", " %"),
    }
    count, of, of_what = counts[unit]
    words = [f"{task.description}: {count}{f' of {of}' if total and of else ''}{of_what}", task.fields.get("text", "")]
    words.append(f"{_clock(elapsed)} so far")
    # Out of all that was done: rich's own estimate forgets what is half a minute old, and steps may take longer.
    words.append(f"left {_clock(elapsed * (total - done) / done)}" if total and done else "")
    return ", ".join(word for word in words if word)


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
