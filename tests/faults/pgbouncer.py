"""A PgBouncer between the service and a PostgreSQL, configured as a hosted one is."""

import shutil
from contextlib import closing

import psycopg2

from tests.faults.postgres import PASSWORD, Postgres, create_certificate
from tests.faults.processes import ServerProcess, server_account


class PgBouncer(ServerProcess):
    """A pooler in transaction mode, which keeps at most `pool_size` connections to each database.

    TLS and SCRAM-SHA-256 are required on both sides: `postgres` must have been made with `tls`. The
    pooler forwards every database name to the server.
    """

    def __init__(self, postgres: Postgres, *, pool_size: int = 5) -> None:
        super().__init__()
        self._postgres = postgres
        self._pool_size = pool_size

    def prepare(self) -> None:
        """Write the configuration, the certificates and the list of users."""
        create_certificate(self.folder)
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
        if server_account():
            for file in (self.folder, *self.folder.iterdir()):
                shutil.chown(file, "postgres", "postgres")

    def start(self) -> None:
        """Start the pooler and wait until it accepts connections. SIGTERM shuts it down immediately."""
        program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"  # /usr/sbin is not on every PATH
        self.launch(
            [program, str(self.folder / "pgbouncer.ini")],
            lambda: psycopg2.connect(self.dsn()).close(),
            psycopg2.OperationalError,
            cwd="/",
            **server_account(),
        )

    def client_connections(self) -> int:
        """Return the number of open client connections, without the one of this query."""
        with closing(psycopg2.connect(self.dsn(database="pgbouncer"))) as connection:
            connection.autocommit = True  # the admin console does not support BEGIN
            with connection.cursor() as cursor:
                cursor.execute("SHOW CLIENTS")
                return cursor.rowcount - 1

    def dsn(self, *, database: str = "tasks") -> str:
        """Return the URL of `database` through the pooler."""
        root = self.folder / "server.crt"
        return self._postgres.dsn(port=self.port, database=database, sslmode="verify-full", sslrootcert=str(root))
