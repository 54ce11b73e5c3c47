"""Functions and values that several test files share."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from uuid import uuid4

import httpx2

from tests.servers import HERE, Service, service

CLIENTS = HERE / "tests/clients"

CreateTask = Callable[..., dict[str, Any]]
Tasks = Callable[[], list[dict[str, Any]]]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@contextmanager
def website() -> Iterator[str]:
    """Serve the examples with the command of the README, and yield the origin."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(HERE / "examples")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        found = re.search(r"port (\d+)", process.stdout.readline())
        assert found
        yield f"http://127.0.0.1:{found[1]}"
        process.terminate()


def service_for(origin: str, database_url: str, *options: str) -> AbstractContextManager[Service]:
    """Start a service that allows pages of `origin`, without authentication."""
    return service(*options, DATABASE_URL=database_url, CORS_ORIGINS=origin)


@contextmanager
def better_auth(script: str, *arguments: str) -> Iterator[str]:
    """Start a Better Auth server without users, and yield its URL."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("BETTER_AUTH", "NODE_ENV"))
    }
    process = subprocess.Popen(
        ["node", script, *arguments],
        cwd=CLIENTS,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process, process.stdin, process.stdout:
        line = process.stdout.readline()
        assert line.startswith("READY "), line
        yield line.split()[1]
        process.terminate()


def sign_up(issuer: str) -> tuple[str, dict[str, str]]:
    """Register a new user with Better Auth, and return the user's id and the Authorization header."""
    with httpx2.Client(base_url=f"{issuer}/api/auth") as browser:
        person = {"name": "Ann", "email": f"{uuid4()}@example.com", "password": "correct horse 1"}
        user = browser.post("/sign-up/email", json=person).json()["user"]
        return user["id"], {"Authorization": f"Bearer {browser.get('/token').json()['token']}"}


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks in a language, in order."""
    return [text for kind, text in BLOCK.findall(page) if kind == language]
