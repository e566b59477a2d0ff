"""How fast an exported model is against the eager network it comes from: channels last, eval mode, one CPU thread.

    python scripts/benchmarks/export.py        three random networks at 28x28; 1 and 64 images a batch

Writes export.csv to results/reference/performance: milliseconds of each form and their ratio to eager's. Networks and
forms take turns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import search_spaces
from nas.config import ExportConfig
from nas.export import Facts, side_by_side

SHAPE, CLASSES = (1, 28, 28), tuple("0123456789")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("results/reference/performance"))
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 64])
    given = parser.parse_args()
    space = search_spaces.load("inception", {})
    drawn = [space.random(1 + seed) for seed in range(given.networks)]
    networks = {one.key: space.build(one, SHAPE, len(CLASSES)) for one in drawn}
    facts = Facts("inception", "{}", "made up", CLASSES, SHAPE, (72.0,), (90.0,), 0, 0, {}, None)
    rows = []
    for count in given.images:
        pixels = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
        for key, times in side_by_side(networks, pixels, facts, ExportConfig()).items():
            for form, milliseconds in times.items():
                faster = times["eager"] / milliseconds
                rows.append({"architecture": key, "images": count, "form": form, "ms": milliseconds, "faster": faster})
    table = pd.DataFrame(rows)
    given.to.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.to / "export.csv", index=False)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
