"""The state of a search, computed from its record. A live and a resumed search have the same state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from nas.metrics import named
from nas.store import Event, Measurement, Proposal, Status


@dataclass
class SearchState:
    """What a search has considered and measured.

    Only `apply` changes it. It does not depend on the order of a proposal and the measurement of its architecture.

    Attributes:
        rungs: Keys of the rungs of the search, lowest first.
        seed: Measurements of other seeds are not the search's.
        objective: The first objective, which ranks.
        proposals: Every proposal, by number.
        candidates: The proposal that made an architecture a candidate, by key.
        infeasible: The proposals beyond a limit that is known before training, by key.
        unsuggested: Proposals of which the space made no architecture.
        lowest: Measurements at the lowest rung by key, those of references included.
        higher: Measurements at higher rungs, in the order in which they came.
        counts: Candidates by the status of their measurement at the lowest rung.
        best: Best objective at the lowest rung.
        next_number: Of the next proposal.
        draws: How many points had been drawn when the latest proposal was recorded.
    """

    rungs: tuple[str, ...]
    seed: int
    objective: str
    proposals: dict[int, Proposal] = field(default_factory=dict)
    candidates: dict[str, Proposal] = field(default_factory=dict)
    infeasible: dict[str, Proposal] = field(default_factory=dict)
    unsuggested: list[Proposal] = field(default_factory=list)
    lowest: dict[str, Measurement] = field(default_factory=dict)
    higher: list[Measurement] = field(default_factory=list)
    counts: Counter[Status] = field(default_factory=Counter)
    best: float | None = None
    next_number: int = 0
    draws: int = 0

    @classmethod
    def replay(cls, rungs: Iterable[str], seed: int, objective: str, events: Iterable[Event]) -> SearchState:
        """The state after these events."""
        state = cls(tuple(rungs), seed, objective)
        for event in events:
            state.apply(event)
        return state

    def apply(self, event: Event) -> None:
        """Take in an event that is durable."""
        if isinstance(event, Proposal):
            self._propose(event)
        elif event.seed == self.seed and event.rung == self.rungs[0]:
            if event.key not in self.lowest:
                self.lowest[event.key] = event
                self._count(event.key)
        elif event.seed == self.seed and event.rung in self.rungs:
            self.higher.append(event)

    def _propose(self, proposal: Proposal) -> None:
        self.proposals[proposal.number] = proposal
        self.next_number = max(self.next_number, proposal.number + 1)
        self.draws = max(self.draws, proposal.draws)
        if proposal.status == "failed":
            self.unsuggested.append(proposal)
        elif proposal.status == "infeasible":
            self.infeasible.setdefault(proposal.key, proposal)
        elif proposal.key not in self.candidates:
            self.candidates[proposal.key] = proposal
            self._count(proposal.key)

    def _count(self, key: str) -> None:
        """Count a candidate once it is proposed and measured: nothing is counted over all candidates each time."""
        if key not in self.candidates or key not in self.lowest:
            return
        measurement = self.lowest[key]
        self.counts[measurement.status] += 1
        if measurement.status == "done":
            metric = named(self.objective)
            value = metric.read(measurement.signals)
            self.best = value if self.best is None else max(self.best, value, key=metric.score)

    def __contains__(self, key: str) -> bool:
        """Whether this architecture was considered before."""
        return key in self.candidates or key in self.infeasible

    @property
    def pending(self) -> list[Proposal]:
        """Candidates that are not measured yet, by number."""
        waiting = [one for key, one in self.candidates.items() if key not in self.lowest]
        return sorted(waiting, key=lambda one: one.number)

    @property
    def measured(self) -> list[Measurement]:
        """The candidates' measurements at the lowest rung, in the order of their trials."""
        ordered = sorted(self.candidates.values(), key=lambda one: one.number)
        return [self.lowest[one.key] for one in ordered if one.key in self.lowest]

    @property
    def infeasible_count(self) -> int:
        """Architectures beyond a limit, known before training or measured."""
        return len(self.infeasible) + self.counts["infeasible"]
