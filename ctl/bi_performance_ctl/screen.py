"""The terminal while a live view has it: drawn whole, keys without Enter, all put back after.

Everything is waited for in one place: the daemon's answer, the next look, a key, the terminal's
new size. So a daemon that does not answer holds up neither `q` nor the window.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.live import Live

from bi_performance.protocol import Steps, TimedOut

T = TypeVar("T")

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Quit(Exception):
    """The person has seen enough."""


class Ended(BaseException):
    """A signal asks for the end; the terminal is put back first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Screen:
    """A context manager; inside, the terminal is its own."""

    def __init__(self, out: Terminal, make: Callable[[int, int], RenderableType]) -> None:
        """`make` draws the view for so many columns and lines."""
        self._out = out
        self._make = make
        self._live: Live | None = None
        self._keys: int | None = None
        self._before: list[Any] | None = None
        self._wake = (-1, -1)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._listen(stack)
            self._take_keys()
            stack.callback(self._give_keys_back)
            stack.callback(self._stop)
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    # ── signals and keys

    def _listen(self, stack: ExitStack) -> None:
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        stack.callback(os.close, read)
        stack.callback(os.close, write)
        self._wake = (read, write)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(write, warn_on_full_buffer=False))
        for number in (signal.SIGWINCH, signal.SIGTSTP):
            stack.callback(signal.signal, number, signal.signal(number, _heard))
        for number in ENDING:
            stack.callback(signal.signal, number, signal.signal(number, _end))

    def _take_keys(self) -> None:
        if sys.stdin is None or not sys.stdin.isatty():
            return
        self._keys = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._keys)
        tty.setcbreak(self._keys)

    def _give_keys_back(self) -> None:
        if self._before is not None:
            with suppress(termios.error):
                # The terminal may be gone.
                termios.tcsetattr(0, termios.TCSADRAIN, self._before)
            self._before = None

    def _start(self) -> None:
        self._live = Live(
            console=self._out,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start()

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def draw(self) -> None:
        """Show the view as it is now, in the terminal's present size."""
        if self._live is not None:
            width, height = self._out.size
            self._live.update(self._make(width, height), refresh=True)

    def _suspend(self) -> None:
        """Ctrl-Z: give the terminal back to the shell, and take it again with `fg`."""
        self._stop()
        self._give_keys_back()
        before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, before)
        self._take_keys()
        self._start()
        self.draw()

    # ── waiting

    def pause(self, until: float) -> None:
        """Wait until a monotonic time, or less when a key asks for a look now. Raises Quit."""
        while (left := until - time.monotonic()) > 0:
            if self._wait(left):
                return

    def drive(self, steps: Steps[T], seconds: float) -> T:
        """Run an exchange with the daemon. Raises TimedOut after `seconds`, and Quit."""
        deadline = time.monotonic() + seconds
        try:
            while True:
                waiting, event = next(steps)
                ready = False
                while not ready:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise TimedOut(f"no answer within {seconds:g} s")
                    ready = self._wait(left, waiting.fileno(), event) == "ready"
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            steps.close()

    def _wait(self, seconds: float, fd: int | None = None, event: int = 0) -> str | None:
        """Wait once: `ready` when the descriptor is, `key` when a look was asked for."""
        poll = select.poll()
        poll.register(self._wake[0], select.POLLIN)
        if self._keys is not None:
            poll.register(self._keys, select.POLLIN)
        if fd is not None:
            poll.register(fd, event)
        found = None
        for which, _ in poll.poll(seconds * 1000):
            if which == fd:
                found = "ready"
            elif which == self._wake[0]:
                self._signalled()
            elif self._key():
                found = found or "key"
        return found

    def _signalled(self) -> None:
        numbers = os.read(self._wake[0], 4096)
        if signal.SIGTSTP in numbers:
            self._suspend()
        elif signal.SIGWINCH in numbers:
            self.draw()

    def _key(self) -> bool:
        """Whether a look is asked for now. Raises Quit."""
        assert self._keys is not None
        try:
            typed = os.read(self._keys, 64)
        except OSError:
            typed = b""
        if not typed:
            # The terminal is gone, or its input is closed: without keys from now on.
            self._keys = None
            return False
        # Keys that were hit quickly come together.
        if set(typed) & set(b"qQ\x04"):
            raise Quit
        return bool(set(typed) & set(b" \nr"))


def _heard(number: int, frame: FrameType | None) -> None:
    """Nothing here: the number is in the wake-up pipe, where it is waited for."""


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(number)
