"""Reads and checks a config from a file, the name of a system, and assignments."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nas.config.sections import Config
from nas.errors import ConfigError, first_error


def make(table: Mapping[str, Any]) -> Config:
    """A checked Config of nested plain values; raises ConfigError in one line."""
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{first_error(error)}{_valid_keys(error)}") from None


def read(path: Path | None, assignments: Iterable[str] = (), **sections: Any) -> Config:
    """The config of a file (None: defaults), then ``section.key=value`` assignments, then whole sections.

    The name of a packaged system stands for its file, unless there is a file (not a folder) of that name; its
    experiments are called after it. Values in assignments are TOML; what is not TOML is taken as a string, so that
    ``data.name=digits`` works.
    """
    table: dict[str, Any] = {}
    system = path.name if path is not None and (not path.exists() or path.is_dir()) else None
    if path is not None:
        path = path if system is None else _system(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read config {str(path)!r}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"config {str(path)!r} is not TOML: {error}") from None
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set takes section.key=value, got {assignment!r}")
        assign(table, key.strip(), _toml_value(text.strip()))
    for key, value in sections.items():
        if value is not None:
            assign(table, key.replace("__", "."), value)
    config = make(table)
    if system is not None and config.name is None:
        return config.model_copy(update={"name": config.named_after(system)})
    return config


def _system(name: Path) -> Path:
    from search_spaces import systems

    file = systems.find(str(name))
    if file is None:
        raise ConfigError(f"no config file {str(name)!r}, nor a system of that name: {', '.join(systems.available())}")
    return file


def resume(path: Path | None, assignments: Sequence[str] = (), **sections: Any) -> Config:
    """As `read`; but without a file, an experiment of that name that has begun goes on with its own config.

    Where only a number of trials or only a time is given now, the other limit of earlier runs is forgotten.
    """
    config = read(path, assignments, **sections)
    own = config.folder / "config.toml"
    if path is not None or not own.is_file():
        return config
    config = read(own, assignments, **sections)
    given = {key for key, value in sections.items() if value is not None}
    given |= {one.partition("=")[0].strip() for one in assignments}
    forgotten = [key for key in ("trials", "time") if f"search.{key}" not in given]
    if len(forgotten) == 1:
        return config.model_copy(update={"search": config.search.model_copy(update={forgotten[0]: None})})
    return config


def assign(table: dict[str, Any], dotted: str, value: Any) -> None:
    """Put `value` at ``a.b.c`` of nested tables."""
    *parents, last = dotted.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{dotted!r}: {parent!r} is not a section")
    table[last] = value


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _valid_keys(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] != "extra_forbidden":
        return ""
    section: Any = Config
    for part in first["loc"][:-1]:
        section = section.model_fields[str(part)].annotation
    return f" (valid: {', '.join(section.model_fields)})"
