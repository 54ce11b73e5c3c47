"""uvicorn's HTTP/1.1 protocol with limits for one connection (`--http protocol:LimitedHttp`).

uvicorn itself buffers the head of a request (request line and headers) until it is complete, and any
number of pipelined requests (RFC 9112, section 9.3.2) until they are processed. Without limits one
client could use up all of the memory, and the app would not notice.

The protocol differs from uvicorn's in these points too:

- The head and the body of a response are written in one call.
- There are no WebSockets. A request with `Upgrade` gets an ordinary HTTP response, and what the client sends
  after it is ignored.
- Trailers of a chunked body do not become headers of the request.
- When the service shuts down, a connection that has not received a request yet stays open for a second. uvicorn would
  close it, and the request that is on its way would get no response.
- When the client disconnects, all of its pipelined requests are marked as disconnected, and not only the latest.
"""

import asyncio
from collections import deque
from typing import Any, cast
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

import errors
from middleware import SECURITY_HEADERS

MAX_HEAD_SIZE = 64 * 1024  # bytes of request line and headers; also of the trailers of a chunked body
MAX_PIPELINED = 20  # requests of one connection that wait while an earlier one is processed
FIRST_REQUEST_PERIOD = 1  # seconds that a new connection has for its first request, when the service shuts down
# Rejections: status and detail of the problem.
INVALID = (400, "The request is not valid HTTP/1.1.")
HEAD_TOO_LARGE = (431, f"The request line and headers are over {MAX_HEAD_SIZE:,} bytes.")


class BufferedTransport:
    """A transport that buffers the head of a response, which uvicorn writes separately, and sends it with the body."""

    __slots__ = ("_buffer", "_call_soon", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._call_soon = transport, loop.call_soon
        self._buffer = b""

    def write(self, data: bytes) -> None:
        """Send data together with the data in the buffer, or buffer it until the event loop's next iteration."""
        if self._buffer:
            self._transport.writelines((self._buffer, data))
            self._buffer = b""
        else:
            self._buffer = data
            self._call_soon(self._flush)

    def close(self) -> None:
        """Send the data in the buffer, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._buffer:
            self._transport.write(self._buffer)
            self._buffer = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's protocol, which closes a connection that exceeds a limit.

    The limits are `MAX_HEAD_SIZE` (the response is 431 if possible) and `MAX_PIPELINED`.
    """

    # With these attributes the instance dict would have more than 30, and Python 3.11 would look them up more slowly.
    __slots__ = ("_ignores_input", "_incomplete_size", "_packet_size", "_pending_cycles", "_rejection", "_shuts_down")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # no WebSockets
        self._packet_size = 0  # bytes of the packet that is being parsed
        # Bytes received since the last complete part of a request: a head, a piece of a body, or the trailers. When a
        # part is complete, this is set to minus the packet size, because data_received() then adds the packet size.
        self._incomplete_size = 0
        # The requests that were being processed, or waited, when a pipelined request followed.
        self._pending_cycles: deque[RequestResponseCycle] | None = None
        self._rejection = INVALID
        self._ignores_input = False
        self._shuts_down = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Keep the transport, with a buffer around it. asyncio calls this for a new connection."""
        super().connection_made(cast(asyncio.Transport, BufferedTransport(transport, self.loop)))

    def data_received(self, data: bytes) -> None:
        """Parse a packet. asyncio calls this with the bytes that have arrived."""
        if self._ignores_input:
            return
        self._packet_size = len(data)
        super().data_received(data)
        self._incomplete_size += self._packet_size
        if self._incomplete_size > MAX_HEAD_SIZE and not self.transport.is_closing():
            self._rejection = HEAD_TOO_LARGE
            self.send_400_response("")

    def connection_lost(self, exc: Exception | None) -> None:
        """Mark all requests of the connection as disconnected. asyncio calls this when the connection is closed."""
        # uvicorn itself marks only the latest request. The earlier ones would raise an error.
        for cycle in self._pending_cycles or ():
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close the connection when it has no request, or after its response. uvicorn calls this at shutdown."""
        if self.cycle is None and not self._shuts_down:
            self._shuts_down = True
            self.loop.call_later(FIRST_REQUEST_PERIOD, self.shutdown)
        else:
            super().shutdown()

    def on_headers_complete(self) -> None:
        """Reject the request, process it, or let it wait. The parser calls this after the head."""
        size, before = self._packet_size, self._incomplete_size
        # The packet may contain more than this head. So the bytes received only show that the head may be too large,
        # and only then is it measured. `before` is negative if the packet also contains an earlier part.
        if (size > MAX_HEAD_SIZE or before + size > MAX_HEAD_SIZE) and self._head_size() > MAX_HEAD_SIZE:
            self._rejection = HEAD_TOO_LARGE
            raise ValueError  # uvicorn then calls send_400_response()
        self._incomplete_size = -size
        previous = self.cycle
        super().on_headers_complete()
        if self.pipeline:
            if len(self.pipeline) > MAX_PIPELINED:
                raise ValueError  # as above
            if self._pending_cycles is None:  # a deque takes 700 bytes, and few connections need it
                self._pending_cycles = deque(maxlen=MAX_PIPELINED + 1)
            self._pending_cycles.append(previous)
        # From here on the parser appends the trailers, which must not become headers (RFC 9110, section 6.5.1).
        self.headers = []

    def on_body(self, body: bytes) -> None:
        """Add a piece of the body. The parser calls this for each piece."""
        self._incomplete_size = -self._packet_size
        super().on_body(body)

    def on_chunk_complete(self) -> None:
        """Reset the number of bytes. The parser calls this after each chunk, and after the trailers."""
        self._incomplete_size = -self._packet_size

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Close the connection. Send a problem first, unless an earlier request still waits for its response.

        The client would take the problem for the response to that request. uvicorn calls this when the parser
        rejects a request or a callback of the parser raises.
        """
        cycle = self.cycle
        awaiting_response = (
            cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body)
        )
        if not awaiting_response and not self.pipeline:
            status, detail = self._rejection
            path = unquote(getattr(self, "url", b"").partition(b"?")[0].decode("latin-1"))
            response = errors.problem({"path": path}, status, detail, {"Connection": "close"})
            headers = [*self.server_state.default_headers, *response.raw_headers, *SECURITY_HEADERS]
            lines = b"".join(b"%s: %s\r\n" % pair for pair in headers)
            self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + bytes(response.body))
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Ignore the bytes that follow. uvicorn calls this after a head with Upgrade or CONNECT."""
        self._ignores_input = True

    def _head_size(self) -> int:
        """Return the size of the request line and the headers in bytes, approximately."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
