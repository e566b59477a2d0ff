"""The types of the values in the config."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
CellNumber = Annotated[int, Field(ge=0)]


def parse_duration(text: object) -> object:
    """Seconds from ``90``, ``"90s"``, ``"30m"`` or ``"1.5h"``; anything else is left for pydantic to refuse."""
    if not isinstance(text, str):
        return text
    match = re.fullmatch(r"([0-9]+\.?[0-9]*)\s*(s|m|h|)", text.strip())
    if match is None:
        raise ValueError("a duration looks like 90s, 30m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]


class Section(BaseModel):
    """A closed, frozen table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
