"""One connection of the control socket: MessagePack-RPC, bounded in every direction."""

from __future__ import annotations

import os
import socket
import struct
from array import array
from collections.abc import Callable
from contextlib import suppress

import msgspec
import structlog
import trio

from bi_performance_wire.errors import BUSY, INVALID_REQUEST, WireError
from bi_performance_wire.framing import Framer, Limits
from bi_performance_wire.types import Subscribed
from bi_performanced.cache.clients import Attachment
from bi_performanced.config import SocketSettings
from bi_performanced.dispatch import Caller, Dispatcher, Pending
from bi_performanced.events import TOPICS, Subscription
from bi_performanced.fronts.buffers import Buffers

log = structlog.get_logger("performance")

RECEIVE_BYTES = 1 << 18
FLUSH_BYTES = 1 << 18
"""Answers are sent together, but not more than this waits while further requests are run."""
TURN = 0.002
"""Seconds of one connection's messages, after which the others have a turn."""

encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(tuple[int, int, str, msgspec.Raw]).decode
_decode_notification = msgspec.msgpack.Decoder(tuple[int, str, msgspec.Raw]).decode
# Some clients send the method's name as bin: what was called raw once was both.
_decode_bin_request = msgspec.msgpack.Decoder(tuple[int, int, bytes, msgspec.Raw]).decode
_decode_bin_notification = msgspec.msgpack.Decoder(tuple[int, bytes, msgspec.Raw]).decode
_UCRED = struct.Struct("3i")
_SO_PEERPIDFD = 77
"""Of Linux 6.5 and newer: a descriptor of the very process that connected."""
NO_ID = 0
"""Of an answer to what had none."""


