"""The same candidates through Ray Tune with OptunaSearch, two trials at a time, as Ray's documentation shows it.

python scripts/benchmarks/baselines/ray_tune.py --data-dir DIR --shrink 2 --epochs 2 --images 10000 --to FILE
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
import warnings
from typing import Any

import optuna
import plain
import ray
from candidates import Candidates
from ray import tune
from ray.tune.search.optuna import OptunaSearch


def trainable(config: dict[str, Any], data: Any, images: Any, validation: Any, epochs: int) -> None:
    space = Candidates()
    architecture = space.point(config)
    network = plain.build(space, architecture, data)  # type: ignore[arg-type]
    tune.report({"accuracy": plain.train(network, images, validation, epochs), "key": architecture.key})


def suggest(trial: Any) -> None:
    """The space in define-by-run form."""
    Candidates().suggest(trial)


def main() -> None:
    given = plain.arguments(__doc__)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = plain.read(given)
    images, validation = plain.datasets(data, given.images)
    points = [dict(values) for values in Candidates().named().values()][: given.candidates]
    ray.init(
        address="local",
        num_cpus=given.workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        search = OptunaSearch(space=suggest, metric="accuracy", mode="max", points_to_evaluate=points)
        given_to_all = tune.with_parameters(
            trainable, data=data.without_test(), images=images, validation=validation, epochs=given.epochs
        )
        tuner = tune.Tuner(
            tune.with_resources(given_to_all, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=search, num_samples=given.candidates, max_concurrent_trials=given.workers
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        results = tuner.fit()
        trials = [results[number] for number in range(len(results))]
        accuracies = {trial.metrics["key"]: trial.metrics["accuracy"] for trial in trials if trial.metrics}
    given.to.write_text(json.dumps({"accuracies": accuracies, "began": began, "ended": time.time()}))
    ray.shutdown()


if __name__ == "__main__":
    main()
