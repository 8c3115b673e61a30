"""The configuration: one frozen object, with the origin of each value."""

from bi_performanced.config.load import ConfigError, Options, load, parser
from bi_performanced.config.settings import (
    AdviceSettings,
    CacheSettings,
    HttpSettings,
    LogSettings,
    MonitoringSettings,
    Settings,
    SocketSettings,
    declared,
)

__all__ = [
    "AdviceSettings",
    "CacheSettings",
    "ConfigError",
    "HttpSettings",
    "LogSettings",
    "MonitoringSettings",
    "Options",
    "Settings",
    "SocketSettings",
    "declared",
    "load",
    "parser",
]
