"""The embedded PostgreSQL: only the account that starts it can use it, and any path works or is rejected."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import httpx2
import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

import embedded
from tests.conftest import NOT_COPIED
from tests.servers import HERE, ON_A_FREE_PORT, service

ROOT = os.name != "nt" and os.geteuid() == 0
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither Unix sockets nor POSIX permissions")
as_root = pytest.mark.skipif(not ROOT, reason="only root can switch to another account")

# Only the first is a valid path for a socket.
NAMES = ["plain", "two words", "Größe", "l" * 120]

# The imports come first, because another account may not have access to Python's library.
AS_NOBODY = """
import os, pathlib, pwd, subprocess, sys, tempfile, psycopg2, embedded
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
folder = pathlib.Path(sys.argv[1])
"""
AS_THIS_ACCOUNT = "import embedded, pathlib, psycopg2, sys; folder = pathlib.Path(sys.argv[1]); "
START_AND_STOP = "psycopg2.connect(embedded.start(folder)).close(); embedded.stop(folder)"


@pytest.fixture
def folder(new_folder: Path) -> Path:
    """Return a new folder that every account may enter."""
    folder = new_folder / str(uuid4())
    folder.mkdir()
    folder.chmod(0o755)
    return folder


@pytest.fixture(params=NAMES, scope="module")
def server(request: pytest.FixtureRequest, new_folder: Path) -> Iterator[str]:
    """Start a server whose data directory has this name, and yield its URL."""
    yield embedded.start(new_folder / request.param)
    embedded.stop(new_folder / request.param)


def run_python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process, and return its output."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, cwd=HERE, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_socket_and_folder_are_inaccessible_to_other_accounts(server: str) -> None:
    folder = Path(parse_dsn(server)["host"])
    (socket,) = [path for path in folder.iterdir() if path.is_socket()]
    for path in (folder, socket):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert not ROOT or path.owner() == embedded.ACCOUNT


@as_root
def test_another_account_cannot_connect(server: str) -> None:
    psycopg2.connect(server).close()
    completed = run_python(AS_NOBODY + "psycopg2.connect(sys.argv[1])", server)
    assert "Permission denied" in completed.stderr, "it could connect"


@pytest.mark.parametrize("name", NAMES[:2])
def test_stopping_the_server_removes_its_socket(folder: Path, name: str) -> None:
    socket_folder = Path(parse_dsn(embedded.start(folder / name))["host"])
    embedded.stop(folder / name)
    if socket_folder == folder / name:
        assert not [path for path in socket_folder.iterdir() if path.is_socket()]
    else:
        assert not socket_folder.exists()


def test_the_service_runs_in_a_path_with_a_space(folder: Path) -> None:
    checkout = folder / "my projects"
    shutil.copytree(HERE, checkout, ignore=NOT_COPIED)
    with service(folder=checkout, DATABASE_URL="") as started:
        assert httpx2.get(f"{started.url}/health/ready").status_code == 200


@pytest.mark.parametrize("name", ["' %s a;b&c|d", "-*~#!?<(x)>{y}[z]", " e, f ", "\N{GLASS OF MILK}"])
def test_a_path_may_have_characters_that_need_quoting(folder: Path, name: str) -> None:
    with closing(psycopg2.connect(embedded.start(folder / name))) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW data_directory")
        assert cursor.fetchone() == (str(folder / name),)
    embedded.stop(folder / name)


@pytest.mark.parametrize("name", ["$(touch x)", "`touch x`", '"; touch x; "', "back\\slash", "two\nlines", "$HOME"])
def test_a_path_with_shell_expansions_is_rejected(folder: Path, name: str) -> None:
    checkout = folder / name
    shutil.copytree(HERE, checkout, ignore=NOT_COPIED)
    completed = subprocess.run(
        ON_A_FREE_PORT,
        cwd=checkout,
        env=os.environ | {"DATABASE_URL": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode != 0
    assert "has a character that a shell would act on: move the service to another folder" in completed.stderr
    assert "Traceback" not in completed.stderr
    assert not list(folder.rglob("x"))
    assert not (checkout / ".postgres").exists()


def test_programs_in_a_path_with_shell_expansions_are_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(embedded.PROGRAMS.parent, folder / "$(touch x)", symlinks=True)
    monkeypatch.setattr(embedded, "PROGRAMS", folder / "$(touch x)/bin")
    with pytest.raises(SystemExit, match=r"^The path '.*' has a character that a shell would act on"):
        embedded.start(folder / "data")
    assert not (folder / "data").exists()


@as_root
@pytest.mark.parametrize("mode", [0o700, 0o750])
def test_as_root_an_inaccessible_parent_is_reported_and_not_changed(folder: Path, mode: int) -> None:
    closed = folder / "closed"
    closed.mkdir()
    closed.chmod(mode)
    (closed / "between").mkdir()
    with pytest.raises(SystemExit, match=rf"which may not enter {closed}: .*chmod o\+x {closed},"):
        embedded.start(closed / "between/data")
    assert stat.S_IMODE(closed.stat().st_mode) == mode
    assert not list((closed / "between").iterdir())
    closed.chmod(mode | stat.S_IXOTH)
    completed = run_python(AS_THIS_ACCOUNT + START_AND_STOP, closed / "x")
    assert completed.returncode == 0, completed.stderr
    assert stat.S_IMODE(closed.stat().st_mode) == mode | stat.S_IXOTH


@as_root
def test_the_server_does_not_belong_to_the_root_group(folder: Path) -> None:
    with closing(psycopg2.connect(embedded.start(folder / "data"))) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE groups (line text)")
        cursor.execute("COPY groups FROM PROGRAM 'id -G'")
        cursor.execute("SELECT line FROM groups")
        (groups,) = cursor.fetchone() or ("",)
    embedded.stop(folder / "data")
    assert groups.split()
    assert "0" not in groups.split()


@as_root
def test_two_accounts_can_start_servers_one_after_the_other(folder: Path) -> None:
    (folder / "theirs").mkdir()
    shutil.chown(folder / "theirs", "nobody")
    temporary = folder / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    environment = {"TMPDIR": str(temporary), "XDG_RUNTIME_DIR": ""}
    for name in NAMES[:2]:
        mine = run_python(AS_THIS_ACCOUNT + START_AND_STOP, folder / name, **environment)
        assert (mine.returncode, mine.stderr) == (0, "")
        theirs = run_python(AS_NOBODY + START_AND_STOP, folder / "theirs" / name, **environment)
        assert (theirs.returncode, theirs.stderr) == (0, "")


def test_files_of_others_in_the_temporary_folder_are_not_used(folder: Path) -> None:
    target, temporary = folder / "target", folder / "tmp"
    target.mkdir()
    temporary.mkdir()
    temporary.chmod(0o1777)
    for name in (".lockfile", f"runtime-{os.geteuid()}"):
        (temporary / name).symlink_to(target)
    completed = run_python(
        AS_THIS_ACCOUNT + START_AND_STOP, folder / "two words", TMPDIR=str(temporary), XDG_RUNTIME_DIR=""
    )
    assert (completed.returncode, completed.stderr) == (0, "")
    assert not list(target.iterdir())


@as_root
def test_data_of_another_account_is_rejected_and_not_changed(folder: Path) -> None:
    shutil.chown(folder, "nobody")
    theirs = run_python(AS_NOBODY + START_AND_STOP, folder / "data")
    assert theirs.returncode == 0, theirs.stderr
    with pytest.raises(SystemExit, match=rf"^The folder {folder / 'data'} belongs to another account"):
        embedded.start(folder / "data")
    assert (folder / "data").owner() == "nobody"
    mine = folder / "mine"
    embedded.start(mine)
    embedded.stop(mine)
    rejected = run_python(AS_NOBODY + "embedded.start(folder)", mine)
    assert rejected.stderr.startswith("The embedded PostgreSQL cannot be started: ")
    assert len(rejected.stderr.splitlines()) == 1


def test_the_data_directory_gets_mode_0700_at_each_start(folder: Path) -> None:
    for _ in range(2):
        embedded.start(folder / "data")
        assert stat.S_IMODE((folder / "data").stat().st_mode) == 0o700
        embedded.stop(folder / "data")
        (folder / "data").chmod(0o755)


def test_a_failed_start_is_reported_in_one_sentence(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data/something").write_text("not written by PostgreSQL")
    for data, cause in ((folder / "data", "not empty|belongs to another"), (folder / "no/such", "No such file")):
        with pytest.raises(SystemExit, match=cause) as raised:
            embedded.start(data)
        assert "\n" not in str(raised.value)


def test_a_missing_place_for_the_socket_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = folder / "no place"
    temporary.mkdir()
    temporary.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(SystemExit, match=r"^There is no place for a socket in .*: set TMPDIR to a short path"):
        embedded.start(folder / "two words")
    assert not list(temporary.iterdir())


def test_stopping_after_the_folder_was_removed_raises_nothing(folder: Path) -> None:
    embedded.start(folder / "data")
    shutil.rmtree(folder / "data")
    embedded.stop(folder / "data")
