"""The section ``[towers]``."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from nas.config.values import CellNumber, Fraction, Positive, Section

TowerLabels = Literal["own", "coarse"] | tuple[tuple[str, str], ...]
Weight = Annotated[float, Field(ge=0)]
PLACEMENTS = "auto, middle, thirds, two-thirds, stages, every:k, none, or cell numbers from 0"


class TowersConfig(Section):
    """Auxiliary towers. They are used in training only.

    results/reference/auxiliary shows measurements of these defaults and of the alternatives.
    """

    placement: (
        Annotated[str, Field(pattern=r"^(auto|middle|thirds|two-thirds|stages|every:[1-9]\d*|none)$")]
        | tuple[CellNumber, ...]
    ) = Field("auto", description=f"Cells that get a tower: {PLACEMENTS}.")
    kind: Literal["light", "linear", "googlenet", "darts", "fcn"] = Field(
        "light", description="Kind of tower: light, linear, googlenet or darts; fcn for dense prediction."
    )
    share: Fraction = Field(
        0.1, description="Largest share of the bare network's FLOPs for all light and linear towers together."
    )
    weight: Weight | tuple[Weight, ...] = Field(
        0.3, description="Weight of the loss of every tower, or a list with one weight per tower."
    )
    schedule: Annotated[str, Field(pattern=r"^(constant|linear|cosine|off:(0?\.\d+|1|1\.0))$")] = Field(
        "constant",
        description="Weight schedule: constant, linear or cosine (fall to 0), or off:f (0 after a fraction f).",
    )
    reach: Annotated[str, Field(pattern=r"^(full|relay:[1-9]\d*|detached)$")] = Field(
        "full",
        description="Gradient scope of a tower: all earlier layers (full), k cells (relay:k) or none (detached).",
    )
    main_reach: Positive | None = Field(
        None, description="With relay:k: number of cells below the head that the main loss reaches; unset: all."
    )
    labels: TowerLabels | tuple[TowerLabels, ...] = Field(
        "own",
        description="Labels of the towers: own, coarse (super-classes of the data set), or a file of class = group; or "
        "a list with one per tower.",
    )

    @field_validator("placement", "schedule", "reach", "labels", mode="wrap")
    @classmethod
    def _one_message_for_all_forms(
        cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> Any:
        try:
            return validate(_read_groups(value) if info.field_name == "labels" else value)
        except ValidationError:
            valid = {
                "placement": PLACEMENTS,
                "schedule": "constant, linear, cosine or off:f with f up to 1, such as off:0.5",
                "reach": "full, relay:k (such as relay:2) or detached",
                "labels": "own, coarse, or a TOML or JSON file of class = group; or a list of these, one a tower",
            }
            raise ValueError(f"must be {valid[str(info.field_name)]}") from None

    @model_validator(mode="after")
    def _main_reach_relays(self) -> Self:
        if self.main_reach is not None and not self.reach.startswith("relay:"):
            raise ValueError(f"main_reach goes with reach relay:k, not with {self.reach}")
        return self


def _read_groups(labels: Any) -> Any:
    """What a person writes as labels, with files and tables of groups turned into pairs of class and group."""
    if isinstance(labels, list):
        return [one if _is_pair(one) else _read_groups(one) for one in labels]
    if isinstance(labels, str) and labels not in ("own", "coarse"):
        try:
            text = Path(labels).read_text(encoding="utf-8")
            labels = json.loads(text) if labels.endswith(".json") else tomllib.loads(text)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {labels!r} as a file of class = group: {error}") from None
    return tuple((str(one), str(group)) for one, group in labels.items()) if isinstance(labels, Mapping) else labels


def _is_pair(labels: Any) -> bool:
    return (
        isinstance(labels, list | tuple)
        and len(labels) == 2
        and labels[0] not in ("own", "coarse")
        and all(isinstance(one, str) for one in labels)
    )
