"""Writes the resolved config as a file, with an explanation of every key."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel

from nas.config.sections import Config, SpaceConfig


def explained(config: Config, space_settings: BaseModel | None = None) -> str:
    """The resolved config as TOML, every key with its explanation; unset keys are commented out.

    With the settings of a loaded space, all of its keys stand in ``[space]`` too.
    """
    scalars = [_line(config, key) for key in Config.model_fields if not isinstance(getattr(config, key), BaseModel)]
    sections = [
        "\n".join([f"[{key}]  # {(section.__doc__ or '').partition(chr(10))[0]}", *_lines(section, space_settings)])
        for key in Config.model_fields
        if isinstance(section := getattr(config, key), BaseModel)
    ]
    return "\n\n".join(["\n".join(scalars), *sections]) + "\n"


def _lines(section: BaseModel, space_settings: BaseModel | None) -> list[str]:
    lines = [_line(section, key) for key in type(section).model_fields]
    if isinstance(section, SpaceConfig) and space_settings is not None:
        return lines + [_line(space_settings, key) for key in type(space_settings).model_fields]
    settings = section.model_dump(mode="json", include=set(section.model_extra or {}))
    return lines + [f"{_toml_key(key)} = {_toml(value)}" for key, value in settings.items() if value is not None]


def _line(section: BaseModel, key: str) -> str:
    value = section.model_dump(mode="json")[key]
    text = f"# {key} =" if value is None else f"{key} = {_toml(value)}"
    explanation = type(section).model_fields[key].description
    return f"{text:<32}  # {explanation}" if explanation else text


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    if isinstance(value, str):  # TOML has no surrogate pairs, and no bare DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float):
        return repr(value)  # TOML, unlike JSON, has inf and nan
    return json.dumps(value)  # integers and booleans are written alike in TOML and JSON


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)
