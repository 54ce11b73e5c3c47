"""Settings: their sources, and the messages for invalid values."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from settings import Settings, load_settings
from tests import SETTINGS
from tests.helpers import OTHER_SETTINGS
from tests.servers import HERE

NEON = "postgresql://ann:s3cret@ep-cool-name-pooler.eu-central-1.aws.neon.tech/neondb?sslmode=require&channel_binding=require"


@pytest.mark.parametrize("url", ["", "  ", NEON, NEON.replace("postgresql:", "postgres:"), "postgresql:///tasks"])
def test_a_url_as_neon_shows_it_is_accepted(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    settings = load_settings()
    assert settings.database_url.get_secret_value() == url.strip()
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://ann:s3cret@host/db"),
        ("DATABASE_URL", "psql 'postgresql://ann:s3cret@host/db'"),
        ("DATABASE_URL", "host=h user=ann password=s3cret"),
        ("DATABASE_URL", "postgresql://ann:s3cret@[::1/db"),
        ("DATABASE_URL", "postgresql://ann:s3cret@host/db?nonsense=1"),
        ("DATABASE_POOL_SIZE", "0"),
        ("DATABASE_POOL_SIZE", "-1"),
        ("DATABASE_POOL_SIZE", "many"),
        ("DATABASE_POOL_SIZE", "1.5"),
        ("DATABASE_TIMEOUT", "0"),
        ("DATABASE_TIMEOUT", "nan"),
        ("DATABASE_TIMEOUT", "inf"),
        ("DATABASE_TIMEOUT", "5s"),
        ("CORS_ORIGINS", "localhost:3000"),
        ("CORS_ORIGINS", "http://localhost:3000/"),
        ("CORS_ORIGINS", "http://localhost:3000,https://example.com/app"),
        ("CORS_ORIGINS", "http://a http://b"),
        ("LOG_LEVEL", "loud"),
        ("AUTH_JWKS_URL", "auth.example.com/jwks"),
        ("AUTH_JWKS_URL", "file:///etc/passwd"),
        ("AUTH_SECRET", "s3cret"),
        ("AUTH_SECRET", "s3cret".ljust(31, "x")),
        ("AUTH_SECRET", " "),
        ("AUTH_SECRET", " " * 40),
        ("AUTH_SECRET", "\t\r\n\u3000" * 20),
    ],
)
def test_an_invalid_value_is_reported_in_one_sentence_without_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as raised:
        load_settings()
    sentence = str(raised.value)
    assert sentence.startswith(f"{name} is wrong: ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "s3cret" not in sentence


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("source", ["environment", ".env.local"])
def test_an_empty_value_overrides_earlier_sources_with_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str
) -> None:
    other = OTHER_SETTINGS[name]
    files = (tmp_path / ".env", tmp_path / ".env.local")
    files[0].write_text(f"{name}={other}\n")
    files[1].write_text(f"{name}={other if source == 'environment' else ''}\n")
    if source == ".env.local":
        monkeypatch.delenv(name)
    assert load_settings(files) == Settings.model_construct()


@pytest.mark.parametrize("value", ["WARNING", " warning", "warning\r"])
def test_a_log_level_is_case_insensitive(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LOG_LEVEL", value)
    assert load_settings().log_level == "warning"


def test_an_invalid_value_ends_start_up_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_TIMEOUT", "soon")
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", "0"]
    completed = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=60, check=False)
    assert completed.returncode != 0
    assert completed.stderr.splitlines() == [
        "DATABASE_TIMEOUT is wrong: Input should be a valid number, unable to parse string as a number."
    ]


def test_the_environment_overrides_env_local_which_overrides_env(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (tmp_path / ".env", tmp_path / ".env.local")
    files[0].write_text("DATABASE_POOL_SIZE=1\nDATABASE_TIMEOUT=1\nLOG_LEVEL=debug\n")
    files[1].write_text("DATABASE_POOL_SIZE=2\nDATABASE_TIMEOUT=2\nVITE_SOMETHING=else\n")
    for name in ("DATABASE_TIMEOUT", "LOG_LEVEL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_POOL_SIZE", "3")
    settings = load_settings(files)
    assert (settings.database_pool_size, settings.database_timeout, settings.log_level) == (3, 2, "debug")


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        (",", []),
        ("*", ["*"]),
        ("https://app.example.com", ["https://app.example.com"]),
        (
            " http://a:1 ,, http://[::1]:2,capacitor://localhost",
            ["http://a:1", "http://[::1]:2", "capacitor://localhost"],
        ),
    ],
)
def test_origins_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, value: str, origins: list[str]) -> None:
    monkeypatch.setenv("CORS_ORIGINS", value)
    assert load_settings().cors_origins == origins


@pytest.mark.parametrize("missing_value", ["", " "], ids=["empty", "blank"])
def test_a_jwks_url_requires_issuer_and_audience_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, missing_value: str
) -> None:
    values = {"AUTH_JWKS_URL": "https://a/jwks", "AUTH_ISSUER": "https://a", "AUTH_AUDIENCE": "https://a"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert load_settings().requires_tokens
    for missing in ("AUTH_ISSUER", "AUTH_AUDIENCE"):
        with monkeypatch.context() as without:
            without.setenv(missing, missing_value)
            with pytest.raises(SystemExit, match=f"^{missing} is wrong: it must be set where AUTH_JWKS_URL is.$"):
                load_settings()
    monkeypatch.setenv("AUTH_SECRET", "x" * 32)
    with pytest.raises(SystemExit, match=r"^AUTH_SECRET is wrong: it must be empty"):
        load_settings()


@pytest.fixture
def env_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a .env.local, which does not exist yet and which the settings are read from."""
    file = tmp_path / ".env.local"
    monkeypatch.setattr("settings.ENV_FILES", (HERE / ".env", file))
    return file


def make_unreadable(file: Path, how: str) -> None:
    """Create something at this path that no settings can be read from."""
    if how == "a folder":
        file.mkdir()
    elif how == "a broken link":
        file.symlink_to(file.parent / "missing")
    elif how == "not readable":
        file.write_text("LOG_LEVEL=error")
        file.chmod(0)
    else:
        file.write_bytes({"Latin-1": "LOG_LEVEL=größer", "UTF-16": "LOG_LEVEL=error"}[how].encode(how))


@pytest.mark.parametrize("how", ["Latin-1", "UTF-16", "a folder", "a broken link", "not readable"])
def test_an_unreadable_file_is_reported_in_one_sentence(env_local: Path, how: str) -> None:
    if how == "not readable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    make_unreadable(env_local, how)
    with pytest.raises(SystemExit) as raised:
        load_settings()
    sentence = str(raised.value)
    assert sentence.startswith(f"{env_local} cannot be read: ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
