"""What `cache.tenants` says: a quota for each namespace."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from bi_performance_wire.tenants import check_tenant

MOST_TENANTS: Final = 256
LEAST_BYTES: Final = 64 << 10
_UNITS: Final = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_QUOTA: Final = re.compile(r"\s*(\d{1,15})\s*([kmg]ib)?\s*(?:/\s*(\d{1,9})\s*)?", re.IGNORECASE)


class Quota(NamedTuple):
    """What a namespace may have in the store."""

    max_bytes: int
    max_entries: int | None = None


def quotas_of(words: Sequence[str]) -> Mapping[bytes, Quota]:
    """The quota of each namespace that is named. Raises ValueError with what is wrong."""
    found: dict[bytes, Quota] = {}
    for word in words:
        name, equals, said = word.partition("=")
        match = _QUOTA.fullmatch(said)
        if not equals or match is None:
            raise ValueError(
                f'NAME=BYTES or NAME=BYTES/ENTRIES, as "shop=64 MiB/5000", not {word!r:.80}'
            )
        count, unit, entries = match.groups()
        quota = Quota(int(count) * _UNITS[(unit or "").lower()], int(entries) if entries else None)
        key = check_tenant(name.strip()).encode()
        if key in found:
            raise ValueError(f"one quota for a namespace; {name.strip()} has two")
        if quota.max_bytes < LEAST_BYTES or quota.max_entries == 0:
            raise ValueError(f"at least 64 KiB and one entry for a namespace, not {word!r:.80}")
        found[key] = quota
    if len(found) > MOST_TENANTS:
        raise ValueError(f"at most {MOST_TENANTS} namespaces with a quota, not {len(found)}")
    return found
