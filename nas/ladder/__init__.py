"""From signals to who goes on: rungs, the ranker over what is known at them, and asynchronous promotion. Pure."""

from nas.ladder.halving import Halving
from nas.ladder.promotion import Policy, Promotion
from nas.ladder.ranker import Observations, Pool, Ranker
from nas.ladder.rungs import Rung, decided, proxy_rung, retrain_epochs, retrain_rung, rungs

__all__ = [
    "Halving",
    "Observations",
    "Policy",
    "Pool",
    "Promotion",
    "Ranker",
    "Rung",
    "decided",
    "proxy_rung",
    "retrain_epochs",
    "retrain_rung",
    "rungs",
]
