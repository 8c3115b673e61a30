"""The configuration: one frozen object, with the origin of each value."""

from bi_performanced.config.load import ConfigError, Options, load, parser
from bi_performanced.config.settings import (
    CacheSettings,
    HttpSettings,
    LogSettings,
    Settings,
    SocketSettings,
    declared,
)

__all__ = [
    "CacheSettings",
    "ConfigError",
    "HttpSettings",
    "LogSettings",
    "Options",
    "Settings",
    "SocketSettings",
    "declared",
    "load",
    "parser",
]
