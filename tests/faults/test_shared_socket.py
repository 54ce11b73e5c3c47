"""Several processes behind one port, which they share as a listening socket (systemd's tasks.socket)."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2

from tests.faults.helpers import wait_until
from tests.faults.postgres import Postgres
from tests.servers import HERE


class Process:
    """One process of the service, started as by systemd, with the socket as an open file."""

    def __init__(self, listening: socket.socket, log: Path, **environment: str) -> None:
        unit = (HERE / "deploy/tasks@.service").read_text()
        [command] = re.findall(r"^ExecStart=\S+/uvicorn (.*) --fd 3\b", unit, re.MULTILINE)
        self._log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", *shlex.split(command), "--fd", str(listening.fileno())],
                cwd=HERE, env=os.environ | environment, stderr=file, pass_fds=[listening.fileno()],
            )  # fmt: skip

    def wait_until_ready(self) -> None:
        """Wait until it accepts connections."""
        wait_until(lambda: "Uvicorn running" in self.log() or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.log()

    def log(self) -> str:
        return self._log.read_text()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(30)


class Load:
    """Threads that create tasks on new connections inside a `with` statement, and count the results."""

    def __init__(self, url: str) -> None:
        self.results: Counter[str] = Counter()
        self.titles: list[str] = []
        self._url, self._stopped = url, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[number], daemon=True) for number in range(4)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def _run(self, number: int) -> None:
        sent = 0
        while not self._stopped.is_set():
            title = f"{number}-{(sent := sent + 1)}"
            try:
                response = httpx2.post(self._url, json={"title": title}, timeout=30)
            except httpx2.TransportError as error:
                self.results[type(error).__name__] += 1
                continue
            self.results[str(response.status_code)] += 1
            self.titles += [title] if response.status_code == 201 else []

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(60)


@contextmanager
def listening_socket() -> Iterator[socket.socket]:
    """Listen as systemd does: the socket stays open while processes end and start."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        yield listening


def test_processes_are_replaced_one_by_one_without_a_failed_request(
    postgres: Postgres, user: str, tmp_path: Path
) -> None:
    with listening_socket() as listening, ExitStack() as stack:
        names = iter(range(100))

        def start() -> Process:
            log = tmp_path / f"{next(names)}.log"
            started = stack.enter_context(Process(listening, log, DATABASE_URL=postgres.dsn()))
            started.wait_until_ready()
            return started

        running = [start(), start()]
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api/{user}/tasks"
        with Load(url) as load:
            for number in (0, 1, 0, 1):
                before = load.results.total()
                wait_until(lambda before=before: load.results.total() > before + 50, 60)  # type: ignore[misc]
                running[number].process.terminate()
                assert running[number].process.wait(60) in (0, -signal.SIGTERM)
                running[number] = start()
        assert load.results.keys() == {"201"}, load.results
        listed = httpx2.get(url).json()
        assert sorted(task["title"] for task in listed) == sorted(load.titles)[: len(listed)]


def test_two_processes_share_the_connections(postgres: Postgres, user: str, tmp_path: Path) -> None:
    with (
        listening_socket() as listening,
        Process(listening, tmp_path / "a.log", DATABASE_URL=postgres.dsn(application_name="a")) as first,
        Process(listening, tmp_path / "b.log", DATABASE_URL=postgres.dsn(application_name="b")) as second,
    ):
        first.wait_until_ready()
        second.wait_until_ready()
        query = "SELECT count(DISTINCT application_name) FROM pg_stat_activity WHERE application_name IN ('a', 'b')"
        with Load(f"http://127.0.0.1:{listening.getsockname()[1]}/api/{user}/tasks"):
            wait_until(lambda: postgres.run_as_admin(query) == [(2,)], 60)


def test_a_failed_start_has_an_exit_status_and_harms_nothing(postgres: Postgres, user: str, tmp_path: Path) -> None:
    with (
        listening_socket() as listening,
        Process(listening, tmp_path / "good.log", DATABASE_URL=postgres.dsn()) as good,
        Process(listening, tmp_path / "bad.log", DATABASE_URL="no URL") as bad,
    ):
        good.wait_until_ready()
        with Load(f"http://127.0.0.1:{listening.getsockname()[1]}/api/{user}/tasks") as load:
            assert bad.process.wait(60) > 0
        assert load.results.keys() == {"201"}, load.results
