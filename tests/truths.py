"""Truth tables whose truth is known, for the tests of calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

ERRORS = {"1-none": 1.5, "1-middle-1.0": 0.9, "3-none": 0.8, "3-middle-1.0": 0.7}
"""Deviation of a proxy's error in units of the spread between architectures."""

COST = {"1-none": 0.052, "1-middle-1.0": 0.052, "3-none": 0.155, "3-middle-1.0": 0.154}


def synthetic(
    n: int = 40, *, errors: Mapping[str, float] = ERRORS, noise: float = 0.3, full_seeds: int = 2, seed: int = 0
) -> pd.DataFrame:
    """Latent accuracies .85 + .01 z of n architectures, full trainings with `noise`, two seeds of each proxy.

    A proxy's loss is -z plus its error, whose half (in variance) stays from seed to seed, and its accuracy follows it.
    Params rise with z, correlation .7; a row is `.loc`-able by architecture, rung and seed.
    """
    generator = np.random.default_rng(seed)
    latent = generator.standard_normal(n)
    params = np.exp(10 + 0.5 * (0.7 * latent + 0.714 * generator.standard_normal(n)))
    naswot = 500 + 10 * (0.5 * latent + generator.standard_normal(n))
    bias = {rung: generator.standard_normal(n) for rung in errors}
    rows: list[dict[str, Any]] = []
    for place in range(n):
        about = {
            "architecture": f"{place:012x}",
            "cells": 5,
            "status": "done",
            "images": 1000,
            "size": 14,
            "width": 1.0,
            "learning_rate": 0.1,
            "batch_size": 128,
            "params": np.round(params[place]),
            "towers": "none",
            "flops": np.round(30 * params[place] * generator.uniform(0.9, 1.1)),
            "equal_to": "",
            "full": False,
        }
        for one in (1000, 1001):
            free = {"naswot": naswot[place] + generator.standard_normal()}
            rows.append(
                about | free | {"rung": "free", "seed": one, "epochs": 0.0, "seconds": 0.1, "multiply_adds": 1e6}
            )
            for rung, error in errors.items():
                off = error * (bias[rung][place] + generator.standard_normal()) / np.sqrt(2)
                row = (
                    about
                    | free
                    | {"rung": rung, "seed": one, "epochs": float(rung[0]), "val_loss": 5 - latent[place] + off}
                )
                row["val_accuracy"] = 0.7 - 0.05 * (row["val_loss"] - 5) + 0.02 * generator.standard_normal()
                row |= {"multiply_adds": COST.get(rung, 0.05) * 1e10, "seconds": COST.get(rung, 0.05) * 100}
                towers = "middle 1" if "middle" in rung else "none"
                rows.append(row | {"towers": towers, "equal_to": "middle 1" if towers == "none" else ""})
        for one in range(full_seeds):
            accuracy = 0.85 + 0.01 * (latent[place] + noise * generator.standard_normal())
            row = about | {
                "rung": "full",
                "seed": one,
                "epochs": 20.0,
                "full": True,
                "val_loss": 3 - 100 * (accuracy - 0.85),
            }
            row |= {"multiply_adds": 1e10, "seconds": 100.0, "truth_accuracy": accuracy, "truth_loss": 1 - accuracy}
            rows.append(row | {"val_loss_epoch3": 4 - latent[place] + generator.standard_normal()})
    return pd.DataFrame(rows)
