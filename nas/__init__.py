"""Architecture search over Inception-style networks by short proxy trainings with auxiliary towers.

>>> import nas
>>> experiment = nas.Experiment("demo", space="inception", data="digits")   # doctest: +SKIP
>>> experiment.run()                                                        # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.experiment import Experiment as Experiment

__all__ = ["Experiment"]


def __getattr__(name: str) -> Any:
    if name == "Experiment":
        from nas.experiment import Experiment

        return Experiment
    raise AttributeError(f"module 'nas' has no attribute {name!r}")
