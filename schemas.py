"""What goes over the wire: path and query parameters, request bodies, answers, problems."""

import base64
import hashlib
import re
from datetime import UTC, datetime
from typing import Annotated, Self
from uuid import UUID

from fastapi import Path
from pydantic import (
    MISSING,
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)
from pydantic_core import PydanticCustomError

from models import Priority

# ---- Values ---------------------------------------------------------------------------------

# RFC 3339, section 5.6: date, time and offset are all there. Pydantic alone would also take a
# number, a date, or a time without seconds.
RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _no_nul(value: str) -> str:
    if "\0" in value:  # PostgreSQL's text cannot hold it
        raise PydanticCustomError("string_nul", "String should not contain the character NUL")
    return value


def _is_rfc3339(value: object) -> object:
    if not isinstance(value, str) or not RFC3339.fullmatch(value):
        raise PydanticCustomError("datetime_rfc3339", "Input should be an RFC 3339 date-time with an offset")
    return value


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("datetime_range", "Input should be within the years 1 to 9999 in UTC") from None


def _drop_duplicates(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


Timestamp = Annotated[AwareDatetime, BeforeValidator(_is_rfc3339), AfterValidator(_to_utc)]
Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(_no_nul),
    Field(description="1 to 200 characters after trimming.", examples=["Buy milk"]),
]
Description = Annotated[
    str,
    StringConstraints(max_length=2000),
    AfterValidator(_no_nul),
    Field(description="At most 2,000 characters.", examples=["Two litres, the blue one"]),
]
Tag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=50), AfterValidator(_no_nul)]
Tags = Annotated[
    list[Tag],
    Field(max_length=20, description="At most 20, each 1 to 50 characters after trimming.", examples=[["home"]]),
    AfterValidator(_drop_duplicates),
]
Completed = Annotated[bool, Field(strict=True, description="Whether it is done.")]
Order = Annotated[
    int,
    Field(strict=True, ge=-(2**31), le=2**31 - 1, description="A place for ordering by hand.", examples=[1]),
]
DueDate = Annotated[
    Timestamp,
    Field(description="RFC 3339 with an offset; answered in UTC.", examples=["2026-12-24T18:00:00Z"]),
]

# ---- Path and query parameters --------------------------------------------------------------

UserId = Annotated[
    str,
    Path(
        min_length=1,
        max_length=128,
        pattern=r"^[^/\x00-\x1f\x7f-\x9f]+$",
        description="Whose tasks: 1 to 128 characters, opaque to this service.",
        examples=["alice"],
    ),
]
TaskId = Annotated[UUID, Path(description="Which task.")]


class ListQuery(BaseModel):
    """The query parameters of a list."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=1000, description="At most so many tasks in one page.")] = 1000
    cursor: Annotated[
        str | None,
        Field(description="Where the page before ended. Opaque: follow `Link`, do not make one."),
    ] = None


class Cursor(BaseModel):
    """The place in a list where one page ends and the next begins: the last task that was shown."""

    created_at: Timestamp
    id: UUID

    def encode(self, user_id: str) -> str:
        """Return it as text for a URL, bound to the list it was made for."""
        position = self.model_dump_json().encode()
        return base64.urlsafe_b64encode(_checksum(user_id, position) + position).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str, user_id: str) -> Self:
        """Read what `encode` wrote.

        Raises ValueError when the text was cut, changed or made for another list.
        """
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        checksum, position = raw[:CHECKSUM_BYTES], raw[CHECKSUM_BYTES:]
        if checksum != _checksum(user_id, position):
            raise ValueError("the cursor was not made for this list")
        cursor = cls.model_validate_json(position)
        if cursor.encode(user_id) != text:  # base64 has several spellings of one value
            raise ValueError("the cursor was changed")
        return cursor


CHECKSUM_BYTES = 9


def _checksum(user_id: str, position: bytes) -> bytes:
    # Not a signature: whoever forges one gains nothing but another place in their own list.
    return hashlib.blake2b(user_id.encode() + b"\0" + position, digest_size=CHECKSUM_BYTES).digest()


# ---- Request bodies -------------------------------------------------------------------------


class TaskInput(BaseModel):
    """A whole task, for create and replace. What is left out gets its default.

    Read-only fields (`id`, `user_id`, `created_at`, ...) may be sent along and are ignored.
    """

    title: Title
    description: Description | None = None
    completed: Completed = False
    priority: Priority = Priority.medium
    tags: Tags = []
    due_date: DueDate | None = None
    order: Order | None = None


class TaskPatch(BaseModel):
    """Some fields of a task. What is left out stays; `null` clears a field that can be null."""

    title: Title | MISSING = MISSING
    description: Description | MISSING | None = MISSING
    completed: Completed | MISSING = MISSING
    priority: Priority | MISSING = MISSING
    tags: Tags | MISSING = MISSING
    due_date: DueDate | MISSING | None = MISSING
    order: Order | MISSING | None = MISSING


class Completion(BaseModel):
    """Whether the task is done from now on. Sent twice, it does no more than sent once."""

    completed: Completed


# ---- Answers --------------------------------------------------------------------------------


class Task(BaseModel):
    """One task, as it is answered. PostgreSQL writes the JSON; this class documents it."""

    id: Annotated[UUID, Field(description="Made by the server, version 4.")]
    user_id: Annotated[str, Field(description="Whose task.", examples=["alice"])]
    url: Annotated[str, Field(description="The absolute address of this task.", json_schema_extra={"format": "uri"})]
    title: Title
    description: Description | None
    completed: Completed
    completed_at: Annotated[Timestamp | None, Field(description="When it was completed, in UTC.")]
    priority: Priority
    tags: Tags
    due_date: DueDate | None
    order: Order | None
    created_at: Annotated[Timestamp, Field(description="In UTC.")]
    updated_at: Annotated[Timestamp, Field(description="When anything of it last changed, in UTC.")]


class Problem(BaseModel):
    """An error, as in RFC 9457, section 3.1."""

    type: Annotated[str, Field(description="about:blank: the status says it all.", examples=["about:blank"])]
    title: Annotated[str, Field(description="The status in words.", examples=["Not Found"])]
    status: Annotated[int, Field(description="The HTTP status, once more.", examples=[404])]
    detail: Annotated[str, Field(description="What was wrong, for people.", examples=["There is no such task."])]
    instance: Annotated[str, Field(description="The path that was asked for.", examples=["/api/alice/tasks"])]


class InputError(BaseModel):
    """One rule that the input breaks. The input itself is never shown."""

    loc: Annotated[list[str | int], Field(description="Where: body, path or query, then the name.")]
    msg: Annotated[str, Field(description="What is wrong there, for people.")]
    type: Annotated[str, Field(description="The kind of error, for programs.")]


class ValidationProblem(Problem):
    """A problem with the input: one entry in `errors` for each rule it breaks."""

    errors: list[InputError]


class Health(BaseModel):
    """How the service is."""

    status: Annotated[str, Field(examples=["ok"])]
