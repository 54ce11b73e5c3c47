"""The commands in the table "Questions" of docs/operations.md give what the table says."""

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import jwt
import pytest

from tests.faults.helpers import locked, wait_until
from tests.faults.postgres import Postgres
from tests.servers import HERE, service

SECRET = "a secret of the tests, 32 bytes or more"  # noqa: S105  # of the tests only
REQUEST_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TABLE = (HERE / "docs/operations.md").read_text().partition("\n## Questions\n")[2].partition("\n## ")[0]
COMMANDS = dict(re.findall(r"^\| ([^|]+\?) \|.*\| `([^`]+)` \|$", TABLE, re.MULTILINE))
# What a command prints, as a regular expression.
EXPECTED = {
    "Which statements are slow?": r"INSERT INTO tasks .*\$1",
    "How many requests fail, and why?": r"Database unavailable: no response within ",
    "How full is the pool?": r"idle",
    "How long do requests wait for a slot?": r"1\.\d seconds in the queue, behind 0 others",
    "Which request is this log message about?": rf"\[POST /api/{{user_id}}/tasks {REQUEST_ID}\] Database unavailable",
    "Why was a token rejected?": r"Token rejected: ExpiredSignatureError",
    "Which web page may not call the service?": r"'http://evil\.example'",
    "Is it the database or the service?": r"\d\.\d+",
    "What does the database wait for?": r"'Lock', 'transactionid'",
    "Which version runs, and with which schema?": r"\('\d{4}',\)",
    "How much storage do the tasks need?": r"\d+ kB",
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """Yield a server with the extension that one of the commands needs."""
    with Postgres(shared_preload_libraries="pg_stat_statements") as server:
        server.run_as_admin("CREATE EXTENSION pg_stat_statements", database="tasks")
        yield server


def test_each_question_has_a_command_and_its_output(postgres: Postgres, user: str, tmp_path: Path) -> None:
    assert COMMANDS.keys() == EXPECTED.keys()
    headers, expired = (
        {"Authorization": f"Bearer {jwt.encode({'sub': user, 'exp': exp}, SECRET, 'HS256')}"} for exp in (2**32, 1)
    )
    outputs = {}
    environment = {"AUTH_SECRET": SECRET, "DATABASE_TIMEOUT": "2", "DATABASE_POOL_SIZE": "1"}
    with service(DATABASE_URL=postgres.dsn(), **environment) as started:
        tasks = f"{started.url}/api/{user}/tasks"

        def run(question: str) -> str:
            command = COMMANDS[question]
            if command.startswith("SELECT"):
                return str(postgres.run_as_admin(command, database="tasks"))
            (tmp_path / "tasks.log").write_text("\n".join(started.log))
            command = command.replace("http://127.0.0.1:8000", started.url)
            completed = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
            return completed.stdout

        postgres.run_as_admin("SELECT pg_stat_statements_reset()", database="tasks")  # forgets the migration
        created = httpx2.post(tasks, json={"title": "x"}, headers=headers | {"Origin": "http://evil.example"})
        assert created.status_code == 201
        assert httpx2.get(tasks, headers=expired).status_code == 401
        with (
            locked(postgres, "UPDATE task_users SET epoch = epoch WHERE user_id = %s", user),
            ThreadPoolExecutor() as threads,
        ):
            failing = [
                threads.submit(httpx2.post, tasks, json={"title": "x"}, headers=headers | more, timeout=30)
                for more in ({"X-Request-Id": REQUEST_ID}, {})  # the second one waits for a slot
            ]
            waiting = "What does the database wait for?"
            wait_until(lambda: "Lock" in run(waiting))
            outputs[waiting] = run(waiting)
            assert [response.result().status_code for response in failing] == [503, 503]
        for question in COMMANDS.keys() - {waiting}:
            outputs[question] = run(question)
    assert not [output for output in outputs.values() if user in output]
    for question, output in outputs.items():
        assert re.search(EXPECTED[question], output), (question, output)
