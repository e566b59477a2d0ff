"""The config: every key of the TOML file, typed and closed.

``nas config`` prints the resolved file with these explanations. Each key can be given on the command line too:
``--set proxy.epochs=3``. Sections are frozen values; unknown keys and impossible values raise ConfigError, one
line that names the key, the value and what would be valid.
"""

from __future__ import annotations

from nas.config.explaining import explained
from nas.config.reading import assign, make, read, resume
from nas.config.sections import (
    Config,
    DataConfig,
    ExecutorConfig,
    ExportConfig,
    LadderConfig,
    ProxyConfig,
    PruneConfig,
    Recipe,
    RetrainConfig,
    SearchConfig,
    SpaceConfig,
)
from nas.config.towers import TowersConfig

__all__ = [
    "Config",
    "DataConfig",
    "ExecutorConfig",
    "ExportConfig",
    "LadderConfig",
    "ProxyConfig",
    "PruneConfig",
    "Recipe",
    "RetrainConfig",
    "SearchConfig",
    "SpaceConfig",
    "TowersConfig",
    "assign",
    "explained",
    "make",
    "read",
    "resume",
]
