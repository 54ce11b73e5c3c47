"""Request smuggling through proxies with keep-alive connections: every request gets its own response."""

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from uuid import uuid4

import httpx2
import pytest

from tests.faults.helpers import check_log
from tests.faults.postgres import Postgres
from tests.faults.proxies import Proxy
from tests.faults.wire import address
from tests.servers import LIMITS, ON_A_FREE_PORT, Service, service

SECONDS = 4  # the vulnerability showed within one second
ATTACKERS = 4


@pytest.fixture(scope="module", params=["documented", "default protocol"])
def started(postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[Service]:
    command = [part for part in ON_A_FREE_PORT if request.param != "default protocol" or part not in LIMITS]
    with service("--no-access-log", command=command, DATABASE_URL=postgres.dsn(application_name="proxies")) as started:
        yield started
        check_log(started.log)


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def proxy(started: Service, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    with Proxy(request.param, started.url) as proxy:
        yield proxy


def attack(url: str, attacker: str, until: float, method: str) -> None:
    """Send requests whose body contains blank lines and then a second request, until the time `until`.

    The blank lines are longer than what a proxy sends together with the headers, so that the body
    arrives in several parts. The requests ask for an upgrade to h2c, with which both proxies have
    mixed responses up.
    """
    inner = b"\r\n" * 5000 + f"GET /api/{attacker}/tasks?limit=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    first = (
        f"{method} /api/{attacker}/tasks HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
        f"Content-Length: {len(inner)}\r\n\r\n"
    ).encode()
    for delay in itertools.cycle(
        (0, 0.001, 0.003)
    ):  # depending on the proxy, the body must arrive before or after the response
        if time.monotonic() > until:
            return
        with suppress(OSError), socket.create_connection(address(url), 2) as connection:  # the connection may be closed
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for part in (first, inner[:5000], inner[5000:]):
                connection.sendall(part)
                time.sleep(delay)
            connection.recv(65536)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_smuggling_never_mixes_up_responses(proxy: Proxy, method: str) -> None:
    victim, attacker = f"victim-{uuid4()}", f"attacker-{uuid4()}"
    httpx2.post(f"{proxy.url}/api/{attacker}/tasks", json={"title": "of the attacker"}).raise_for_status()
    own = httpx2.post(f"{proxy.url}/api/{victim}/tasks", json={"title": "of the victim"}).raise_for_status().json()
    until = time.monotonic() + SECONDS
    attackers = [threading.Thread(target=attack, args=(proxy.url, attacker, until, method)) for _ in range(ATTACKERS)]
    for thread in attackers:
        thread.start()
    requests = 0
    try:
        with httpx2.Client(base_url=proxy.url) as client:
            while time.monotonic() < until:
                assert client.get(f"/api/{victim}/tasks").json() == [own]
                requests += 1
    finally:
        for thread in attackers:
            thread.join(30)
    assert requests > 20
    assert [task["title"] for task in httpx2.get(f"{proxy.url}/api/{attacker}/tasks").json()] == ["of the attacker"]
