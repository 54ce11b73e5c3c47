"""The settings of the service, read once when the process starts.

Each setting is a field of `Settings`. `load_settings` reads them from the environment, `.env` and `.env.local`.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from psycopg2 import ProgrammingError
from psycopg2.extensions import parse_dsn
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

BASE_DIR = Path(__file__).resolve().parent
ENV_FILES = (BASE_DIR / ".env", BASE_DIR / ".env.local")  # a later file overrides an earlier one
EMBEDDED_DATA = BASE_DIR / ".postgres"  # data directory of the PostgreSQL that is used without DATABASE_URL

# A browser sends `Origin: scheme://host[:port]` (RFC 6454, section 6.2), so an entry with a path or a
# trailing slash would never match.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#]+")


class Settings(BaseModel):
    """All settings with their defaults. The environment variable of a setting is the field's name in capitals.

    An empty value means the default.
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # an invalid DATABASE_URL may contain a password

    database_url: SecretStr = SecretStr("")
    database_pool_size: int = Field(default=20, ge=1, le=1000)
    database_timeout: float = Field(default=5, gt=0, le=300, allow_inf_nan=False)
    cors_origins: list[str] = [f"http://{host}:{port}" for host in ("localhost", "127.0.0.1") for port in (3000, 5173)]
    auth_jwks_url: str = Field(default="", pattern="^(https?://.*)?$")
    auth_secret: SecretStr = SecretStr("")
    auth_issuer: str = Field(default="", validate_default=True)
    auth_audience: str = Field(default="", validate_default=True)
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(lambda name: name.strip().lower())
    ] = "info"

    @property
    def requires_tokens(self) -> bool:
        """Whether requests under /api need a token. If not, the user in the path is trusted."""
        return bool(self.auth_jwks_url or self.auth_secret.get_secret_value())

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: dict[str, object]) -> dict[str, object]:
        # An empty variable in the environment resets a setting of .env.local to its default.
        return {name: value for name, value in values.items() if value != ""}

    @field_validator("database_url")
    @classmethod
    def _validate_database_url(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value().strip()
        if url and not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("it must be empty or start with postgresql:// or postgres://")
        try:
            parse_dsn(url)
        except ProgrammingError:  # its message may quote the URL with its password
            raise ValueError("it is not a valid PostgreSQL URL") from None
        return SecretStr(url)

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        origins = [origin.strip() for origin in value.split(",") if origin.strip()]
        for origin in origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin; write scheme://host[:port], without a trailing slash")
        return origins

    @field_validator("auth_secret")
    @classmethod
    def _validate_secret(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        secret = value.get_secret_value()
        if secret and info.data.get("auth_jwks_url"):
            raise ValueError("it must be empty where AUTH_JWKS_URL is set")
        if secret and not secret.strip():
            raise ValueError("it must not be blank")
        if secret and len(secret.encode()) < 32:  # RFC 7518, section 3.2
            raise ValueError("it must be 32 bytes or longer")
        return value

    @field_validator("auth_issuer", "auth_audience")
    @classmethod
    def _validate_claims(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("auth_jwks_url") and not value.strip():
            raise ValueError("it must be set where AUTH_JWKS_URL is")
        return value


def load_settings(files: Sequence[Path] | None = None) -> Settings:
    """Return the settings from the environment and from `files`, by default `ENV_FILES`.

    The environment overrides the files. Raises SystemExit when a variable is invalid or a file cannot be read.
    Its message has one sentence for each invalid variable and contains no secret.
    """
    values: dict[str, str | None] = {}
    for file in ENV_FILES if files is None else files:
        _check_readable(file)
        values |= dotenv_values(file)
    values |= os.environ
    try:
        return Settings.model_validate({name.lower(): value for name, value in values.items() if value is not None})
    except ValidationError as error:
        messages = [
            f"{str(item['loc'][0]).upper()} is wrong: {item['msg'].removeprefix('Value error, ')}."
            for item in error.errors()
        ]
        raise SystemExit(" ".join(messages)) from None


def telemetry_is_requested() -> bool:
    """Return whether a variable of OpenTelemetry (`OTEL_*`) is set in the environment.

    Its packages do not read the .env files, so these do not count.
    """
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not disabled and any(name.startswith("OTEL_") and value for name, value in os.environ.items())


def _check_readable(file: Path) -> None:
    # dotenv ignores a folder or a broken link, and the service would start without the secrets in it.
    if file.is_fifo() or not os.path.lexists(file):  # a named pipe can be read only once
        return
    try:
        file.read_text("utf-8")
    except UnicodeDecodeError:
        raise SystemExit(f"{file} cannot be read: it is not UTF-8.") from None
    except OSError as error:
        raise SystemExit(f"{file} cannot be read: {error.strerror}.") from None
