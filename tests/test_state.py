"""The state of a search is computed from its record: the same for a live and for a resumed search."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from nas.search.state import SearchState
from nas.store import Event, Measurement, Proposal

RUNGS = ("proxy-0", "x3-1")
KEYS = tuple("abcdefgh")


def measurements() -> st.SearchStrategy[Measurement]:
    return st.builds(
        lambda key, rung, seed, status, loss: Measurement(
            f'"{key}"', key, rung, seed, status, {"val_loss": loss} if status == "done" else {}, created=0.0
        ),
        st.sampled_from(KEYS),
        st.sampled_from([*RUNGS, "retrain-2"]),
        st.sampled_from([0, 1]),
        st.sampled_from(["done", "failed", "infeasible"]),
        st.floats(0, 10),
    )


def proposals() -> st.SearchStrategy[Proposal]:
    return st.builds(
        lambda key, status: Proposal(
            0,
            0,
            0,
            "" if status == "failed" else f'"{key}"',
            "" if status == "failed" else key,
            {},
            {},
            "sampler",
            status,
        ),
        st.sampled_from(KEYS),
        st.sampled_from(["candidate", "infeasible", "failed"]),
    )


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events as a store holds them: numbers are new, and a measurement is written once."""
    events: list[Event] = []
    units, number = set(), 0
    for event in draw(st.lists(st.one_of(measurements(), proposals()), max_size=40)):
        if isinstance(event, Proposal):
            events.append(replace(event, number=number, draw=2 * number, draws=2 * number + 1))
            number += 1
        elif event.unit not in units:
            units.add(event.unit)
            events.append(event)
    return events


@given(histories())
def test_replay_equals_live_for_every_prefix(events: list[Event]) -> None:
    live = SearchState(RUNGS, 0, "loss")
    for place, event in enumerate(events, 1):
        live.apply(event)
        assert live == SearchState.replay(RUNGS, 0, "loss", events[:place])


@given(histories(), st.randoms())
def test_the_tallies_are_those_of_a_plain_count(events: list[Event], random: object) -> None:
    state = SearchState.replay(RUNGS, 0, "loss", events)
    candidates = {one.key for one in events if isinstance(one, Proposal) and one.status == "candidate"}
    lowest = {one.key: one for one in events if isinstance(one, Measurement) and one.seed == 0 and one.rung == RUNGS[0]}
    done = [one for key, one in lowest.items() if key in candidates and one.status == "done"]
    assert state.counts["done"] == len(done)
    assert sum(state.counts.values()) == len(candidates & set(lowest))
    assert state.best == min((one.signals["val_loss"] for one in done), default=None)
    assert {one.key for one in state.pending} == candidates - set(lowest)
    assert {one.key for one in state.measured} == candidates & set(lowest)
    assert state.next_number == sum(isinstance(one, Proposal) for one in events)


def test_a_reference_counts_once_it_is_proposed_and_a_proposal_once_it_is_measured() -> None:
    reference = Measurement('"a"', "a", RUNGS[0], 0, "done", {"val_loss": 0.5})
    proposed = Proposal(0, 0, 1, '"a"', "a", {}, {}, "named")
    orders: list[list[Event]] = [[reference, proposed], [proposed, reference]]
    for events in orders:
        state = SearchState(RUNGS, 0, "loss")
        state.apply(events[0])
        assert (state.counts["done"], state.best) == (0, None)
        state.apply(events[1])
        assert (state.counts["done"], state.best) == (1, 0.5)


def test_other_seeds_and_rungs_are_not_the_searchs() -> None:
    one = Measurement('"a"', "a", RUNGS[0], 1, "done", {"val_loss": 0.5})
    state = SearchState.replay(RUNGS, 0, "loss", [one, replace(one, seed=0, rung="retrain-2")])
    assert not state.lowest
    assert not state.higher
