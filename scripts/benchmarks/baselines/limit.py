"""The limit: the engine's own training steps and validation passes on two processes, and nothing else.

    python scripts/benchmarks/baselines/limit.py --data-dir DIR --shrink 2 --epochs 2 --images 10000 --to FILE

No sampler, no storage, no driver: each process takes the next candidate from a list, builds it, trains and scores it.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from typing import Any

import plain
import torch
from candidates import Candidates

from nas import auxiliary
from nas.config import Recipe, TowersConfig
from nas.evaluation import evaluator as proxy
from nas.training import loop as training
from nas.training.task import TASKS


def work(given: Any, data: Any, recipe: Recipe, next_one: Any, found: Any) -> None:
    proxy.tune_process(threads=1)
    device = torch.device("cpu")
    images, validation = (training.Resident(s, data.mean, data.std, device) for s in (data.train, data.validation))
    space, task = Candidates(), TASKS[data.task]
    points = list(space.named().values())[: given.candidates]
    while True:
        with next_one.get_lock():
            number = next_one.value
            next_one.value += 1
        if number >= len(points):
            return
        architecture = space.point(points[number])
        torch.default_generator.manual_seed(training.stream(0, "init"))
        network = space.build(architecture, data.input_shape, len(data.classes))  # type: ignore[arg-type]
        model = auxiliary.supervise(
            network, TowersConfig(placement="none"), data.input_shape, len(data.classes), 0, data.coarse, data.classes
        )
        training.fit(model, task, images, recipe, seed=0)
        scores = training.evaluate(model, task, validation, plain.BATCH)
        found.put((architecture.key, scores["accuracy"]))


def main() -> None:
    given = plain.arguments(__doc__)
    data = plain.read(given)
    recipe = Recipe(epochs=given.epochs, images=given.images, batch_size=plain.BATCH, augment=())
    began = time.time()
    next_one: Any = multiprocessing.Value("i", 0)
    found: Any = multiprocessing.SimpleQueue()
    processes = [
        multiprocessing.Process(target=work, args=(given, data, recipe, next_one, found)) for _ in range(given.workers)
    ]
    for process in processes:
        process.start()
    accuracies = dict(found.get() for _ in range(given.candidates))
    for process in processes:
        process.join()
    given.to.write_text(json.dumps({"accuracies": accuracies, "began": began, "ended": time.time()}))


if __name__ == "__main__":
    main()
