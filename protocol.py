"""How HTTP/1.1 is read: uvicorn's own protocol, with limits (`--http protocol:LimitedHttp`).

The app hears of a request when its head is complete. Until then uvicorn keeps whatever comes, and
behind it as many requests as are sent, so that one client could take all of the memory.
"""

import asyncio
from collections import deque
from typing import Any, cast
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

import errors
from middleware import SECURITY_HEADERS

MAX_HEAD_SIZE = 64 * 1024  # bytes: request line and headers, and the trailers of a chunked body
MAX_PIPELINED = 20  # requests that wait on one connection, behind the one that is answered
NO_HTTP = (400, "This is not a request in HTTP/1.1.")
TOO_LARGE = (431, f"The head of the request is over {MAX_HEAD_SIZE:,} bytes.")


class CombinedWrites:
    """A transport that sends the head and the body of a response, which uvicorn writes one by one, in one call."""

    __slots__ = ("_call_soon", "_held", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._call_soon = transport, loop.call_soon
        self._held = b""

    def write(self, data: bytes) -> None:
        """Send data with what was written just before, or else hold it until the event loop goes on."""
        if self._held:
            self._transport.writelines((self._held, data))
            self._held = b""
        else:
            self._held = data
            self._call_soon(self._flush)

    def close(self) -> None:
        """Send what is held, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            self._transport.write(self._held)
            self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LimitedHttp(HttpToolsProtocol):
    """Ends a connection whose next head is over `MAX_HEAD_SIZE` (431), or where more than `MAX_PIPELINED` wait."""

    # More names in its dict would be over 30, from where on Python 3.11 looks all of them up more slowly.
    __slots__ = ("_earlier", "_left_http", "_packet", "_refusal", "_unfinished")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # the service has no WebSocket, and an upgrade is a request like others
        self._packet = 0  # bytes that are being read
        self._unfinished = 0  # bytes since the last end of a head, piece of a body, or chunk
        self._earlier: deque[RequestResponseCycle] | None = None  # requests that others waited behind
        self._refusal = NO_HTTP
        self._left_http = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(cast(asyncio.Transport, CombinedWrites(transport, self.loop)))

    def data_received(self, data: bytes) -> None:
        if self._left_http:
            return
        self._packet = len(data)
        super().data_received(data)
        self._unfinished += self._packet
        if self._unfinished > MAX_HEAD_SIZE and not self.transport.is_closing():
            self._refusal = TOO_LARGE
            self.send_400_response("")

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in self._earlier or ():  # uvicorn tells it to the last in line only, and the others would raise
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        read, before = self._packet, self._unfinished  # together at least the head: others may be in the packet
        if (read > MAX_HEAD_SIZE or before + read > MAX_HEAD_SIZE) and self._head_size() > MAX_HEAD_SIZE:
            self._refusal = TOO_LARGE
            raise ValueError  # which ends in send_400_response()
        self._unfinished = -read
        earlier = self.cycle
        super().on_headers_complete()
        if self.pipeline:
            if len(self.pipeline) > MAX_PIPELINED:
                raise ValueError
            if self._earlier is None:  # which few connections need, and it takes 700 bytes
                self._earlier = deque(maxlen=MAX_PIPELINED + 1)
            self._earlier.append(earlier)
        self.headers = []  # where trailers go now: they must not become headers (RFC 9110, section 6.5.1)

    def on_body(self, body: bytes) -> None:
        self._unfinished = -self._packet
        super().on_body(body)

    def on_chunk_complete(self) -> None:  # for the last chunk when its trailers are complete
        self._unfinished = -self._packet

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """End the connection, with a problem unless that would pass for the response to an earlier request."""
        cycle = self.cycle
        awaited = cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body)
        if not awaited and not self.pipeline:
            status, detail = self._refusal
            path = unquote(getattr(self, "url", b"").partition(b"?")[0].decode("latin-1"))
            response = errors.problem({"path": path}, status, detail, {"Connection": "close"})
            headers = [*self.server_state.default_headers, *response.raw_headers, *SECURITY_HEADERS]
            lines = b"".join(b"%s: %s\r\n" % pair for pair in headers)
            self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + bytes(response.body))
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:  # after Upgrade or CONNECT: what follows is no HTTP
        self._left_http = True

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
