"""What the tests of faults share."""

from collections.abc import Iterator

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
