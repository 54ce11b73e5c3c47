"""The tests' independence of the settings in the environment and in .env.local."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests import SETTINGS
from tests.helpers import OTHER_SETTINGS
from tests.servers import HERE

# libpq and uvicorn read variables too.
ENVIRONMENT = OTHER_SETTINGS | {
    "PGHOST": "database.invalid",
    "PGHOSTADDR": "127.0.0.2",
    "PGPORT": "1",
    "PGUSER": "nobody",
    "PGPASSWORD": "wrong",
    "PGDATABASE": "nothing",
    "PGSERVICE": "nothing",
    "PGSSLMODE": "verify-full",
    "PGOPTIONS": "-c client_encoding=LATIN1",
    "PGCLIENTENCODING": "LATIN1",
    "PGAPPNAME": "another",
    "UVICORN_HOST": "127.0.0.2",
    "UVICORN_PORT": "1",
    "UVICORN_LOG_LEVEL": "critical",
    "UVICORN_ROOT_PATH": "/other",
    "WEB_CONCURRENCY": "2",
    "FORWARDED_ALLOW_IPS": "*",
}
# Tests that read settings in each way: in the test process, in its app, in a service process, and in Alembic.
SOME_TESTS = (
    "tests/test_settings.py",
    "tests/test_tasks.py",
    "tests/faults/test_startup.py::test_log_level_error_hides_info_and_warnings",
    "tests/faults/test_startup.py::test_two_services_share_one_embedded_database_until_the_last_ends",
    "tests/test_migrations.py::test_models_and_migrations_agree",
)


def test_tests_pass_with_other_settings_in_the_environment(checkout: Path, database_url: str) -> None:
    assert sorted(OTHER_SETTINGS) == sorted(SETTINGS)
    shutil.copytree(HERE / "tests", checkout / "tests", ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    (checkout / ".env.local").write_text("".join(f'{name}="{value}"\n' for name, value in OTHER_SETTINGS.items()))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", *SOME_TESTS],
        cwd=checkout,
        env=inherited | ENVIRONMENT | {"TEST_DATABASE_URL": database_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout[-5000:]
