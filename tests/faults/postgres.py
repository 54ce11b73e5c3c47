"""A PostgreSQL of Debian's that a test may kill, stop, start and slow down as it likes."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg2

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
PASSWORD = "a password of the tests"  # noqa: S105


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def account() -> dict[str, Any]:
    """As whom a server runs: PostgreSQL and PgBouncer refuse to run as root."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


class Postgres:
    """A server with its data in a temporary folder, on a port of 127.0.0.1 and no other socket.

    The role `tasks` has a password (SCRAM-SHA-256) and owns the database `tasks`; the role
    `postgres` is the administrator. With `tls`, connections without TLS are refused.
    """

    def __init__(self, *, tls: bool = False, **configuration: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tasks-faults-"))
        self.port = free_port()
        self.tls = tls
        self.configuration = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "100",
            "fsync": "on",
            "log_line_prefix": "%a|%p|",
        } | configuration
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._initialise()
            self.start()
            self.administer("CREATE ROLE tasks LOGIN PASSWORD %s", PASSWORD)
            self.administer(
                "CREATE DATABASE tasks OWNER tasks TEMPLATE template0 LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'"
            )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process:
            self.kill()
        shutil.rmtree(self.folder)

    def _initialise(self) -> None:
        if account():
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
            certificate(self.folder / "data")
            self.configuration |= {"ssl": "on"}
            (self.folder / "data/pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        with (self.folder / "data/postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in self.configuration.items())

    def _run(self, *command: str) -> None:
        subprocess.run(
            [str(BINARIES / command[0]), *command[1:]], check=True, capture_output=True, cwd="/", **account()
        )

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(BINARIES / "postgres"), "-D", str(self.folder / "data")],
                stderr=log, stdout=log, cwd="/", start_new_session=True, **account(),
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            try:
                self.administer("SELECT 1")
                return
            except psycopg2.OperationalError:
                assert time.monotonic() < deadline, self.log()
                assert self._process.poll() is None, self.log()
                time.sleep(0.02)

    def kill(self) -> None:
        """End the server at once, as a crash does: it has no time to write or to say anything.

        Each of its processes leads a group of its own. They die one by one, the first of them
        suspended, so that it can neither start another nor tell the rest.
        """
        assert self._process
        first = psutil.Process(self._process.pid)
        first.suspend()
        for process in first.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        first.kill()
        self._process.wait(30)
        self._process = None

    def stop(self) -> None:
        """End the server in order: it closes every connection first."""
        assert self._process
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)
        self._process = None

    def dsn(self, *, port: int | None = None, user: str = "tasks", database: str = "tasks", **options: str) -> str:
        """The URL of `database`, on another `port` where something stands in front of the server."""
        password = PASSWORD.replace(" ", "%20")
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"postgresql://{user}:{password}@127.0.0.1:{port or self.port}/{database}?{query}"

    def administer(self, sql: str, *values: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run `sql` as the administrator, in autocommit, and return its rows."""
        with closing(psycopg2.connect(self.dsn(user="postgres", database=database))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql, values or None)
                return cursor.fetchall() if cursor.description else []

    def log(self) -> str:
        """What the server has written so far."""
        return (self.folder / "log").read_text()


def certificate(folder: Path) -> None:
    """Put a key and a certificate for loopback into `folder`, for the server's account.

    `database.invalid` is the name under which tests look loopback up.
    """
    key, cert = folder / "server.key", folder / "server.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,DNS:database.invalid,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    for file in (key, cert):
        if account():
            shutil.chown(file, "postgres", "postgres")
    key.chmod(0o600)
