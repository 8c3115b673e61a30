"""Who may ask over HTTP: the right Host, no foreign page, and for changes what http.post says."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from bi_performance_wire.errors import PERMISSION_DENIED, UNAVAILABLE, WireError
from bi_performanced.config import HttpSettings
from bi_performanced.fronts.ports import connection_uid

OPEN_PATHS = frozenset({"/performance/livez", "/performance/readyz"})
"""Answered whatever http.private says: they tell nothing but up or not."""


class Misdirected(Exception):
    """A Host that is not ours (421)."""


class Guard:
    """The checks of one listener at `bound` (host, port)."""

    def __init__(self, settings: HttpSettings, bound: tuple[str, int]) -> None:
        self._settings = settings
        self._port = bound[1]
        names = {"localhost", "127.0.0.1", "::1", bound[0].lower()}
        names.update(name.lower() for name in settings.allowed_hosts)
        self._names = names

    def check(
        self,
        *,
        changes: bool,
        path: str,
        headers: Mapping[str, str],
        client: tuple[str, int],
        server: tuple[str, int],
    ) -> None:
        """Raises Misdirected or WireError (permission_denied, unavailable)."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise Misdirected(host)
        self._refuse_foreign_page(headers)
        if (changes or self._settings.private) and path not in OPEN_PATHS:
            self._check_caller(headers, client, server)

    def _is_ours(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            port = parts.port
        except ValueError:
            return False
        name = (parts.hostname or "").rstrip(".")
        return name in self._names and port in (None, self._port) and "@" not in host

    def _refuse_foreign_page(self, headers: Mapping[str, str]) -> None:
        """A page of another site, open in a browser on this host, must reach nothing."""
        for header in ("origin", "referer"):
            given = headers.get(header)
            if given is not None and not self._is_ours(_site(given)):
                raise WireError(
                    PERMISSION_DENIED,
                    f"a page of another site asked ({header} is not this server)",
                    field=header,
                )
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise WireError(
                PERMISSION_DENIED, "a page of another site asked", field="sec-fetch-site"
            )

    def _check_caller(
        self, headers: Mapping[str, str], client: tuple[str, int], server: tuple[str, int]
    ) -> None:
        how = self._settings.post
        if how == "token":
            self._check_token(headers)
            return
        if not ipaddress.ip_address(client[0].split("%")[0]).is_loopback:
            raise WireError(
                PERMISSION_DENIED,
                "only processes of this host may do this",
                hint="use bi-performance on the host, or set http.post to token",
            )
        if how == "owner":
            uid = connection_uid(client, server)
            if uid not in (0, os.getuid()):
                raise WireError(
                    PERMISSION_DENIED,
                    "only the daemon's own user and root may do this (http.post is owner)",
                    hint="use bi-performance, which asks over the control socket",
                )

    def _check_token(self, headers: Mapping[str, str]) -> None:
        path = self._settings.token_file
        token = _read_token(path)
        given = re.sub(r"(?i)^bearer +", "", headers.get("authorization", "")).strip()
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise WireError(
                PERMISSION_DENIED,
                "the request does not carry the right token (http.post is token)",
                field="authorization",
                hint="send Authorization: Bearer TOKEN",
            )


def _site(url: str) -> str:
    """Host and port of a URL; empty for what is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _read_token(path: Path | None) -> str:
    try:
        if path is None:
            raise OSError(0, "http.token_file is not set")
        mode = path.stat().st_mode
        if stat.S_IMODE(mode) & 0o037:
            raise OSError(0, f"its mode is {stat.S_IMODE(mode):04o}, not 0600 or 0640")
        token = path.read_text(encoding="utf-8")[:4096].strip()
        if len(token) < 16:
            raise OSError(0, "it holds fewer than 16 characters")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise WireError(
            UNAVAILABLE,
            f"the token cannot be checked: {reason}",
            field="http.token_file",
            hint="name a file of mode 0600 that holds a long random token",
        ) from None
    return token
