"""What a search space offers. A newcomer who wants a space of their own starts here.

A space does three things: it *suggests* architectures (values), it *builds* networks from them, and it
says how large it is. Everything else - towers, training, search, export - works on any space::

    class Plain(SearchSpace):
        '''Stacks of 3x3 convolutions.'''

        architecture_type = PlainArchitecture           # a frozen `Architecture`

        def suggest(self, trial):
            return PlainArchitecture(widths=[trial.suggest_int(f"width{i}", 8, 64) for i in range(4)])

        def build(self, architecture, input_shape, num_classes):
            return PlainNetwork(architecture, input_shape[0], num_classes)

The network is an ordinary ``torch.nn.Module`` from images ``(N, C, H, W)`` to logits ``(N, classes)``. It
names its cells, in order of depth, in an attribute ``cell_names`` (names of submodules, as in
``named_modules``), which is all that auxiliary towers need to know of it.
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
    """Draws every value uniformly, from a seed alone: for random architectures outside of a study."""

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
    """One point of a space: a frozen, hashable value that is JSON. It never holds weights.

    Fields must be hashable (tuples, not lists). Two architectures that mean the same network should be equal:
    bring them to one form in a validator.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @final
    def to_json(self) -> str:
        """Canonical JSON: keys sorted, no spaces, so that equal architectures have equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @final
    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that name this architecture; equal architectures have equal keys."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Raises SpaceError when the text is no architecture of this type."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise SpaceError(f"not an architecture of type {cls.__name__}: {first_error(error)}") from None


class SpaceSettings(BaseModel):
    """What a person may set in ``[space]`` beside the name. Closed: unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SearchSpace(ABC):
    """Proposes architectures and builds networks from them.

    Subclasses implement `suggest` and `build`, name their `architecture_type`, and may widen `settings_type`.
    They hold no state but their settings, so a worker can make the same space again.
    """

    architecture_type: ClassVar[type[Architecture]]
    settings_type: ClassVar[type[SpaceSettings]] = SpaceSettings

    def __init__(self, settings: SpaceSettings | None = None) -> None:
        self.settings: Any = self.settings_type() if settings is None else settings

    @abstractmethod
    def suggest(self, trial: Trial) -> Architecture:
        """Choose an architecture by asking `trial` for named values.

        Ask for the same names every time (a width of 0 may mean "absent"): samplers learn little from names
        that come and go.
        """

    @abstractmethod
    def build(self, architecture: Any, input_shape: Shape, num_classes: int) -> nn.Module:
        """A freshly initialised network with ``cell_names``; raises SpaceError when the input is too small."""

    def size(self) -> int | None:
        """How many different architectures the space holds; None when that is not known."""
        return None

    def named(self) -> Mapping[str, Mapping[str, Any]]:
        """Well-known points, as the values `suggest` would ask for: reference rows and warm starts."""
        return {}

    def describe(self, architecture: Any) -> Sequence[str]:
        """One line a cell, by depth, for ``nas show``; empty when there is nothing to say."""
        return ()

    def narrower(self, architecture: Any, network: nn.Module, step: int) -> Sequence[Architecture]:
        """Ever narrower architectures: each is the one before without the channels that matter least to `network`.

        Channels leave in groups that bring a width down to a multiple of `step`. With `narrowed` this is what pruning
        needs; both are optional. Raises SpaceError where the space does not say how.
        """
        raise SpaceError(f"networks of this space cannot be pruned: {type(self).__name__} has no narrower()")

    def narrowed(self, architecture: Any, network: nn.Module, smaller: Any) -> Mapping[str, Tensor]:
        """The state dict of a `narrower` architecture: of each layer of `network`, the channels that matter most."""
        raise SpaceError(f"networks of this space cannot be pruned: {type(self).__name__} has no narrowed()")

    def thinner(self, architecture: Any, width: float) -> Architecture:
        """The same architecture with about this share of its channels, to stand in for it in short trainings.

        Optional. Raises SpaceError where the space does not say how.
        """
        raise SpaceError(f"proxy.width needs a space that makes thinner networks: {type(self).__name__} does not")

    @final
    def point(self, values: Mapping[str, Any]) -> Architecture:
        """The architecture that `suggest` makes of these values; raises SpaceError when one is missing."""
        return self.suggest(_Given(values))

    @final
    def random(self, seed: int) -> Architecture:
        """A random architecture, from the seed alone."""
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
