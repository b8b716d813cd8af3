"""A price file: what a user pays, on a date that stands in it. No price is ours.

as_of: 2026-01-31
accelerators:
  v5p: {chip_hour: 4.00, most_chips: 512}
storage_gb_month: 0.03
restarts: {per_chip_month: 0.02, seconds: 900}

docs/cost.md says what each field means. No JAX.
"""

import dataclasses
import datetime
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from omnihuman_jax.scale.hardware import ACCELERATORS

_FIELDS = ("as_of", "currency", "source", "accelerators", "storage_gb_month", "restarts")
_OF_CHIPS = ("chip_hour", "least_chips", "most_chips")
_OF_RESTARTS = ("per_chip_month", "seconds")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ChipPrice:
    """What an hour of one chip costs, and how many there are to be had."""

    chip_hour: float
    least_chips: int = 1
    most_chips: int = 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """A price file.

    restarts_per_chip_month: how often a chip's failure, maintenance or preemption ends the job; 0: not said
    restart_s: seconds from such an end to the first new step, without the steps that are made again
    """

    as_of: datetime.date
    chips: Mapping[str, ChipPrice]
    currency: str = "USD"
    source: str = ""
    storage_gb_month: float = 0.0
    restarts_per_chip_month: float = 0.0
    restart_s: float = 0.0


def read_prices(path: Path) -> Prices:
    """The prices of a file.

    Raises:
        FileNotFoundError, ValueError: one line with the field, its value and what is allowed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; docs/cost.md has an example of a price file")
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    try:
        return _prices(stored)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _prices(stored: Any) -> Prices:
    values = _known(stored, _FIELDS, "the file")
    date = values.get("as_of")
    if not isinstance(date, datetime.date) or isinstance(date, datetime.datetime):
        raise ValueError(f"as_of is {date!r}: say on which day these prices held, such as 2026-01-31")
    named = _known(values.get("accelerators") or {}, tuple(ACCELERATORS), "accelerators")
    if not named:
        raise ValueError("accelerators names none; give chip_hour of each that you may use")
    restarts = _known(values.get("restarts") or {}, _OF_RESTARTS, "restarts")
    return Prices(
        as_of=date,
        chips={name: _chip(name, fields) for name, fields in named.items()},
        currency=str(values.get("currency", "USD")),
        source=str(values.get("source", "")),
        storage_gb_month=_amount(values.get("storage_gb_month", 0.0), "storage_gb_month"),
        restarts_per_chip_month=_amount(restarts.get("per_chip_month", 0.0), "restarts.per_chip_month"),
        restart_s=_amount(restarts.get("seconds", 0.0), "restarts.seconds"),
    )


def _chip(name: str, fields: Any) -> ChipPrice:
    where = f"accelerators.{name}"
    values = _known(fields, _OF_CHIPS, where)
    if "chip_hour" not in values:
        raise ValueError(f"{where} has no chip_hour: what one chip costs an hour")
    price = ChipPrice(
        chip_hour=_amount(values["chip_hour"], f"{where}.chip_hour"),
        least_chips=_count(values.get("least_chips", 1), f"{where}.least_chips"),
        most_chips=_count(values.get("most_chips", 1024), f"{where}.most_chips"),
    )
    if price.least_chips > price.most_chips:
        raise ValueError(f"{where}: least_chips {price.least_chips} is above most_chips {price.most_chips}")
    return price


def _known(value: Any, names: tuple[str, ...], where: str) -> Mapping[str, Any]:
    """`value` as a mapping with these names only."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}, not fields with values: {', '.join(names)}")
    for name in value:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{where} has {name!r}, which is unknown: it is one of {', '.join(names)}{hint}")
    return value


def _amount(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{where} is {value!r}; it must be a finite number, 0 or more")
    return float(value)


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where} is {value!r}; it must be a whole number, 1 or more")
    return value
