"""The upper bound for uvicorn: a constant list of 20 tasks from a file, without a framework."""

import os
from pathlib import Path
from typing import Any

BODY = Path(os.environ["CONSTANT"]).read_bytes()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def app(scope: Any, _receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": BODY})
