"""`@cached`: a function whose results are kept by its arguments, for all processes of the host.

The key of a call is `module.qualname:` and 32 hexadecimal digits: BLAKE2b of the arguments as they
are bound to the function's parameters, defaults included, in the order of the signature. So
`f(1)`, `f(a=1)` and `f(a=1, b=DEFAULT)` are one key, in every process and after every restart; `1`,
`1.0` and `True` are three. Arguments are encoded as values are; dicts and sets are taken by their
content, in whichever order. What is no value (an object of one's own, as `self`) needs `key=`: a
function of the same arguments, or a text such as "user:{id}" with their names in braces.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Coroutine, Mapping
from string import Formatter
from typing import Any, Final, Generic, ParamSpec, Self, TypeVar, cast

from bi_performance.checks import Key, key_bytes, key_text
from bi_performance.drivers import let_others_run
from bi_performance.loading import Work
from bi_performance.options import LoadContext, Options
from bi_performance.reader import Outcome
from bi_performance.stale import Server
from bi_performance.worlds import THREADS, World, is_async, run_now, running_world
from bi_performance_wire.value import encode

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
CONTEXT: Final = "ctx"
"""A parameter of this name is given the LoadContext, and is no part of the key."""


class Cached(Generic[P, R]):
    """A decorated function. Called as it is; a method when it was one."""

    _async = False
    __name__: str

    def __init__(
        self,
        function: Callable[P, R],
        server: Server,
        options: Options,
        key: str | Callable[..., Key] | None,
    ) -> None:
        self.__wrapped__ = function
        functools.update_wrapper(self, function)
        self._server = server
        self._loader = server.loader
        self._options = options
        self._key = key
        signature = inspect.signature(function)
        self._context = CONTEXT in signature.parameters
        self._signature = signature.replace(
            parameters=[each for name, each in signature.parameters.items() if name != CONTEXT]
        )
        self._name = f"{function.__module__}.{function.__qualname__}"
        if isinstance(key, str):
            _check_template(key, self._signature.parameters)

    def __call__(self, *args: P.args, **named: P.kwargs) -> R:
        name = self._key_of(args, named)
        if self._options.plain and (value := self._loader.read(name)).__class__ is not Outcome:
            found: R = value
            return found
        return self._run(self._serve(THREADS, name, self._factory(args, named)))

    def refresh(self, *args: P.args, **named: P.kwargs) -> R:
        """Call the function now, keep its result, and return it; awaited when it is async."""
        world = running_world() if self._async else THREADS
        name, factory = self._key_of(args, named), self._factory(args, named)
        return self._run(self._server.refresh(world, name, factory, self._options))

    def invalidate(self, *args: Any, **named: Any) -> Any:
        """Delete what is kept for these arguments; awaited when the function is async.

        True when no process reads it any more, False when the daemon is away.
        """
        found: Any = self._run(self._delete(self._key_of(args, named)))
        return found

    def key(self, *args: P.args, **named: P.kwargs) -> Any:
        """The key for these arguments: text, where it is text."""
        return key_text(self._key_of(args, named))

    def __reduce__(self) -> str:
        # By its name, as a function: for another process it is what that imports.
        return self.__wrapped__.__qualname__

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return Bound(self, instance)

    async def _delete(self, name: bytes) -> bool:
        world = running_world() if self._async else THREADS
        return await self._loader.delete(world, name)

    async def _serve(self, world: World, name: bytes, factory: Callable[..., Any]) -> Any:
        if self._options.plain:
            return await self._loader.load(world, Work(name, factory, self._options))
        return (await self._server.serve(world, name, factory, self._options)).value

    def _run(self, work: Coroutine[Any, Any, Any]) -> R:
        """What the function gives: a coroutine, or what that comes to."""
        found: Any = work if self._async else run_now(work)
        result: R = found
        return result

    def _factory(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Callable[..., Any]:
        function = self.__wrapped__
        if self._context:

            def with_context(context: LoadContext) -> Any:
                return function(*args, **{**named, CONTEXT: context})

            if self._async:

                async def awaiting_context(context: LoadContext) -> Any:
                    return await with_context(context)

                return awaiting_context
            return with_context
        return functools.partial(function, *args, **named)

    def _key_of(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> bytes:
        if callable(self._key):
            return key_bytes(self._key(*args, **named))
        bound = self._signature.bind(*args, **named)
        bound.apply_defaults()
        if self._key is not None:
            try:
                return key_bytes(self._key.format_map(bound.arguments))
            except (AttributeError, LookupError) as error:
                raise ValueError(
                    f"{self._name}: the key {self._key!r} cannot be made of these arguments:"
                    f" {type(error).__name__}: {error}"
                ) from error
        digest = hashlib.blake2b(digest_size=16)
        for name, value in bound.arguments.items():
            try:
                digest.update(encode([name, _ordered(value)], compress=False))
            except RecursionError:
                raise TypeError(
                    f"{self._name}: the argument {name!r} cannot be part of a key: it contains"
                    " itself, or is nested too deep; give cached(key=…)"
                ) from None
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{self._name}: the argument {name!r} cannot be part of a key"
                    f" ({error}); give cached(key=…)"
                ) from None
        return key_bytes(f"{self._name}:{digest.hexdigest()}")


class AsyncCached(Cached[P, R]):
    """One that is awaited."""

    _async = True

    async def __call__(self, *args: Any, **named: Any) -> Any:  # type: ignore[override]
        # R is the coroutine that is returned here; that cannot be said of an async method.
        name = self._key_of(args, named)
        if self._options.plain and (value := self._loader.read(name)).__class__ is not Outcome:
            await let_others_run()
            return value
        return await self._serve(running_world(), name, self._factory(args, named))


class Bound:
    """A decorated method of an object."""

    def __init__(self, function: Cached[..., Any], instance: object) -> None:
        self._function = function
        self._instance = instance
        functools.update_wrapper(self, function.__wrapped__)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._instance, self._function.__name__)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._function(self._instance, *args, **named)

    def refresh(self, *args: Any, **named: Any) -> Any:
        """See Cached."""
        return self._function.refresh(self._instance, *args, **named)

    def invalidate(self, *args: Any, **named: Any) -> Any:
        """See Cached."""
        return self._function.invalidate(self._instance, *args, **named)

    def key(self, *args: Any, **named: Any) -> Any:
        """See Cached."""
        return self._function.key(self._instance, *args, **named)


def cached(
    server: Server, options: Options, key: str | Callable[..., Key] | None
) -> Callable[[Callable[P, R]], Cached[P, R]]:
    """The decorator."""
    if key is not None and not isinstance(key, str) and not callable(key):
        raise TypeError(f"key is a text or a function, not {type(key).__name__}")

    def decorate(function: Callable[P, R]) -> Cached[P, R]:
        kind = AsyncCached if is_async(function) else Cached
        return kind(function, server, options, key)

    return decorate


def _check_template(template: str, parameters: Mapping[str, object]) -> None:
    """Raises ValueError for a key that names what is no parameter."""
    known = ", ".join(parameters) or "none"
    try:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ValueError(f"the key {template!r} is no text with names in braces: {error}") from None
    for field in fields:
        name = re.split(r"[.\[]", field, maxsplit=1)[0]
        if name not in parameters:
            raise ValueError(
                f"the key {template!r} names {name!r}, which is no parameter of the function;"
                f" it has: {known}"
            )


def _ordered(value: Any) -> Any:
    """A value whose encoding does not depend on the order in which dicts and sets were filled.

    Every container becomes a list that begins with its kind, so that no two of them are one.
    """
    kind = type(value)
    if kind is dict:
        pairs = [[encode(_ordered(key), compress=False), _ordered(value[key])] for key in value]
        return ["dict", sorted(pairs, key=lambda pair: cast(bytes, pair[0]))]
    if kind in (set, frozenset):
        return [kind.__name__, sorted(encode(_ordered(item), compress=False) for item in value)]
    if kind in (list, tuple):
        return [kind.__name__, [_ordered(item) for item in value]]
    return value
