"""Promotions at their share of the time or as late as they fit: searches that time ends, replayed on NAS-Bench-101.

    python scripts/studies/simulate_deadline.py --table FILE     writes simulations-deadline.csv

New candidates are random and trained for 4 epochs, promoted ones for 36; two workers, in virtual time. The result is
the best after 36 epochs, and is judged by its score after 108: by the share of all networks that are better, and by
regret.
`even`: a promotion is due when it is furthest behind its share of what is spent. `late`: when just enough time is left
for those that are planned (`nas.ladder.due`), which is how `nas search` with a time has it. Both arms of a repeat draw
the same new candidates, and both may begin a training that outlasts the time by a sixth of itself, as the search may.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from nas.ladder import Promotion, due
from nas.proxy_fidelity.simulate import recorded
from nas.proxy_fidelity.simulate.recorded import Table
from nas.search.pace import UNSURE
from nas.search.scheduler import ENDLESS, POLICY

REFERENCE = Path("results/reference/calibration")
TIMES = (2.0, 3.0, 4.0, 6.0, 10.0, 20.0)
"""In trainings of the higher rung."""

LOW, HIGH = 0, 2
"""Rungs in use: of 4 and 36 epochs."""

WORKERS = 2


def search(table: Table, time: float, late: bool, seed: int) -> tuple[float, float, int, int]:
    """Share of all networks that are better than the one found, its regret, new candidates and promotions."""
    order = np.random.default_rng(seed).permutation(len(table.params))
    costs = table.costs.mean(axis=0)[[LOW, HIGH]] / table.costs[:, HIGH].mean()
    ladder: Promotion[int] = Promotion(list(costs), ENDLESS, ("params",), (), POLICY, seed)
    share = POLICY.share(list(costs))
    running: list[tuple[float, int, int, int]] = []
    now, new_candidates, promoted = 0.0, 0, 0
    for started in itertools.count():
        left = time - now
        if late:
            ladder.hold(not due(left, time, UNSURE, costs[0], WORKERS, promoted, share))
        training = ladder.next(UNSURE * left) if left > 0 and new_candidates and not ladder.wants_candidate else None
        if training is not None:
            promoted += 1
        elif left > 0:
            training = int(order[new_candidates]), 0
            new_candidates += 1
            ladder.enter(training[0], table.params[[training[0]]], costs)
        if training is not None:
            heapq.heappush(running, (now + costs[training[1]], started, *training))
        while running and (len(running) == WORKERS or now >= time):
            now, _, candidate, rung = heapq.heappop(running)
            ladder.tell(candidate, rung, float(table.scores[candidate, (LOW, HIGH)[rung]]))
        if now >= time and not running:
            break
    found = ladder.found()
    chosen = found if found is not None else max(order[:new_candidates], key=lambda one: table.scores[one, LOW])
    truth = table.truth
    return float((truth > truth[chosen]).mean()), float(truth.max() - truth[chosen]), new_candidates, promoted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--to", type=Path, default=REFERENCE)
    given = parser.parse_args()
    table = recorded.table(recorded.read(given.table))
    rows = []
    with ProcessPoolExecutor(initializer=threadpool_limits, initargs=(1,)) as pool:
        for time, late in itertools.product(TIMES, (False, True)):
            found = np.array(list(pool.map(partial(search, table, time, late), range(given.repeats), chunksize=10)))
            better, regret, new_candidates, promoted = found.mean(axis=0)
            error = found[:, :2].std(axis=0) / np.sqrt(len(found))
            about = {"time": time, "promotions": "late" if late else "even", "repeats": len(found)}
            about |= {"better": better, "better_error": error[0], "regret": regret, "regret_error": error[1]}
            rows.append(about | {"newcomers": new_candidates, "promoted": promoted})
            print(
                f"time {time:g}, {about['promotions']}: {better:.2%} of all are better than what is found "
                f"(+-{error[0]:.2%}), regret {regret:.5f}; {new_candidates:.0f} candidates, {promoted:.1f} promoted",
                flush=True,
            )
    given.to.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(given.to / "simulations-deadline.csv", index=False)


if __name__ == "__main__":
    main()
