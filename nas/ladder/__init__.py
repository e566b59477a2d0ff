"""The ladder: rungs, the surrogate that predicts full scores, and asynchronous promotion. Pure."""

from nas.ladder.choices import Choices
from nas.ladder.promotion import Policy, Promotion, budget_for, due, last_rounds
from nas.ladder.ranker import FREE, SIGNALS, Observations, Pool, Ranker
from nas.ladder.rungs import (
    LEAST_STEPS,
    WEIGHT_DECAY,
    Resizing,
    Rung,
    batch_size,
    decided,
    learning_rate,
    proxy_rung,
    retrain_epochs,
    retrain_rung,
    rungs,
    timed_rungs,
    timing_rung,
    weight_decay,
)

__all__ = [
    "FREE",
    "LEAST_STEPS",
    "SIGNALS",
    "WEIGHT_DECAY",
    "Choices",
    "Observations",
    "Policy",
    "Pool",
    "Promotion",
    "Ranker",
    "Resizing",
    "Rung",
    "batch_size",
    "budget_for",
    "decided",
    "due",
    "last_rounds",
    "learning_rate",
    "proxy_rung",
    "retrain_epochs",
    "retrain_rung",
    "rungs",
    "timed_rungs",
    "timing_rung",
    "weight_decay",
]
