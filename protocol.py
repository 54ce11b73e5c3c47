"""How HTTP/1.1 is read: uvicorn's own protocol, with limits (`--http protocol:LimitedHttp`).

The app hears of a request when its head is complete. Until then uvicorn keeps whatever comes, and
behind it as many requests as are sent, so that one client could take all of the memory.
"""

from typing import Any
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

import errors

MAX_HEAD_SIZE = 64 * 1024  # bytes: request line and headers, and the trailers of a chunked body
MAX_PIPELINED = 20  # requests that wait on one connection, behind the one that is answered


class LimitedHttp(HttpToolsProtocol):
    """Ends a connection with 431 for a head over `MAX_HEAD_SIZE`, and with 400 for more than `MAX_PIPELINED`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # the service has no WebSocket, and an upgrade is a request like others
        self._packet = 0  # bytes that are being read
        self._unfinished = 0  # bytes since the last end of a head, piece of a body, or chunk
        self._refusal = (400, "This is not a request in HTTP/1.1.")

    def data_received(self, data: bytes) -> None:
        self._packet = len(data)
        super().data_received(data)
        self._unfinished += self._packet
        if self._unfinished > MAX_HEAD_SIZE and not self.transport.is_closing():
            self._refusal = (431, f"The head of the request is over {MAX_HEAD_SIZE:,} bytes.")
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        size = max(self._unfinished, 0) + self._packet  # or less: the packet may begin before the head, or end after
        if size > MAX_HEAD_SIZE and self._head_size() > MAX_HEAD_SIZE:
            self._refusal = (431, f"The head of the request is over {MAX_HEAD_SIZE:,} bytes.")
            raise ValueError  # which ends in send_400_response()
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refusal = (400, f"More than {MAX_PIPELINED} requests wait on this connection.")
            raise ValueError
        self._unfinished = -self._packet
        super().on_headers_complete()
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
            headers = [*self.server_state.default_headers, *response.raw_headers, *errors.IN_COMMON]
            lines = b"".join(b"%s: %s\r\n" % pair for pair in headers)
            self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + bytes(response.body))
        self.transport.close()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
