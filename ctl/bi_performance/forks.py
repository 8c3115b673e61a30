"""What a forked child has to do with what it got from its parent.

`os.register_at_fork` cannot be undone: each call keeps its object, and all that this holds, for
ever. So there is one hook, over objects that may go.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Final

_hooks: Final[list[weakref.WeakMethod[Callable[[], Any]]]] = []
"""In the order in which they were made, the hooks of objects that were collected among them."""
_SWEEP: Final = 64
_sweep_at = _SWEEP


def after_fork(method: Callable[[], Any]) -> None:
    """Have a bound method called in each forked child, as long as its object is there."""
    global _sweep_at
    _hooks.append(weakref.WeakMethod(method))
    if len(_hooks) >= _sweep_at:
        # Without a lock, which a child might find taken: an append that comes between is kept.
        for hook in [hook for hook in _hooks if hook() is None]:
            _hooks.remove(hook)
        _sweep_at = 2 * len(_hooks) + _SWEEP


def _call_all() -> None:
    for hook in list(_hooks):
        if (method := hook()) is not None:
            method()


os.register_at_fork(after_in_child=_call_all)
