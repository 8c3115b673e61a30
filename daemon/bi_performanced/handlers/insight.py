"""The commands that tell what the cache knows of its keys."""

from __future__ import annotations

from bi_performanced.cache.component import Cache
from bi_performanced.dispatch import Handler
from bi_performanced.handlers.cache import key_bytes


def handlers(cache: Cache) -> dict[str, Handler]:
    """A handler for each of them. Keys are told over the control socket alone: none has a route."""
    return {
        "cache.breakdown": lambda args, caller: (
            cache.breaking.by_prefix(args.limit)
            if args.by == "prefix"
            else cache.breaking.by_process(args.limit)
        ),
        "cache.top": lambda args, caller: cache.ranking.top(args.by, args.limit),
        "cache.explain": lambda args, caller: cache.explainer.explain(key_bytes(args.key)),
    }
