"""Search spaces by name.

A space is found, in this order, as

* ``path/to/file.py:Name`` - a class in a file of the user's own,
* the name of a module in this package (one file a space: add a file and its name works),
* the name of an entry point in the group ``nas.search_spaces`` of an installed package.

Nothing is imported before it is asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from nas.errors import SpaceError, first_error
from nas.space import SearchSpace

ENTRY_POINTS = "nas.search_spaces"


def load(name: str, settings: dict[str, Any] | None = None, source: str | None = None) -> SearchSpace:
    """The space called `name` with `settings` (the other keys of ``[space]``).

    `source` is the text of the file in ``file.py:Name``; workers on other machines pass it, because the file may
    not be there. Raises SpaceError when there is no such space or a setting is not valid.
    """
    space = _find(name, source)
    try:
        return space(space.settings_type(**(settings or {})))
    except ValidationError as error:
        valid = ", ".join(space.settings_type.model_fields) or "none"
        raise SpaceError(f"[space] {first_error(error)} (settings of {name!r}: {valid})") from None


def read_source(name: str) -> str | None:
    """The text of the file in ``file.py:Name``; None for a space found by name alone."""
    file, colon, _ = name.rpartition(":")
    if not colon:
        return None
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise SpaceError(f"cannot read search space file {file!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpaceError(f"search space file {file!r} is not UTF-8 text") from None


def available() -> dict[str, str]:
    """Every space that is found by name, with the first line of its description."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg]
    found = {}
    for name in names:
        space = _defined_in(importlib.import_module(f"{__name__}.{name}"))
        if space is not None:
            found[name] = _first_line(space)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        found.setdefault(point.name, _first_line(point.load()))
    return found


def _find(name: str, source: str | None) -> type[SearchSpace]:
    if ":" in name:
        return _from_file(name, source)
    if name.isidentifier() and importlib.util.find_spec(f"{__name__}.{name}"):
        space = _defined_in(importlib.import_module(f"{__name__}.{name}"))
        if space is not None:
            return space
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
        return _checked(point.load(), name)
    raise SpaceError(f"no search space {name!r}; there are: {', '.join(available())}, or file.py:Name")


def _from_file(name: str, source: str | None) -> type[SearchSpace]:
    file, _, attribute = name.rpartition(":")
    text = source if source is not None else read_source(name)
    assert text is not None
    module_name = f"search_space_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if module_name not in sys.modules:
        module = ModuleType(module_name)
        module.__file__ = file
        sys.modules[module_name] = module  # pydantic looks annotations up here
        try:
            exec(compile(text, file, "exec"), module.__dict__)
        except Exception as error:
            del sys.modules[module_name]
            reason = " ".join(str(error).split())
            raise SpaceError(f"search space file {file!r} failed: {type(error).__name__}: {reason}") from error
    if not hasattr(sys.modules[module_name], attribute):
        raise SpaceError(f"search space file {file!r} has no {attribute!r}")
    return _checked(getattr(sys.modules[module_name], attribute), name)


def _checked(found: object, name: str) -> type[SearchSpace]:
    if not (inspect.isclass(found) and issubclass(found, SearchSpace)) or inspect.isabstract(found):
        raise SpaceError(f"{name!r} is not a subclass of nas.space.SearchSpace with suggest() and build()")
    return found


def _defined_in(module: ModuleType) -> type[SearchSpace] | None:
    for _, value in inspect.getmembers(module, inspect.isclass):
        own = value.__module__ == module.__name__
        if own and issubclass(value, SearchSpace) and not inspect.isabstract(value):
            return value
    return None


def _first_line(space: type[SearchSpace]) -> str:
    return (inspect.getdoc(space) or "").partition("\n")[0]
