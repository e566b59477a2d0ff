"""All errors that this project raises on purpose.

::

    NasError
    ├── InputError              what a person gave cannot be used       (exit code 2)
    │   ├── ConfigError         a key, a value or a combination of the config
    │   ├── SpaceError          a search space or an architecture
    │   ├── DataError           a data set: missing, damaged or unusable
    │   └── ExperimentError     an experiment: unknown, changed, or held by another driver
    └── JobError                the work itself failed                  (exit code 1)
        ├── CandidateError      one candidate cannot be trained; never ends a search
        ├── SearchError         a search or a retraining produced nothing to go on with
        ├── LeaseLost           another driver took the experiment over
        ├── StoreLost           the store was deleted or replaced
        └── VerificationError   an exported file does not do what the trained network does
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class NasError(Exception):
    """Root of the tree. The message is one line, in the user's words."""


class InputError(NasError):
    """What a person gave cannot be used; nothing was written."""


class ConfigError(InputError):
    """A key, a value or a combination of the config."""


class SpaceError(InputError):
    """A search space or an architecture."""


class DataError(InputError):
    """A data set: missing, damaged or unusable."""


class ExperimentError(InputError):
    """An experiment: unknown, changed, or held by another driver."""


class JobError(NasError):
    """The work itself failed; what was measured before is kept."""


class CandidateError(JobError):
    """One candidate cannot be trained; its trial fails with this reason and the search goes on."""


class SearchError(JobError):
    """A search or a retraining produced nothing to go on with."""


class LeaseLost(JobError):
    """Another driver took the experiment over, so this one must stop writing."""


class StoreLost(JobError):
    """The store of an experiment was deleted or replaced while it was being written."""


class VerificationError(JobError):
    """An exported file does not do what the trained network does."""


def first_error(error: ValidationError) -> str:
    """The first complaint of pydantic in one line: the key, what is wrong with it, and what came."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    message = first["msg"].removeprefix("Value error, ")
    came = "" if first["type"] == "missing" or isinstance(first["input"], dict) else f", got {first['input']!r}"
    return f"{where}: {message}{came}" if where else f"{message}{came}"
