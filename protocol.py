"""uvicorn's HTTP/1.1 protocol with limits for one connection (`--http protocol:LimitedHttp`).

uvicorn itself buffers the head of a request (request line and headers) until it is complete, and any
number of pipelined requests (RFC 9112, section 9.3.2) until they are processed. Without limits one
client could use up all of the memory, and the app would not notice.
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
INVALID = (400, "The request is not valid HTTP/1.1.")
TOO_LARGE = (431, f"The request line and headers are over {MAX_HEAD_SIZE:,} bytes.")


class CombinedWrites:
    """A transport that combines the head and the body of a response, which uvicorn writes separately, in one call."""

    __slots__ = ("_call_soon", "_held", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._call_soon = transport, loop.call_soon
        self._held = b""

    def write(self, data: bytes) -> None:
        """Send data together with the data that is held, or hold it until the event loop's next iteration."""
        if self._held:
            self._transport.writelines((self._held, data))
            self._held = b""
        else:
            self._held = data
            self._call_soon(self._flush)

    def close(self) -> None:
        """Send the data that is held, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            self._transport.write(self._held)
            self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's protocol, which closes a connection that exceeds a limit.

    The limits are `MAX_HEAD_SIZE` (the response is 431 if possible) and `MAX_PIPELINED`.
    """

    # As slots, because Python 3.11 looks up attributes more slowly in an instance dict of more than 30.
    __slots__ = ("_ignores_input", "_incomplete_size", "_packet_size", "_pending_cycles", "_rejection")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # an upgrade to WebSocket is treated as an ordinary request
        self._packet_size = 0  # bytes of the packet that is being parsed
        # Bytes received after the packet with the last complete head, piece of a body, or chunk. The size of that
        # packet itself is subtracted, before data_received() adds it.
        self._incomplete_size = 0
        self._pending_cycles: deque[RequestResponseCycle] | None = None  # requests that others waited for
        self._rejection = INVALID
        self._ignores_input = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(cast(asyncio.Transport, CombinedWrites(transport, self.loop)))

    def data_received(self, data: bytes) -> None:
        if self._ignores_input:
            return
        self._packet_size = len(data)
        super().data_received(data)
        self._incomplete_size += self._packet_size
        if self._incomplete_size > MAX_HEAD_SIZE and not self.transport.is_closing():
            self._rejection = TOO_LARGE
            self.send_400_response("")

    def connection_lost(self, exc: Exception | None) -> None:
        # uvicorn itself marks only the latest request as disconnected; the earlier ones would raise an error.
        for cycle in self._pending_cycles or ():
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        size, before = self._packet_size, self._incomplete_size
        # The packet may contain more than this head, so the bytes received only tell whether to measure the head.
        if (size > MAX_HEAD_SIZE or before + size > MAX_HEAD_SIZE) and self._head_size() > MAX_HEAD_SIZE:
            self._rejection = TOO_LARGE
            raise ValueError  # uvicorn then calls send_400_response()
        self._incomplete_size = -size
        previous = self.cycle
        super().on_headers_complete()
        if self.pipeline:
            if len(self.pipeline) > MAX_PIPELINED:
                raise ValueError
            if self._pending_cycles is None:  # it takes 700 bytes, and few connections need it
                self._pending_cycles = deque(maxlen=MAX_PIPELINED + 1)
            self._pending_cycles.append(previous)
        self.headers = []  # collects the trailers, which must not become headers (RFC 9110, section 6.5.1)

    def on_body(self, body: bytes) -> None:
        self._incomplete_size = -self._packet_size
        super().on_body(body)

    def on_chunk_complete(self) -> None:  # after the last chunk: when the trailers are complete
        self._incomplete_size = -self._packet_size

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Close the connection. Send a problem first, unless an earlier request still waits for its response.

        The client would take the problem for the response to that request.
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

    def _unsupported_upgrade_warning(self) -> None:  # after Upgrade or CONNECT, the next bytes are not HTTP
        self._ignores_input = True

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
