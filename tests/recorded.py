"""Candidates in a store, without a search."""

from __future__ import annotations

from nas.store import Measurement, Proposal, Store


def proposal(measurement: Measurement, number: int) -> Proposal:
    """The proposal of what was measured, as trial `number`."""
    return Proposal(
        number=number,
        draw=number,
        draws=number + 1,
        architecture=measurement.architecture,
        key=measurement.key,
        parameters={},
        distributions={},
        origin="sampler",
    )


def add_candidate(store: Store, measurement: Measurement, trial: int | None) -> bool:
    """Write a measurement down, and the proposal before it; without a `trial` it is a reference."""
    if trial is not None and measurement.key not in store.trials():
        store.add_proposal(proposal(measurement, trial))
    return store.add(measurement)
