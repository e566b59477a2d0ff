"""The contract of a search space. To write a space, start here.

A space *suggests* architectures (values), *builds* networks from them, and gives its size. Towers, training, search
and export work on any space::

    class Plain(SearchSpace):
        '''Stacks of 3x3 convolutions.'''

        architecture_type = PlainArchitecture           # a frozen `Architecture`

        def suggest(self, trial):
            return PlainArchitecture(widths=[trial.suggest_int(f"width{i}", 8, 64) for i in range(4)])

        def build(self, architecture, input_shape, num_classes):
            return PlainNetwork(architecture, input_shape[0], num_classes)

The network is an ordinary ``torch.nn.Module`` from images ``(N, C, H, W)`` to logits ``(N, classes)``. Its attribute
``cell_names`` lists its cells in order of depth (names of submodules, as in ``named_modules``). Auxiliary towers need
nothing else.
"""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, final

from pydantic import BaseModel, ConfigDict, ValidationError

from nas.errors import SpaceError, first_error

if TYPE_CHECKING:
    from torch import Tensor, nn

Shape = tuple[int, int, int]
"""Channels, height, width of one image."""


class Trial(Protocol):
    """The part of ``optuna.Trial`` that a space may use; `RandomTrial` and ``optuna.trial.FixedTrial`` fit too."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class RandomTrial:
    """A trial that draws every value uniformly, from a seed: for random architectures without a study."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.params: dict[str, Any] = {}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._once(name, lambda: self._random.randrange(low, high + 1, step)))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        def draw() -> float:
            if step is None:
                return self._random.uniform(low, high)
            return low + step * self._random.randrange(int((high - low) / step + 1e-9) + 1)

        return float(self._once(name, draw))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._once(name, lambda: self._random.choice(list(choices)))

    def _once(self, name: str, draw: Any) -> Any:
        if name not in self.params:
            self.params[name] = draw()
        return self.params[name]


class Architecture(BaseModel):
    """One point of a space: a frozen, hashable value that can be written as JSON. It never holds weights.

    Fields must be hashable (tuples, not lists). Two architectures that describe the same network should be equal:
    bring them to one form in a validator.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @final
    def to_json(self) -> str:
        """Canonical JSON, with sorted keys and no spaces. Equal architectures have equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @final
    @property
    def key(self) -> str:
        """Twelve hexadecimal digits. Equal architectures have equal keys."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the text that `to_json` wrote.

        Raises:
            SpaceError: The text is no architecture of this type.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise SpaceError(f"not an architecture of type {cls.__name__}: {first_error(error)}") from None


class SpaceSettings(BaseModel):
    """The settings of a space: further keys of the section ``[space]``. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SearchSpace(ABC):
    """Proposes architectures and builds networks from them.

    A subclass implements `suggest` and `build`, sets `architecture_type`, and may extend `settings_type`. It holds no
    state except its settings, so that a worker can make the same space again.
    """

    architecture_type: ClassVar[type[Architecture]]
    settings_type: ClassVar[type[SpaceSettings]] = SpaceSettings

    def __init__(self, settings: SpaceSettings | None = None) -> None:
        self.settings: Any = self.settings_type() if settings is None else settings

    @abstractmethod
    def suggest(self, trial: Trial) -> Architecture:
        """Choose an architecture by asking `trial` for named values.

        Ask for the same names every time; a width of 0 may mean "absent". Samplers learn little from names that are
        asked for only sometimes.

        Args:
            trial: Draws the values.
        """

    @abstractmethod
    def build(self, architecture: Any, input_shape: Shape, num_classes: int) -> nn.Module:
        """Build a freshly initialised network with ``cell_names``.

        Args:
            architecture: An architecture of this space.
            input_shape: Channels, height and width of an image.
            num_classes: Number of classes.

        Raises:
            SpaceError: The images are too small.
        """

    def size(self) -> int | None:
        """Number of different architectures; None if it is not known."""
        return None

    def named(self) -> Mapping[str, Mapping[str, Any]]:
        """Well-known points by name, as the values that `suggest` asks for. A search tries them first."""
        return {}

    def describe(self, architecture: Any) -> Sequence[str]:
        """One line per cell, in order of depth, for ``nas show``."""
        return ()

    def prune_path(self, architecture: Any, network: nn.Module, step: int) -> Sequence[Architecture]:
        """The prune path: a sequence of architectures with fewer and fewer channels. Optional, for pruning.

        Args:
            architecture: The architecture to prune.
            network: Its trained network. Channels that matter least to it are removed first.
            step: Widths fall to multiples of this number.

        Raises:
            SpaceError: The space does not support pruning.
        """
        raise SpaceError(f"networks of this space cannot be pruned: {type(self).__name__} has no prune_path()")

    def pruned_weights(self, architecture: Any, network: nn.Module, smaller: Any) -> Mapping[str, Tensor]:
        """The pruned weights: a state dict with the most important channels of each layer. Optional, for pruning.

        Args:
            architecture: The architecture before pruning.
            network: Its trained network.
            smaller: An architecture of the prune path.

        Raises:
            SpaceError: The space does not support pruning.
        """
        raise SpaceError(f"networks of this space cannot be pruned: {type(self).__name__} has no pruned_weights()")

    def with_width(self, architecture: Any, width: float) -> Architecture:
        """A low-fidelity variant for short trainings. Optional, for ``proxy.width``.

        Args:
            architecture: The architecture.
            width: The width multiplier: about this share of the channels is left.

        Raises:
            SpaceError: The space has no low-fidelity variants.
        """
        raise SpaceError(f"proxy.width needs a space that makes thinner networks: {type(self).__name__} does not")

    @final
    def point(self, values: Mapping[str, Any]) -> Architecture:
        """The architecture that `suggest` makes of these values.

        Raises:
            SpaceError: A value is missing.
        """
        return self.suggest(_Given(values))

    @final
    def random(self, seed: int) -> Architecture:
        """A random architecture. The seed alone decides it."""
        return self.suggest(RandomTrial(seed))


class _Given:
    """A trial whose values are given."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def _value(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise SpaceError(f"no value given for {name!r}") from None

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._value(name))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self._value(name))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._value(name)
