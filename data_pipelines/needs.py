"""What a task needs of the machine that it runs on: stages say it, and an engine that schedules asks for it."""

from typing import NamedTuple


class Needs(NamedTuple):
    """cores, gpus: shares of one count (0.25: four tasks to one); memory_mib: the most that it holds, in MiB."""

    cores: float = 1.0
    gpus: float = 0.0
    memory_mib: int = 0
