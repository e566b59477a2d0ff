"""From signals to who goes on: rungs, the ranker over what is known at them, and asynchronous promotion. Pure."""

from nas.ladder.choices import Choices
from nas.ladder.promotion import Policy, Promotion, budget_for, due, last_rounds
from nas.ladder.ranker import FREE, SIGNALS, Observations, Pool, Ranker
from nas.ladder.rungs import Rung, decided, proxy_rung, retrain_epochs, retrain_rung, rungs

__all__ = [
    "FREE",
    "SIGNALS",
    "Choices",
    "Observations",
    "Policy",
    "Pool",
    "Promotion",
    "Ranker",
    "Rung",
    "budget_for",
    "decided",
    "due",
    "last_rounds",
    "proxy_rung",
    "retrain_epochs",
    "retrain_rung",
    "rungs",
]
