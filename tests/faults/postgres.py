"""A PostgreSQL from Debian's packages, which a test may kill, stop and start."""

import shutil
import signal
import subprocess
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg2

from tests.faults.processes import ServerProcess, server_account

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
PASSWORD = "a password of the tests"  # noqa: S105


class Postgres(ServerProcess):
    """A server that listens on TCP only.

    The role `tasks` has a password (SCRAM-SHA-256) and owns the database `tasks`; the role
    `postgres` is the superuser. With `tls`, connections without TLS are rejected. Other keyword
    arguments are settings of postgresql.conf.
    """

    STOP_SIGNAL = signal.SIGINT  # fast shutdown: the server closes every connection

    def __init__(self, *, tls: bool = False, **configuration: str) -> None:
        super().__init__()
        self.tls = tls
        self.configuration = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "100",
            "fsync": "on",
            "log_line_prefix": "%a|%p|",
        } | configuration

    def prepare(self) -> None:
        """Initialize the data directory and write its configuration."""
        if server_account():
            shutil.chown(self.folder, "postgres", "postgres")
        with tempfile.NamedTemporaryFile("w") as password:
            password.write(PASSWORD)
            password.flush()
            Path(password.name).chmod(0o644)
            self._run(
                "initdb", "-D", str(self.folder / "data"), "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-N",
                "--auth=scram-sha-256", f"--pwfile={password.name}",
            )  # fmt: skip
        if self.tls:
            create_certificate(self.folder / "data")
            self.configuration |= {"ssl": "on"}
            (self.folder / "data/pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        with (self.folder / "data/postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in self.configuration.items())

    def _run(self, *command: str) -> None:
        subprocess.run(
            [str(BINARIES / command[0]), *command[1:]], check=True, capture_output=True, cwd="/", **server_account()
        )

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        self.launch(
            [str(BINARIES / "postgres"), "-D", str(self.folder / "data")],
            lambda: self.run_as_admin("SELECT 1"),
            psycopg2.OperationalError,
            cwd="/",
            start_new_session=True,
            **server_account(),
        )

    def after_start(self) -> None:
        """Create the role and the database `tasks`."""
        self.run_as_admin("CREATE ROLE tasks LOGIN PASSWORD %s", PASSWORD)
        self.run_as_admin(
            "CREATE DATABASE tasks OWNER tasks TEMPLATE template0 LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'"
        )

    def kill(self) -> None:
        """Kill all processes of the server at once, as in a crash: nothing is flushed or closed in order.

        The parent process is suspended first, so that it can neither start another process nor
        signal the others.
        """
        assert self._process
        parent = psutil.Process(self._process.pid)
        parent.suspend()
        for process in parent.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        parent.kill()
        self._process.wait(30)
        self._process = None

    def end(self) -> None:
        """Kill the server, since its data is removed anyway."""
        self.kill()

    def dsn(self, *, port: int | None = None, user: str = "tasks", database: str = "tasks", **options: str) -> str:
        """Return the URL of `database`; `port` is that of a relay or pooler in front of the server, if any."""
        password = PASSWORD.replace(" ", "%20")
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"postgresql://{user}:{password}@127.0.0.1:{port or self.port}/{database}?{query}"

    def run_as_admin(self, sql: str, *values: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Execute `sql` as the superuser, in autocommit mode, and return its rows."""
        with closing(psycopg2.connect(self.dsn(user="postgres", database=database))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql, values or None)
                return cursor.fetchall() if cursor.description else []


def create_certificate(folder: Path) -> None:
    """Create a key and a certificate for 127.0.0.1 in `folder`, owned by the account of the server.

    The certificate is also valid for `localhost` and `database.invalid`; some tests resolve the
    latter to 127.0.0.1.
    """
    key, cert = folder / "server.key", folder / "server.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,DNS:database.invalid,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    for file in (key, cert):
        if server_account():
            shutil.chown(file, "postgres", "postgres")
    key.chmod(0o600)
