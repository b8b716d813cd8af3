"""What the environment gives as text, checked: an error names the variable, its value, and what is allowed.

No JAX: launchers read their variables here too.
"""

import os
from collections.abc import Mapping
from pathlib import Path


def number(name: str, default: float, unit: str) -> float:
    """A number of `unit` above 0; the default where the variable is empty or missing; ValueError for anything else."""
    given = os.environ.get(name)
    if not given:
        return default
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {given!r}; it must be a number of {unit} above 0")
    return value


def whole(name: str, default: int, environment: Mapping[str, str] = os.environ) -> int:
    """A whole number from 0 on; the default where the variable is empty or missing; ValueError for anything else."""
    given = environment.get(name)
    if not given:
        return default
    if not (given.isascii() and given.isdigit()):
        raise ValueError(f"{name} is {given!r}; it must be a whole number from 0 on")
    return int(given)


def folder(name: str, default: str | Path) -> Path:
    """A folder that is there or can be made; ValueError where something else is."""
    path = Path(os.environ.get(name) or default).expanduser()
    for place in (path, *path.parents):
        if place.is_dir():
            return path
        if place.exists():
            raise ValueError(f"{name} is '{path}', and {place} is no folder; name one that is there or can be made")
    return path
