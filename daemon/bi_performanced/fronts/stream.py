"""The stream that an HTTP connection's server reads and writes: it lets nothing else through.

Hypercorn would answer upgrades, HTTP/2 and bodies of any size, has no deadline for a request's
head, and shields its writes from cancellation. This stream stands between it and the socket: a
request's head is collected within size and time, parsed by h11, and only a plain HTTP/1.1 request
is handed on; a write has a deadline that the shield does not reach.
"""

from __future__ import annotations

import math
import re

import h11
import trio

from bi_performanced.config import HttpSettings
from bi_performanced.fronts.problem import raw_response

_HEAD_END = re.compile(rb"\n\r?\n")
_RECEIVE = 1 << 16
LINGER = 1.0
"""Seconds for a client that is refused to stop sending and read why."""


class Refused(Exception):
    """A request that is answered here: status and sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class GuardedStream:
    """What hypercorn's TCPServer uses of a trio stream, over one accepted socket."""

    def __init__(self, stream: trio.SocketStream, settings: HttpSettings) -> None:
        self._stream = stream
        self._settings = settings
        self._buffer = bytearray()
        self._body_left = 0
        self._writing: trio.CancelScope | None = None
        self._ended = False
        self._aborted = False
        self._stopping = False
        self._unanswered = 0
        self.scope = trio.CancelScope()
        """Around the connection's server: cancelled when nothing more can come of it."""
        self.socket = stream.socket

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes of a request that may be served; b"" at the end."""
        try:
            data = b"" if self._ended else await self._receive()
        except trio.BrokenResourceError:
            # Reset by the client, which wants no answer either.
            self._unanswered = 0
            data = b""
        if not data:
            self._ended = True
            self._end_when_answered()
        return data

    def answered(self) -> None:
        """A request that was handed on has had its answer."""
        self._unanswered -= 1
        self._end_when_answered()

    def stop(self) -> None:
        """Serve no further request: the connection ends with the answer that is under way."""
        self._stopping = True
        self._end_when_answered()

    def _end_when_answered(self) -> None:
        # The server itself would wait for its idle timeout.
        if (self._ended or self._stopping) and self._unanswered <= 0:
            self.scope.cancel()

    async def _receive(self) -> bytes:
        if self._body_left:
            if not self._buffer:
                with trio.move_on_after(self._settings.request_timeout):
                    self._buffer += await self._stream.receive_some(_RECEIVE)
                if not self._buffer:
                    return b""
            return self._take(min(self._body_left, len(self._buffer)), body=True)
        try:
            size = await self._head()
            if not size:
                return b""
            self._body_left = self._body_length(bytes(self._buffer[:size]))
        except Refused as refused:
            await self._answer(refused)
            return b""
        self._unanswered += 1
        return self._take(size, body=False)

    def _take(self, size: int, *, body: bool) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        if body:
            self._body_left -= size
        return data

    async def _head(self) -> int:
        """Collect a request's head; its size, or 0 when the client is done. Raises Refused."""
        settings = self._settings
        timeout = settings.header_timeout if self._buffer else settings.idle_timeout
        if self._unanswered > 0 and not self._buffer:
            # The client waits for us, as one that listens to events does for hours.
            timeout = math.inf
        deadline = trio.current_time() + timeout
        while not (end := _HEAD_END.search(self._buffer)):
            if len(self._buffer) > settings.max_header:
                raise Refused(431, f"a request's head has at most {settings.max_header} bytes")
            empty = not self._buffer
            with trio.CancelScope(deadline=deadline):
                data = await self._stream.receive_some(_RECEIVE)
                if not data:
                    return 0
                self._buffer += data
                if empty:
                    deadline = trio.current_time() + settings.header_timeout
                continue
            if empty:
                return 0
            raise Refused(408, f"the head took more than {settings.header_timeout:g} s to arrive")
        if end.end() > settings.max_header:
            raise Refused(431, f"a request's head has at most {settings.max_header} bytes")
        return end.end()

    def _body_length(self, head: bytes) -> int:
        """Check a request's head; the length of its body in bytes. Raises Refused."""
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=self._settings.max_header)
        try:
            parser.receive_data(head)
            request = parser.next_event()
        except h11.RemoteProtocolError as error:
            # What was sent, as Python shows it, is no help to its sender.
            what = re.sub(r":? bytearray\(.*", "", str(error), flags=re.DOTALL)
            raise Refused(400, f"not an HTTP/1.1 request: {what}") from None
        if not isinstance(request, h11.Request):
            raise Refused(400, "not an HTTP/1.1 request")
        headers = [(bytes(name), bytes(value)) for name, value in request.headers]
        names = [name for name, _ in headers]
        if request.http_version != b"1.1":
            raise Refused(505, "only HTTP/1.1 is served here")
        if request.method == b"CONNECT" or not request.target.startswith(b"/"):
            raise Refused(400, "the request's target must be a path of this server")
        if b"upgrade" in names or b"http2-settings" in names:
            raise Refused(501, "connections are not upgraded to another protocol here")
        if b"transfer-encoding" in names:
            raise Refused(411, "send a Content-Length: chunked bodies are not taken")
        if b"expect" in names:
            raise Refused(417, "expectations are not met here")
        lengths = {value for name, value in headers if name == b"content-length"}
        length = int(lengths.pop()) if len(lengths) == 1 else 0
        if lengths and length == 0:
            raise Refused(400, "the request has two lengths")
        if length > self._settings.max_body:
            raise Refused(413, f"a body has at most {self._settings.max_body} bytes")
        return length

    async def _answer(self, refused: Refused) -> None:
        self._ended = True
        try:
            await self.send_all(raw_response(refused.status, refused.detail))
            await self._stream.send_eof()
            # Closed with input unread, the connection would be reset, and the answer with it.
            with trio.move_on_after(LINGER):
                while await self._stream.receive_some(_RECEIVE):
                    pass
        except trio.BrokenResourceError:
            # Who was refused has gone without waiting to hear why.
            return

    async def send_all(self, data: bytes) -> None:
        """Send within the write deadline; raises BrokenResourceError when that passes."""
        if not self._aborted:
            with trio.move_on_after(self._settings.write_timeout) as self._writing:
                await self._stream.send_all(data)
            cut = self._writing.cancelled_caught
            self._writing = None
            if not cut:
                return
        self._ended = self._aborted = True
        raise trio.BrokenResourceError("the client did not take its answer in time")

    def abort(self) -> None:
        """End a write that is under way, whatever shields it, and allow no other."""
        self._ended = self._aborted = True
        if self._writing is not None:
            self._writing.cancel()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