class Connection:
    """One peer: its decoder, its requests in flight, and the store it was handed.

    The socket is read and written directly, and waited for only when it is not ready: trio's own
    calls would go through the scheduler for each, twice a request.
    """

    def __init__(
        self,
        peer: socket.socket,
        settings: SocketSettings,
        limits: Limits,
        dispatcher: Dispatcher,
        buffers: Buffers,
    ) -> None:
        self._peer = peer
        self._settings = settings
        self._framer = Framer(limits)
        self._dispatcher = dispatcher
        self.caller = _caller(peer, self)
        self._at_end: list[Callable[[], None]] = []
        self._at_death: list[Callable[[], None]] = []
        self._nursery: trio.Nursery | None = None
        self._watched = False
        self._ended = False
        self.scope = trio.CancelScope()
        self._receiving = trio.CancelScope()
        self._listening = False
        self._closing = False
        self._sending = trio.Lock()
        self._large = trio.Lock()
        """Held from the start of a request whose answer may be large until that has been sent."""
        self._in_flight = 0
        self._waiting = 0
        self._attachment: Attachment | None = None
        self._subscription: Subscription | None = None
        self._heard_at = trio.current_time()
        self._write_began: float | None = None
        self._answers: list[bytes] = []
        self._unsent = 0
        """Bytes of answers, those in `_answers` and the rest of what is being sent."""
        self._buffers = buffers
        self.evicted = False

    def at_end(self, act: Callable[[], None]) -> None:
        """See `Line`."""
        if self._ended:
            act()
        else:
            self._at_end.append(act)

    def at_death(self, act: Callable[[], None]) -> None:
        """See `Line`."""
        self._at_death.append(act)
        if not self._watched and self._nursery is not None:
            self._watched = True
            self._nursery.start_soon(self._watch_process)

    async def _watch_process(self) -> None:
        """A forked child may keep the socket of a process that has ended."""
        pidfd = _process(self._peer, self.caller.pid or 0)
        if pidfd is None:
            return
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        for act in self._at_death:
            act()

    def evict(self) -> None:
        """Make room for the others, telling the peer when that can be done."""
        self.evicted = True
        if self._write_began is None:
            error = WireError(
                BUSY,
                "the daemon holds too many unfinished messages and unread answers",
                field="max_buffered_bytes",
                hint="send and read without pausing, or raise socket.max_buffered_bytes",
            )
            number = self._framer.message_id() or NO_ID
            # One that does not read, or has gone, is cut unsaid.
            with suppress(OSError):
                self._peer.send(encode((1, number, error.to_map(), None)))
        self.scope.cancel()

    def _account(self, *, progress: bool) -> None:
        if not self.evicted:
            self._buffers.update(self, self._framer.pending + self._unsent, progress=progress)

    def overdue(self, now: float) -> str | None:
        """Why the connection is to be cut now, or None."""
        if self._write_began is not None:
            if now - self._write_began > self._settings.write_timeout:
                return "write_timeout"
            return None
        quiet = now - self._heard_at > self._settings.idle_timeout
        busy = self._in_flight or self._waiting
        needed = busy or self._attachment or self._subscription is not None
        if quiet and not needed:
            return "idle_timeout"
        return None

    def finish(self) -> None:
        """Read no more; the connection closes when what is in flight has been answered."""
        self._closing = True
        if self._listening:
            self._receiving.cancel()

    async def serve(self) -> None:
        """Answer requests until the peer closes, breaks the protocol, or is cut."""
        try:
            with self.scope:
                async with trio.open_nursery() as nursery, trio.open_nursery() as watching:
                    self._nursery = watching
                    with self._receiving:
                        await self._receive(nursery)
                    self._listen_to(None, nursery)
                    self._end()
                    watching.cancel_scope.cancel()
        except* OSError:
            # The peer is gone; what it asked for has nobody to go to.
            pass
        finally:
            self._end()
            # Else what it has buffered stays in memory until the collector comes to the circle.
            self.caller = self.caller._replace(line=None)
            self._nursery = None
            if self._attachment is not None:
                self._attachment.close()
            if self._subscription is not None:
                self._subscription.close()
            self._peer.close()
            if not self.evicted:
                self._buffers.update(self, 0, progress=True)

    def _end(self) -> None:
        """Nothing more is read: what was kept for the peer ends, and who waits for it is told."""
        self._ended = True
        acts, self._at_end = self._at_end, []
        for act in acts:
            act()

    async def _receive(self, nursery: trio.Nursery) -> None:
        framer = self._framer
        unfinished = False
        while not self._closing:
            # `finish` cancels here and nowhere else: an answer is never cut in the middle.
            self._listening = True
            await trio.lowlevel.wait_readable(self._peer)
            self._listening = False
            try:
                data = self._peer.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            if not data:
                return
            self._heard_at = trio.current_time()
            framer.feed(data)
            frames = 0
            turn_ends = self._heard_at + TURN
            try:
                while (frame := framer.next_frame()) is not None:
                    frames += 1
                    if frames & 3 == 0 and trio.current_time() > turn_ends:
                        # So many small messages fit into what is received at once that the other
                        # connections would wait for them all.
                        await trio.lowlevel.checkpoint()
                        turn_ends = trio.current_time() + TURN
                    answer = self._run(frame, nursery)
                    if isinstance(answer, tuple):
                        await self._flush()
                        await self._hand_over(*answer)
                    elif answer is not None:
                        self._answers.append(answer)
                        self._unsent += len(answer)
                        if self._unsent > FLUSH_BYTES:
                            await self._flush()
            except WireError as error:
                number = framer.message_id()
                answer = encode((1, NO_ID if number is None else number, error.to_map(), None))
                self._answers.append(answer)
                self._unsent += len(answer)
                await self._flush()
                return
            if framer.pending or unfinished:
                unfinished = framer.pending > 0
                self._account(progress=frames > 0)
            if self._answers:
                await self._flush()

    def _run(self, frame: bytes, nursery: trio.Nursery) -> bytes | tuple[int, Attachment] | None:
        """Run one message: its encoded answer, (message id, Attachment), or None for later.

        Raises WireError for what is not a request or notification.
        """
        try:
            number, method, params = _parse(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise _not_a_request() from None
        try:
            result = self._dispatcher.start(self._dispatcher.find(method), params, self.caller)
            if isinstance(result, Pending):
                self._later(number, result, nursery)
                return None
        except WireError as error:
            return None if number is None else encode((1, number, error.to_map(), None))
        if isinstance(result, Attachment):
            if self._attachment is not None:
                # It holds a page and descriptors: one connection has one of them.
                self._attachment.close()
            self._attachment = result
            return number or 0, result
        if isinstance(result, Subscription):
            self._listen_to(result, nursery)
            result = Subscribed(topics=[name for name in TOPICS if name in result.topics])
        return None if number is None else encode((1, number, None, result))

    def _listen_to(self, subscription: Subscription | None, nursery: trio.Nursery) -> None:
        """Send the events of this subscription from now on, and no more of an earlier one."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
        if subscription is not None and subscription.topics:
            self._subscription = subscription
            nursery.start_soon(self._push, subscription)
        elif subscription is not None:
            subscription.close()

    async def _push(self, subscription: Subscription) -> None:
        while (event := await subscription.next()) is not None:
            data = encode((2, "event", [event.body]))
            self._answers.append(data)
            self._unsent += len(data)
            # One that does not read has its events wait in the subscription, which is bounded.
            await self._flush()

    def _later(self, number: int | None, work: Pending, nursery: trio.Nursery) -> None:
        if work.row.waits:
            # Bounded by what it waits for: it must not keep other requests from being made.
            nursery.start_soon(self._wait, number, work)
            return
        if self._in_flight >= self._settings.max_in_flight:
            work.close()
            raise WireError(
                BUSY,
                f"{self._in_flight} requests of this connection are unanswered, the limit",
                field="max_in_flight",
                hint="wait for answers, or raise socket.max_in_flight",
            )
        self._in_flight += 1
        nursery.start_soon(self._finish, number, work)

    async def _wait(self, number: int | None, work: Pending) -> None:
        self._waiting += 1
        try:
            await self._answer(number, work)
        finally:
            work.close()
            self._waiting -= 1

    async def _finish(self, number: int | None, work: Pending) -> None:
        try:
            if work.row.large:
                async with self._large:
                    await self._answer(number, work)
            else:
                await self._answer(number, work)
        finally:
            work.close()
            self._in_flight -= 1

    async def _answer(self, number: int | None, work: Pending) -> None:
        failed, result = None, None
        try:
            result = await work.run()
        except WireError as error:
            failed = error.to_map()
        if number is not None:
            answer = encode((1, number, failed, result))
            del result
            self._answers.append(answer)
            self._unsent += len(answer)
            await self._flush()

    async def _flush(self) -> None:
        if not self._sending.locked():
            self._sending.acquire_nowait()
        else:
            self._account(progress=False)
            await self._sending.acquire()
        try:
            if not self._answers:
                return
            data = self._answers[0] if len(self._answers) == 1 else b"".join(self._answers)
            self._answers.clear()
            waited = await self._send(data)
            self._unsent -= len(data)
            if waited:
                self._account(progress=True)
        finally:
            self._sending.release()

    async def _send(self, data: bytes) -> bool:
        """Send all; whether the peer had to be waited for."""
        try:
            sent = self._peer.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return False
        self._write_began = trio.current_time()
        self._account(progress=True)
        with memoryview(data) as view:
            while sent < len(data):
                await trio.lowlevel.wait_writable(self._peer)
                try:
                    sent += self._peer.send(view[sent:])
                except BlockingIOError:
                    continue
        self._write_began = None
        return True

    async def _hand_over(self, number: int, attachment: Attachment) -> None:
        """Send the answer to `attach` with the descriptors."""
        data = encode((1, number, None, attachment.reply))
        async with self._sending:
            self._write_began = trio.current_time()
            try:
                await trio.lowlevel.wait_writable(self._peer)
                rights = array("i", attachment.fds)
                sent = self._peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            finally:
                attachment.close_fds()
            self._write_began = None
            if sent < len(data):
                await self._send(data[sent:])


def _parse(frame: bytes) -> tuple[int | None, str, msgspec.Raw]:
    """Message id (None for a notification), method and params; raises what msgspec does."""
    number: int | None = None
    if frame[0] == 0x94:
        try:
            kind, number, method, params = _decode_request(frame)
        except msgspec.ValidationError:
            kind, number, raw, params = _decode_bin_request(frame)
            method = raw.decode()
        if kind != 0 or not 0 <= number < 1 << 32:
            raise _not_a_request()
    else:
        try:
            kind, method, params = _decode_notification(frame)
        except msgspec.ValidationError:
            kind, raw, params = _decode_bin_notification(frame)
            method = raw.decode()
        if kind != 2:
            raise _not_a_request()
    return number, method, params


def _not_a_request() -> WireError:
    return WireError(
        INVALID_REQUEST,
        "a message is [0, id, method, params] or [2, method, params]",
        hint="params is [] or [map]",
    )


def _process(peer: socket.socket, pid: int) -> int | None:
    """A descriptor that is readable when the process has ended that connected, where there is
    one: not for a process of a PID namespace that cannot be seen from here."""
    try:
        return peer.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        pass
    try:
        return os.pidfd_open(pid) if pid else None
    except OSError:
        return None


def _caller(peer: socket.socket, line: Connection) -> Caller:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(credentials)
    return Caller("socket", uid, gid, pid, line)
