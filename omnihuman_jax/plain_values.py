"""Dataclasses out of plain values, as JSON and YAML have them: read by cattrs, strictly, with errors by field.

Strictly: no field is unknown or left out without a default, and nothing is converted but a whole number where a number
is wanted, and a list where a tuple is.
"""

import dataclasses
import difflib
import enum
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import cattrs
from cattrs.gen import make_dict_structure_fn

T = TypeVar("T")

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "nothing"}


class UnknownFieldsError(ValueError):
    """Fields that a dataclass does not have.

    names: the unknown ones
    known: those that there are
    path: of the dataclass, such as `accelerator` or `volumes[0]`; "" is the whole
    """

    def __init__(self, names: list[str], known: list[str], path: str):
        self.names, self.known, self.path = names, known, path
        near = difflib.get_close_matches(names[0], known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        super().__init__(f"{_join(path, names[0])}: no such field; {hint}")


def to_json(config: Any) -> Any:
    """Configs, and what they are made of, as JSON values: dataclasses by field, tuples as lists."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, enum.Enum):
        return config.name
    if isinstance(config, Mapping):
        return {str(key): to_json(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_json(value) for value in config]
    return config


def structure(kind: type[T], value: Any, root: str = "", *, whole: str = "the whole") -> T:
    """An instance of the dataclass `kind` from plain values.

    Args:
        kind: a dataclass of text, numbers, booleans, enums (by name), tuples, mappings, dataclasses; each may be None.
        value: what JSON or YAML gave.
        root: what the paths of errors begin with; "": with the first field.
        whole: what `value` is called in an error about all of it, where there is no `root`.

    Raises:
        UnknownFieldsError: a field that `kind` does not have.
        ValueError: a field that is missing, or a value of the wrong type; one line that begins with the field's path.
    """
    try:
        return _CONVERTER.structure(value, kind)
    except (cattrs.BaseValidationError, ValueError) as error:
        raise _first_problem(error, root, whole) from None


def check_finite(value: Any, path: str = "") -> None:
    """ValueError with the path of the first number that is NaN or infinite, in a dataclass, mapping or list."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path or 'the value'} must be a finite number, not {value}")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            check_finite(getattr(value, field.name), _join(path, field.name))
    elif isinstance(value, Mapping):
        for name, item in value.items():
            check_finite(item, _join(path, str(name)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_finite(item, f"{path}[{index}]")


def _first_problem(error: Exception, path: str, whole: str) -> ValueError:
    """The one that is told: of a dataclass an unknown field first, then a missing one, then wrong values in order."""
    if isinstance(error, cattrs.ClassValidationError):
        of_fields, others = error.group_exceptions()
        for other in others:
            if isinstance(other, cattrs.ForbiddenExtraKeysError):
                known = [field.name for field in dataclasses.fields(other.cl) if field.init]
                return UnknownFieldsError(sorted(map(str, other.extra_fields)), known, path)
        for inner, note in of_fields:
            if isinstance(inner, KeyError):
                return ValueError(f"{_join(path, note.name)} is missing")
        inner, field = of_fields[0]
        return _first_problem(inner, _join(path, field.name), whole)
    if isinstance(error, cattrs.IterableValidationError):
        inner, place = error.group_exceptions()[0][0]
        index = place.index
        return _first_problem(inner, f"{path}[{index}]" if isinstance(index, int) else _join(path, index), whole)
    return ValueError(f"{path or whole}: {error}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _dataclass_hook(kind: Any, converter: cattrs.Converter) -> Any:
    build = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)

    def read(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(f"expects a mapping, not {value!r}")
        return build(value, kind)

    return read


def _mapping_hook(kind: Any, converter: cattrs.Converter) -> Any:
    build = converter.gen_structure_mapping(kind)

    def read(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"expects a mapping with text as keys, not {value!r}")
        return build(value, kind)

    return read


def _tuple_hook(kind: Any, converter: cattrs.Converter) -> Any:
    members = typing.get_args(kind)
    size = None if members[-1] is Ellipsis else len(members)
    as_list = list[members[0]]  # type: ignore[valid-type]
    assert all(member is members[0] or member is Ellipsis for member in members), kind

    def read(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError(f"expects a list, not {value!r}")
        if size is not None and len(value) != size:
            raise ValueError(f"expects {size} values, not {len(value)}: {value!r}")
        return tuple(converter.structure(value, as_list))

    return read


def _enum_hook(kind: Any) -> Any:
    def read(value: Any, _: Any) -> Any:
        if value not in kind.__members__:
            raise ValueError(f"{value!r} is unknown; it is one of {', '.join(kind.__members__)}")
        return kind[value]

    return read


def _scalar_hook(kind: Any) -> Any:
    """Text, numbers and booleans as they are: a bool is an int to Python, not to a reader of the file."""
    members = typing.get_args(kind) or (kind,)

    def read(value: Any, _: Any) -> Any:
        if type(value) in members:
            return value
        if members == (float,) and type(value) is int:
            return float(value)
        if float in members and type(value) is int:
            return value
        quote = " (quote it)" if members == (str,) and isinstance(value, int | float) else ""
        raise ValueError(f"expects {' or '.join(_WORDS[member] for member in members)}, not {value!r}{quote}")

    return read


def _is_scalar_union(kind: Any) -> bool:
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return False
    return all(member in _WORDS for member in typing.get_args(kind))


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=True)
    converter.register_structure_hook_factory(dataclasses.is_dataclass, _dataclass_hook)
    converter.register_structure_hook_factory(lambda kind: typing.get_origin(kind) is Mapping, _mapping_hook)
    converter.register_structure_hook_factory(lambda kind: typing.get_origin(kind) is tuple, _tuple_hook)
    converter.register_structure_hook_factory(
        lambda kind: isinstance(kind, type) and issubclass(kind, enum.Enum), _enum_hook
    )
    converter.register_structure_hook_factory(_is_scalar_union, _scalar_hook)
    for kind in (str, int, float, bool):
        # By type: it comes before cattrs' own hooks of these, which convert.
        converter.register_structure_hook(kind, _scalar_hook(kind))
    return converter


_CONVERTER = _converter()
