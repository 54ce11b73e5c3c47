"""docs/capacity.md has the result of benchmarks/capacity.py."""

import pytest

from benchmarks import capacity
from benchmarks.capacity import Cost
from tests.servers import HERE


def test_the_page_has_the_tables_of_make_capacity() -> None:
    _, _, rest = (HERE / "docs/capacity.md").read_text().partition("<!-- make capacity -->\n\n")
    assert rest.partition("\n<!-- end -->")[0] == capacity.page(*capacity.SIZES)


def test_each_kind_of_request_has_a_cost() -> None:
    assert list(capacity.COSTS) == list(capacity.REQUESTS)
    assert {kind for kind, cost in capacity.COSTS.items() if cost.wal} == set(capacity.WRITES)


def test_the_arithmetic_is_that_of_a_case_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1,000 users, 200 of them active: one read and one edit a second, and three of each in the busiest hour.
    monkeypatch.setattr(capacity, "REQUESTS", {"read": 432, "edit": 432})
    monkeypatch.setattr(capacity, "COSTS", {"read": Cost(50_000, 100_000), "edit": Cost(150_000, 400_000, 10_000)})
    for name, value in {"ACTIVE": 0.2, "PEAK": 3, "UTILIZATION": 0.5, "POOL": 20, "PROCESS_BYTES": 100e6}.items():
        monkeypatch.setattr(capacity, name, value)
    for name, value in {"TASKS": 100, "DELETED": 12, "TASK_BYTES": 300, "INDEX_BYTES": 200, "USER_BYTES": 1000}.items():
        monkeypatch.setattr(capacity, name, value)
    monkeypatch.setattr(capacity, "BLOAT", 1.2)
    assert list(capacity.need(1000).values()) == [
        "112,000",  # 1,000 x 112
        "2.0",
        "6.0",
        "3.0",
        "0.60",  # 3 x 0.05 + 3 x 0.15
        "**2**",  # 0.60 / 0.5, rounded up
        "200 MB",
        "40",
        "1.5",  # 3 x 0.1 + 3 x 0.4
        "**3**",
        "34 MB",  # 112,000 x 300
        "22 MB",  # 112,000 x 200
        "1.0 MB",  # 1,000 x 1,000
        "**68 MB**",  # 1.2 x (33.6 + 22.4 + 1.0)
        "860 MB",  # 86,400 edits x 10,000
        "30 kB",
    ]
