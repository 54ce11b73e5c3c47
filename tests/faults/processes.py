"""The part that the servers of these tests share: a process, its files, and the wait until it is ready."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is not in use at the moment."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def server_account() -> dict[str, Any]:
    """Return the arguments of Popen for the account of a server.

    PostgreSQL and PgBouncer do not run as root. When the tests do, the account is `postgres`.
    """
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


class ServerProcess:
    """A server on a free port of 127.0.0.1, with all its files in a temporary folder.

    A subclass implements `start`, and `prepare` where files are needed first. As a context manager
    the server is started, and it is stopped and its folder removed afterwards.
    """

    STOP_SIGNAL = signal.SIGTERM

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tasks-faults-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.prepare()
            self.start()
            self.after_start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._process:
                self.end()
        finally:
            shutil.rmtree(self.folder)

    def prepare(self) -> None:
        """Write the files that the server needs before its first start."""

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        raise NotImplementedError

    def after_start(self) -> None:
        """Set up what needs a running server."""

    def stop(self) -> None:
        """Shut the server down and wait until it has ended."""
        assert self._process
        self._process.send_signal(self.STOP_SIGNAL)
        self._process.wait(30)
        self._process = None

    def end(self) -> None:
        """End the server when the context manager exits."""
        self.stop()

    def log(self) -> str:
        """Return what the server has written so far."""
        return (self.folder / "log").read_text()

    def launch(
        self, command: list[str], probe: Callable[[], object], not_ready: type[Exception], **options: Any
    ) -> None:
        """Start `command` with these options of Popen, and call `probe` until it raises no `not_ready`.

        Raises AssertionError with the log when the process ends, or is not ready after 30 seconds.
        """
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=log, **options)
        deadline = time.monotonic() + 30
        while True:
            try:
                probe()
                return
            except not_ready:
                assert time.monotonic() < deadline, self.log()
                assert self._process.poll() is None, self.log()
                time.sleep(0.02)
