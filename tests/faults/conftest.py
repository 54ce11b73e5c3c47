"""What the tests of faults share."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.faults.postgres import PASSWORD, Postgres


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of this file's own, which its tests may kill."""
    with Postgres() as server:
        yield server


def hold_log(log: list[str], *secrets: str) -> None:
    """An outage is no mistake of the service: no stack, no error, and no secret in its log."""
    text = "\n".join(log)
    for word in ("Traceback", "ERROR", "never retrieved", PASSWORD, PASSWORD.replace(" ", "%20"), *secrets):
        assert word not in text, text[-3000:]


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until the condition holds, for at most so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.02)
