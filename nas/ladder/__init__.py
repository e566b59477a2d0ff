"""From signals to who goes on: rungs, the ranker over what is known at them, and asynchronous promotion. Pure."""

from nas.ladder.promotion import Policy, Promotion
from nas.ladder.ranker import Observations, Pool, Ranker
from nas.ladder.rungs import Rung, proxy_rung, retrain_rung

__all__ = ["Observations", "Policy", "Pool", "Promotion", "Ranker", "Rung", "proxy_rung", "retrain_rung"]
