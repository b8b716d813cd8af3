"""The bar that a person watches. One maker, so that all commands show the same: how much of how much, a word on what is
being done, the time so far and the time left. Where no person watches, nothing is drawn.
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Unit = Literal["items", "bytes", "share"]


def progress_bar(
    unit: Unit = "items", *, enabled: bool = True, stays: bool = False, console: "Console | None" = None
) -> "Progress":
    """rich's bar, for a `with`. `add_task(description, total=...)` begins a row, `update(row, completed=..., text=...)`
    moves it (`text` is the word on what is being done), and `track(things, description=...)` counts what it passes on.

    Args:
        unit: what is counted: items, bytes, or a share, shown in per cent.
        enabled: False draws nothing, as does a console that is no terminal.
        stays: the finished bar stays on the screen.
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
    console = console or Console(stderr=True)
    return progress.Progress(
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
