"""The published simulations: the default ladder and its rivals on NAS-Bench-101 and on the published truth table.

    python scripts/studies/simulate_reference.py nasbench101 --table FILE    all sizes, and each tenth of them
    python scripts/studies/simulate_reference.py truth                       each setting of towers; ten seeds
    python scripts/studies/simulate_reference.py sizes                       made-up tables of few sizes

Budget 6 full trainings, every training counted; one setting throughout. Writes simulations-nasbench101.csv,
simulations-truth.csv and simulations-sizes.csv; on the truth table prints by how much regret is less than the rivals',
with Student's 95 % interval over the seeds.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nas.proxy_fidelity.calibration import replay
from nas.proxy_fidelity.simulate import Simulation, recorded, simulate, synthetic

REFERENCE = Path("results/reference/calibration")
BUDGET = 6.0
SEEDS = 10
TABLES = (10, 11, 12)
"""Seeds of the made-up tables of each kind. Seeds 0 to 2 are those that the policy was chosen on."""


def nasbench101(file: Path, repeats: int) -> pd.DataFrame:
    """A row a part of the table and policy."""
    read = recorded.read(file)
    params = np.sort(read.drop_duplicates("architecture")["params"])
    limits = np.quantile(params, np.linspace(0, 1, 11))
    parts: list[tuple[str, float, float]] = [("all sizes", params[0], params[-1])]
    parts += [(f"tenth {number}", low, high) for number, (low, high) in enumerate(itertools.pairwise(limits), 1)]
    rows: list[dict[str, Any]] = []
    for part, low, high in parts:
        began = time.perf_counter()
        table = recorded.table(read, low, high)
        found = simulate(table, Simulation(BUDGET, repeats))
        about = {"part": part, "min_params": low, "max_params": high, "architectures": len(table.params)}
        rows += [about | asdict(one) for one in found]
        said = ", ".join(f"{one.policy} {one.p_top1:.3f}" for one in found)
        print(f"{part}, {time.perf_counter() - began:.0f} s: {said}", flush=True)
    return pd.DataFrame(rows)


def truth(file: Path, repeats: int) -> pd.DataFrame:
    """A row a setting of towers, seed and policy."""
    read = recorded.read(file)
    proxies = read.loc[~read["full"] & (read["epochs"] > 0), "towers"]
    rows: list[dict[str, Any]] = []
    for towers in dict.fromkeys(proxies):
        table = recorded.table(replay.as_recorded(read, towers))
        for seed in range(SEEDS):
            found = simulate(table, Simulation(BUDGET, repeats // SEEDS, seed))
            rows += [{"towers": towers, "seed": seed} | asdict(one) for one in found]
    return pd.DataFrame(rows)


def sizes(repeats: int) -> pd.DataFrame:
    """A row a made-up table and policy. Each third of the repeats is on a table of another seed."""
    rows: list[dict[str, Any]] = []
    for name, made in synthetic.VARIANTS.items():
        part = []
        for seed in TABLES:
            results = simulate(synthetic.table(made, seed), Simulation(BUDGET, repeats // len(TABLES), seed))
            part += [{"table": name, "seed": seed} | asdict(result) for result in results]
        means = pd.DataFrame(part).groupby("policy", sort=False)["p_top1"].mean()
        print(f"{name}: " + ", ".join(f"{policy} {share:.3f}" for policy, share in means.items()), flush=True)
        rows += part
    return pd.DataFrame(rows)


def advantages(rows: pd.DataFrame) -> pd.DataFrame:
    """By how much the ladder's regret is less than each rival's: paired over seeds, with Student's interval."""
    from scipy.stats import t

    found = []
    for towers, part in rows.groupby("towers", sort=False):
        regret = part.pivot(index="seed", columns="policy", values="regret")
        for rival in regret.columns.drop("ladder"):
            less = regret[rival] - regret["ladder"]
            half = t.ppf(0.975, len(less) - 1) * less.std() / np.sqrt(len(less))
            about = {
                "towers": towers,
                "rival": rival,
                "regret": regret["ladder"].mean(),
                "rivals": regret[rival].mean(),
            }
            found.append(about | {"less": less.mean(), "low": less.mean() - half, "high": less.mean() + half})
    return pd.DataFrame(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("nasbench101", "truth", "sizes"))
    parser.add_argument("--table", type=Path, help="of nasbench101: architecture, params, epochs, cost, score")
    parser.add_argument(
        "--repeats", type=int, help="left out: 1,000 for nasbench101, 500 for the truth table, 300 for the others"
    )
    parser.add_argument("--to", type=Path, default=REFERENCE)
    given = parser.parse_args()
    if given.which == "nasbench101":
        rows = nasbench101(given.table, given.repeats or 1000)
    elif given.which == "sizes":
        rows = sizes(given.repeats or 300)
    else:
        rows = truth(given.table or REFERENCE / "truth.parquet", given.repeats or 500)
        print((advantages(rows).set_index(["towers", "rival"]) * 1e4).round(1).to_string())
        print("(regret in hundredths of a point of accuracy)")
    given.to.mkdir(parents=True, exist_ok=True)
    rows.to_csv(given.to / f"simulations-{given.which}.csv", index=False)


if __name__ == "__main__":
    main()
