"""Fixtures of the fault tests."""

from collections.abc import Iterator

import pytest

from tests.faults.postgres import Postgres


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for the tests of one file, which they may kill."""
    with Postgres() as server:
        yield server
