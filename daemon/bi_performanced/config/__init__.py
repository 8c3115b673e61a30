"""The configuration: one frozen object, with the origin of each value."""

from bi_performanced.config.load import ConfigError, Options, load, parser
from bi_performanced.config.settings import (
    AdviceSettings,
    CacheSettings,
    HttpSettings,
    LeaseSettings,
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
    "LeaseSettings",
    "LogSettings",
    "MonitoringSettings",
    "Options",
    "Settings",
    "SocketSettings",
    "declared",
    "load",
    "parser",
]
