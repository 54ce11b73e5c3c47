"""The settings of the service: one class, read once when the process starts."""

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

HERE = Path(__file__).resolve().parent
ENV_FILES = (HERE / ".env", HERE / ".env.local")  # the last one wins
EMBEDDED_DATA = HERE / ".postgres"  # the data of the PostgreSQL that is used without a DATABASE_URL

# A browser sends `Origin: scheme://host[:port]` and nothing else (RFC 6454, section 6.2), so an
# entry with a path or a trailing slash would never match.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#]+")


class Settings(BaseModel):
    """What can be set, with its default. A variable has the field's name in capitals.

    The environment wins over `.env.local`, which wins over `.env`; an empty value means the default.
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # a wrong DATABASE_URL still has its password in it

    database_url: SecretStr = SecretStr("")
    database_pool_size: int = Field(default=20, ge=1, le=1000)
    database_timeout: float = Field(default=5, gt=0, le=300, allow_inf_nan=False)
    cors_origins: list[str] = ["http://localhost:3000", "http://localhost:5173"]
    auth_jwks_url: str = Field(default="", pattern="^(https?://.*)?$")
    auth_secret: SecretStr = SecretStr("")
    auth_issuer: str = Field(default="", validate_default=True)
    auth_audience: str = Field(default="", validate_default=True)
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(lambda name: name.strip().lower())
    ] = "info"

    @property
    def requires_tokens(self) -> bool:
        """Whether a request must say with a token who is asking, or the path is trusted."""
        return bool(self.auth_jwks_url or self.auth_secret.get_secret_value())

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty(cls, values: dict[str, object]) -> dict[str, object]:
        # So that an empty variable of the environment switches off what .env.local says.
        return {name: value for name, value in values.items() if value != ""}

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value().strip()
        if url and not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("it must be empty or start with postgresql:// or postgres://")
        try:
            parse_dsn(url)
        except ProgrammingError:  # its text may quote the URL, password included
            raise ValueError("it is not a URL that PostgreSQL understands") from None
        return SecretStr(url)

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        origins = [origin.strip() for origin in value.split(",") if origin.strip()]
        for origin in origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin; write scheme://host[:port], with no slash after it")
        return origins

    @field_validator("auth_secret")
    @classmethod
    def _check_secret(cls, value: SecretStr, others: ValidationInfo) -> SecretStr:
        secret = value.get_secret_value()
        if secret and others.data.get("auth_jwks_url"):
            raise ValueError("it must be empty where AUTH_JWKS_URL is set")
        if secret and not secret.strip():
            raise ValueError("it must be more than blanks")
        if secret and len(secret.encode()) < 32:  # RFC 7518, section 3.2
            raise ValueError("it must be 32 bytes or longer")
        return value

    @field_validator("auth_issuer", "auth_audience")
    @classmethod
    def _check_claims(cls, value: str, others: ValidationInfo) -> str:
        if others.data.get("auth_jwks_url") and not value.strip():
            raise ValueError("it must be set where AUTH_JWKS_URL is")
        return value


def load_settings(files: Sequence[Path] | None = None) -> Settings:
    """Read the settings from the environment and the files, `ENV_FILES` unless others are given.

    Raises SystemExit with a sentence for each variable that is wrong, which shows no secret, or for a
    file that cannot be read.
    """
    values: dict[str, str | None] = {}
    for file in ENV_FILES if files is None else files:
        _check_readable(file)
        values |= dotenv_values(file)
    values |= os.environ
    try:
        return Settings.model_validate({name.lower(): value for name, value in values.items() if value is not None})
    except ValidationError as error:
        wrong = [
            f"{str(problem['loc'][0]).upper()} is wrong: {problem['msg'].removeprefix('Value error, ')}."
            for problem in error.errors()
        ]
        raise SystemExit(" ".join(wrong)) from None


def _check_readable(file: Path) -> None:
    # A folder or a link to nowhere would be passed over, with the secrets that somebody meant to give.
    if file.is_fifo() or not os.path.lexists(file):  # a pipe gives what it has only once
        return
    try:
        file.read_text("utf-8")
    except UnicodeDecodeError:
        raise SystemExit(f"{file} cannot be read: it is not UTF-8.") from None
    except OSError as error:
        raise SystemExit(f"{file} cannot be read: {error.strerror}.") from None
