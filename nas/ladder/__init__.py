"""From signals to who goes on: rungs, the ranker over what is known at them, and asynchronous promotion. Pure."""

from nas.ladder.choices import Choices
from nas.ladder.promotion import Policy, Promotion, budget_for, due, last_rounds
from nas.ladder.ranker import FREE, SIGNALS, Observations, Pool, Ranker
from nas.ladder.rungs import (
    LEAST_STEPS,
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
)

__all__ = [
    "FREE",
    "LEAST_STEPS",
    "SIGNALS",
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
]
