"""What the code of modules computes, as one hash: part of the keys of what it found, so that a repair reaches it though
nobody thought of a version.

Comments, names of files, line numbers and docstrings do not count; another Python compiles to other code, which does.
"""

import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

_PLAIN = (int, float, complex, str, bytes, bool, type(None))


def code_digest(modules: tuple[types.ModuleType, ...], follows: Callable[[str], bool]) -> str:
    """sha256 over the functions, methods and plain constants of `modules`, as they are now, and of the modules that
    they take from, by name, where `follows` says so.
    """
    digest = hashlib.sha256()
    seen: dict[str, types.ModuleType] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module.__name__ not in seen:
            seen[module.__name__] = module
            waiting += [sys.modules[name] for name in _sources(module) if name in sys.modules and follows(name)]
    for name in sorted(seen):
        for part in _parts(seen[name]):
            digest.update(part.encode())
    return digest.hexdigest()


def _sources(module: types.ModuleType) -> set[str]:
    """Names of the modules that a module's names come from."""
    values = list(vars(module).values())
    named = {getattr(value, "__module__", None) for value in values if callable(value)}
    return {value.__name__ for value in values if isinstance(value, types.ModuleType)} | {n for n in named if n}


def _parts(module: types.ModuleType) -> Iterator[str]:
    for name, value in sorted(vars(module).items()):
        if name.startswith("__"):
            continue
        if isinstance(value, type):
            if value.__module__ == module.__name__:
                for attribute, member in sorted(vars(value).items()):
                    # Python keeps notes of its own on a class: pickling one leaves __slotnames__.
                    if not attribute.startswith("__") or isinstance(member, types.FunctionType):
                        yield f"{name}.{attribute} {_described(member)}\n"
        else:
            yield f"{name} {_described(value)}\n"


def _described(value: Any) -> str:
    """Code, a constant, or the kind of whatever else it is."""
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if callable(value):
        value = inspect.unwrap(value)
    if isinstance(value, types.FunctionType):
        return f"{_code(value.__code__)} {_constant(value.__defaults__)} {_constant(value.__kwdefaults__)}"
    return _constant(value)


@functools.cache
def _code(code: types.CodeType) -> str:
    # A docstring is the first constant of a function, or of none.
    constants = code.co_consts[1:] if code.co_consts and isinstance(code.co_consts[0], str) else code.co_consts
    body = [code.co_code.hex(), repr(code.co_names), repr(code.co_varnames), *map(_constant, constants)]
    return hashlib.sha256("\n".join(body).encode("utf-8", "surrogatepass")).hexdigest()


def _constant(value: Any) -> str:
    """The same in every process: sets have an order of their own in each."""
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"({','.join(map(_constant, value))})"
    if isinstance(value, (set, frozenset)):
        return f"{{{','.join(sorted(map(_constant, value)))}}}"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_constant(k)}:{_constant(v)}' for k, v in value.items())}}}"
    return type(value).__qualname__
