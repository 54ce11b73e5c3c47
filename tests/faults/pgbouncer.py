"""A PgBouncer between the service and a PostgreSQL, set up as a hosted one is."""

import shutil
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg2

from tests.faults.postgres import PASSWORD, Postgres, account, certificate, free_port


class PgBouncer:
    """A pooler in transaction mode, which keeps at most `pool_size` connections to each database.

    TLS and SCRAM-SHA-256 are required on both sides: `postgres` must have been made with `tls`. Any
    database of the server is reached by its name.
    """

    def __init__(self, postgres: Postgres, *, pool_size: int = 5) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tasks-faults-"))
        self.port = free_port()
        self._postgres = postgres
        self._pool_size = pool_size
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._configure()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process:
            self.stop()
        shutil.rmtree(self.folder)

    def _configure(self) -> None:
        certificate(self.folder)
        shutil.copy(self._postgres.folder / "data/server.crt", self.folder / "postgres.crt")
        (self.folder / "users").write_text(f'"tasks" "{PASSWORD}"\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "pool_mode": "transaction",
            "default_pool_size": self._pool_size,
            "max_client_conn": 500,
            "auth_type": "scram-sha-256",
            "auth_file": self.folder / "users",
            "stats_users": "tasks",
            "client_tls_sslmode": "require",
            "client_tls_key_file": self.folder / "server.key",
            "client_tls_cert_file": self.folder / "server.crt",
            "server_tls_sslmode": "verify-full",
            "server_tls_ca_file": self.folder / "postgres.crt",
        }
        lines = ["[databases]", f"* = host=127.0.0.1 port={self._postgres.port}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        (self.folder / "pgbouncer.ini").write_text("\n".join(lines))
        if account():
            for file in (self.folder, *self.folder.iterdir()):
                shutil.chown(file, "postgres", "postgres")

    def start(self) -> None:
        """Start the pooler and wait until it takes connections."""
        program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"  # which is not on everybody's path
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, str(self.folder / "pgbouncer.ini")], stderr=log, stdout=log, cwd="/", **account()
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                with closing(psycopg2.connect(self.dsn())):
                    return
            except psycopg2.OperationalError:
                assert time.monotonic() < deadline, self.log()
                assert self._process.poll() is None, self.log()
                time.sleep(0.02)

    def stop(self) -> None:
        """End it. Every connection of a client is closed."""
        assert self._process
        self._process.terminate()  # which for PgBouncer means at once
        self._process.wait(30)
        self._process = None

    def clients(self) -> int:
        """How many connections of clients are open, the one that asks left out."""
        with closing(psycopg2.connect(self.dsn(database="pgbouncer"))) as connection:
            connection.autocommit = True  # its own console knows no BEGIN
            with connection.cursor() as cursor:
                cursor.execute("SHOW CLIENTS")
                return cursor.rowcount - 1

    def dsn(self, *, database: str = "tasks") -> str:
        """The URL of `database`, through the pooler."""
        root = self.folder / "server.crt"
        return self._postgres.dsn(port=self.port, database=database, sslmode="verify-full", sslrootcert=str(root))

    def log(self) -> str:
        """What PgBouncer has written so far."""
        return (self.folder / "log").read_text()
