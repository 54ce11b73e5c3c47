"""The types of the API: parameters, request bodies, responses and problems."""

import base64
import hashlib
import json
import re
import struct
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Body, Header, Path
from pydantic import (
    MISSING,
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError, to_json

from models import Priority

EXAMPLE_ID = "5b1d6c1e-8f0a-4c55-9d53-0c3d8f7b2a10"
EXAMPLE_TIME = "2026-12-24T18:00:00.000000Z"


# ---- Field types ----------------------------------------------------------------------------
# A PydanticCustomError becomes an entry in the `errors` of a 422 response. `MISSING` means that a field was not
# sent: unlike None, `model_dump()` omits it.

CONTROL_CHARACTERS = r"\x00-\x1f\x7f-\x9f"
NO_CONTROL_CHARACTERS = rf"^[^{CONTROL_CHARACTERS}]*$"
MULTILINE_TEXT = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$"  # tabs and line breaks are allowed
# White space that is not a control character. `\s` differs between languages, and OpenAPI's patterns are ECMAScript.
SPACES = r" \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
MAX_SEARCH_WORDS = 10
# RFC 3339, section 5.6. Pydantic also accepts a number, a date, and a time without seconds.
RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _check_rfc3339(value: object) -> object:
    if not isinstance(value, str) or not RFC3339.fullmatch(value):
        raise PydanticCustomError("datetime_rfc3339", "Input should be an RFC 3339 date-time with an offset")
    return value


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("datetime_range", "Input should be within the years 1 to 9999 in UTC") from None


def _check_word_count(value: str) -> str:
    if len(value.split()) > MAX_SEARCH_WORDS:
        message = "String should have at most {max_words} words"
        raise PydanticCustomError("too_many_words", message, {"max_words": MAX_SEARCH_WORDS})
    return value


def _check_not_blank(value: str) -> str:
    if not value.split():
        raise PydanticCustomError("no_words", "String should have at least 1 word")
    return value


def _trimmed(max_length: int, example: str) -> tuple[Any, ...]:
    """Return the annotations for a str of 1 to `max_length` characters after trimming."""
    # OpenAPI gets one pattern for input, because its `maxLength` would count before trimming. For output it gets
    # lengths only: tasks of earlier versions may hold control characters.
    edge, spaces = f"[^{CONTROL_CHARACTERS}{SPACES}]", rf"[\t-\r\x85{SPACES}]*"
    pattern = f"^{spaces}{edge}([^{CONTROL_CHARACTERS}]{{0,{max_length - 2}}}{edge})?{spaces}$"
    description = f"1 to {max_length} characters after trimming, no control characters."
    common: dict[str, Any] = {"type": "string", "description": description, "examples": [example]}
    return (
        StringConstraints(strip_whitespace=True, min_length=1, max_length=max_length, pattern=NO_CONTROL_CHARACTERS),
        WithJsonSchema(common | {"pattern": pattern}, mode="validation"),
        WithJsonSchema(common | {"minLength": 1, "maxLength": max_length}, mode="serialization"),
    )


def _parse_digits(text: Any) -> Any:
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else text  # pydantic also accepts 1.0 and 1_0


def _parse_bool(text: Any) -> bool:
    if text not in ("true", "false"):  # pydantic also accepts yes, on and 1
        raise PydanticCustomError("bool_parsing", "Input should be true or false")
    return bool(text == "true")


def _integral_float_to_int(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # in JSON, 1.0 is an integer


_WORD, _SPACE = f"[^{CONTROL_CHARACTERS}{SPACES}]+", rf"[\t\n\r{SPACES}]"
_WORDS = f"{_WORD}({_SPACE}+{_WORD}){{0,{MAX_SEARCH_WORDS - 1}}}{_SPACE}*"
Search = Annotated[
    str,
    StringConstraints(pattern=MULTILINE_TEXT, max_length=200),
    AfterValidator(_check_word_count),
    Field(json_schema_extra={"pattern": f"^{_SPACE}*({_WORDS})?$"}),
]
NonBlankSearch = Annotated[
    Search, AfterValidator(_check_not_blank), Field(json_schema_extra={"pattern": f"^{_SPACE}*{_WORDS}$"})
]
QueryBool = Annotated[bool, BeforeValidator(_parse_bool)]
Limit = Annotated[int, Field(strict=True, ge=1, le=1000), BeforeValidator(_parse_digits)]
Timestamp = Annotated[AwareDatetime, BeforeValidator(_check_rfc3339), AfterValidator(_to_utc)]
Title = Annotated[str, *_trimmed(200, "Buy milk")]
_DESCRIPTION: dict[str, Any] = {
    "description": "At most 2,000 characters, no control characters but tabs and line breaks.",
    "examples": ["Two litres, the blue one"],
}
Description = Annotated[
    str,
    StringConstraints(max_length=2000, pattern=MULTILINE_TEXT),
    Field(**_DESCRIPTION),
    WithJsonSchema({"type": "string", "maxLength": 2000} | _DESCRIPTION, mode="serialization"),  # as in _trimmed()
]
Completed = Annotated[bool, Field(strict=True, description="Whether it is done.")]
Tag = Annotated[str, *_trimmed(50, "home")]
Tags = Annotated[
    list[Tag],
    Field(
        max_length=20,
        description="At most 20, each 1 to 50 characters after trimming, no control characters.",
        examples=[["home"]],
    ),
    AfterValidator(lambda tags: list(dict.fromkeys(tags))),  # drops duplicates and keeps the order
]
DueDate = Annotated[
    Timestamp,
    Field(description="RFC 3339 with an offset; returned in UTC.", examples=["2026-12-24T18:00:00Z"]),
]
MAX_EXTRA_SIZE = 4096  # bytes of JSON


def _check_extra(value: dict[str, Any]) -> dict[str, Any]:
    if len(to_json(value)) > MAX_EXTRA_SIZE:
        message = "Object should have at most {max_size} bytes as JSON"
        raise PydanticCustomError("too_large", message, {"max_size": f"{MAX_EXTRA_SIZE:,}"})
    if _has_invalid_value(value):
        raise PydanticCustomError("invalid_json_value", "Object should have no NUL characters and no infinite numbers")
    return value


def _has_invalid_value(value: object) -> bool:
    """Return whether JSON has a value that PostgreSQL or JavaScript cannot represent."""
    if isinstance(value, dict):
        return any(_has_invalid_value(item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return any(map(_has_invalid_value, value))
    return "\0" in value if isinstance(value, str) else isinstance(value, float) and not isfinite(value)


Extra = Annotated[
    dict[str, Any],
    Field(
        description="The client's own data, at most 4 KiB as JSON. It is replaced as a whole.",
        examples=[{"color": "red"}],
    ),
    AfterValidator(_check_extra),
]
Order = Annotated[
    int,
    Field(strict=True, ge=-(2**31), le=2**31 - 1, description="A position for manual ordering.", examples=[1]),
    BeforeValidator(_integral_float_to_int),
]

# ---- Path and header parameters -------------------------------------------------------------

USER_ID_PATTERN = r"^[^/\x00-\x1f\x7f-\x9f]+$"
UserId = Annotated[
    str,
    Path(
        min_length=1, max_length=128, pattern=USER_ID_PATTERN, description="The owner of the tasks.", examples=["alice"]
    ),
]
TaskId = Annotated[UUID, Path(description="The id of the task.", examples=[EXAMPLE_ID])]


def _remove_null(schema: dict[str, Any]) -> None:
    """Remove null from the schema of a header, which is present or absent but never null."""
    schema.update(schema.pop("anyOf")[0])


MAX_ETAGS_LENGTH = 8192  # characters of If-Match or If-None-Match
IdempotencyKey = Annotated[
    Annotated[str, Field(min_length=1, max_length=255, pattern="^[!-~]+$")] | None,
    Field(json_schema_extra=_remove_null),
    Header(description="1 to 255 visible ASCII characters, unique for each task to create.", examples=[EXAMPLE_ID]),
]
ETags = Annotated[
    Annotated[str, Field(max_length=MAX_ETAGS_LENGTH)] | None,
    Field(json_schema_extra=_remove_null),
]
IfMatch = Annotated[
    ETags, Header(description="The `ETag` that the task must have; otherwise 412. `*` matches any.", examples=['"42"'])
]
IfNoneMatch = Annotated[
    ETags,
    Header(
        description="The `ETag` of the last response. While it has not changed, the response is 304.", examples=['"42"']
    ),
]
CreateOnly = Annotated[
    Annotated[str, Field(max_length=MAX_ETAGS_LENGTH, json_schema_extra={"pattern": r"^\*$"})] | None,
    Field(json_schema_extra=_remove_null),
    Header(description="`*` creates the task. Not together with `If-Match`.", examples=["*"]),
]

# ---- Query parameters -----------------------------------------------------------------------

Sort = Literal[
    "created_at",
    "-created_at",
    "updated_at",
    "-updated_at",
    "due_date",
    "-due_date",
    "priority",
    "-priority",
    "title",
    "-title",
    "order",
    "-order",
]

# The position in a cursor, for each sort: the value of the sorted column, and the id, which breaks ties.
CURSOR_POSITIONS: dict[str, TypeAdapter[tuple[Any, UUID]]] = {
    "created_at": TypeAdapter(tuple[Timestamp, UUID]),
    "updated_at": TypeAdapter(tuple[Timestamp, UUID]),
    "due_date": TypeAdapter(tuple[Timestamp | None, UUID]),
    "priority": TypeAdapter(tuple[Priority, UUID]),
    "title": TypeAdapter(
        tuple[Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")], UUID]
    ),  # tasks of earlier versions may hold control characters
    "order": TypeAdapter(tuple[Order | None, UUID]),
}
MAX_FILTER_VALUES = 100
MAX_QUERY_LENGTH = 4096  # characters without the cursor: `Link` repeats them, and proxies limit a header to 8 KiB
CHECKSUM_BYTES = 9
SEARCH_HELP = "At most 10 words. Each must occur in title or description; case is ignored."


class Filters(BaseModel):
    """The filters of a list: a task matches when it matches all that are given."""

    model_config = ConfigDict(extra="forbid")

    completed: QueryBool | MISSING = Field(MISSING, description="Whether the task is completed.")
    completed_before: Timestamp | MISSING = Field(
        MISSING, description="Completed before this time.", examples=[EXAMPLE_TIME]
    )
    completed_after: Timestamp | MISSING = Field(
        MISSING, description="Completed after this time.", examples=[EXAMPLE_TIME]
    )
    id: Annotated[list[UUID], Field(max_length=MAX_FILTER_VALUES)] | MISSING = Field(
        MISSING, description="Repeat to match any of several.", examples=[[EXAMPLE_ID]]
    )
    priority: Annotated[list[Priority], Field(max_length=MAX_FILTER_VALUES)] | MISSING = Field(
        MISSING, description="Repeat to match any of several.", examples=[["high"]]
    )
    tag: Annotated[list[Tag], Field(max_length=MAX_FILTER_VALUES)] | MISSING = Field(
        MISSING, description="Repeat to match all of several.", examples=[["home"]]
    )
    q: Search | MISSING = Field(MISSING, description=SEARCH_HELP, examples=["milk eggs"])
    due_before: Timestamp | MISSING = Field(MISSING, description="Due before this time.", examples=[EXAMPLE_TIME])
    due_after: Timestamp | MISSING = Field(MISSING, description="Due after this time.", examples=[EXAMPLE_TIME])
    updated_after: Timestamp | MISSING = Field(MISSING, description="Changed after this time.", examples=[EXAMPLE_TIME])

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, values: dict[str, Any]) -> dict[str, Any]:
        if 6 * len(str(values)) > MAX_QUERY_LENGTH:  # most queries are short even if each character became six
            query = {name: value for name, value in values.items() if name != "cursor"}
            if len(urlencode(query, doseq=True)) > MAX_QUERY_LENGTH:
                message = "Query should have at most {max_length} characters beside the cursor"
                raise PydanticCustomError("query_too_long", message, {"max_length": f"{MAX_QUERY_LENGTH:,}"})
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the filters that are given, by name."""
        return self.model_dump(include=set(Filters.model_fields))


class BulkFilters(Filters):
    """The filters of a bulk change or delete. A blank search, which would match all tasks, is rejected."""

    q: NonBlankSearch | MISSING = Field(MISSING, description=SEARCH_HELP, examples=["milk eggs"])


class ListQuery(Filters):
    """The query of a list: filters, order and page."""

    sort: Sort = Field(
        "-created_at",
        description="`-` sorts in descending order. Null counts as the highest value. Ties are broken by `id`.",
    )
    limit: Limit = Field(1000, description="The maximum number of tasks in a page.", examples=[20])
    total: QueryBool = Field(False, description="Whether to send `X-Total-Count`.")
    cursor: str | SkipJsonSchema[None] = Field(
        None, description="The position at which the page begins. Take it from `Link`."
    )

    def encode_cursor(self, task: dict[str, Any], user_id: str) -> str:
        """Return the cursor of the page that starts after `task`, a task as in the response."""
        position = json.dumps([task[self.sort.removeprefix("-")], task["id"]], ensure_ascii=False)
        return self._encode(position.encode(), user_id)

    def decode_cursor(self, user_id: str) -> tuple[Any, UUID]:
        """Return the position in the cursor: the value of the sorted column, and the id.

        Raises ValueError when the cursor was truncated, changed, or made for another list.
        """
        position = base64.urlsafe_b64decode(f"{self.cursor}==")[CHECKSUM_BYTES:]
        if self.cursor != self._encode(position, user_id):
            raise ValueError("the cursor does not belong to this list")
        return CURSOR_POSITIONS[self.sort.removeprefix("-")].validate_json(position)

    def _encode(self, position: bytes, user_id: str) -> str:
        context = json.dumps([user_id, self.sort, self.model_dump_json(include=set(Filters.model_fields))])
        return base64.urlsafe_b64encode(_checksum(context, position) + position).rstrip(b"=").decode()


class EraseQuery(BaseModel):
    """The query of an erasure. A request that was meant for something else does not have it."""

    model_config = ConfigDict(extra="forbid")

    confirm: str = Field(description="The `user_id` of the path once more.", examples=["alice"])


class ChangesQuery(BaseModel):
    """The query of a list of changes."""

    model_config = ConfigDict(extra="forbid")

    since: str | SkipJsonSchema[None] = Field(
        None, description="The `cursor` of the last response. Without it the changes begin at the beginning."
    )
    limit: Limit = Field(1000, description="The maximum number of changes in a response.", examples=[20])


class ChangesCursor(NamedTuple):
    """A position in the changes of a user.

    The client has received all changes up to the task `task_id` of version `version`. `complete_at` is the
    time at which it had last received all changes that there were. `epoch` is that of `models.User`, or 0
    before the user's first write.
    """

    epoch: int
    complete_at: datetime
    version: int
    task_id: UUID

    @classmethod
    def beginning(cls) -> "ChangesCursor":
        """Return the position before all changes."""
        return cls(0, datetime.fromtimestamp(0, UTC), -1, UUID(int=0))

    def encode(self, user_id: str) -> str:
        """Return the cursor as text."""
        microseconds = (self.complete_at - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
        position = CURSOR_FORMAT.pack(self.epoch, microseconds, self.version, self.task_id.bytes)
        return base64.urlsafe_b64encode(_checksum(user_id, position) + position).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str, user_id: str) -> "ChangesCursor":
        """Return the cursor in a text. Raises ValueError when it was truncated, changed, or made for another user."""
        position = base64.urlsafe_b64decode(f"{text}==")[CHECKSUM_BYTES:]
        if len(position) != CURSOR_FORMAT.size:
            raise ValueError("the cursor was truncated")
        epoch, microseconds, version, task_id = CURSOR_FORMAT.unpack(position)
        try:
            complete_at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)
        except OverflowError:
            raise ValueError("the cursor was changed") from None
        cursor = cls(epoch, complete_at, version, UUID(bytes=task_id))
        if cursor.encode(user_id) != text:
            raise ValueError("the cursor does not belong to this user")
        return cursor


CURSOR_FORMAT = struct.Struct(">qqq16s")


def _checksum(context: str, position: bytes) -> bytes:
    # Not a signature: a forged cursor leads only to another position in the same user's list.
    return hashlib.blake2b(context.encode() + position, digest_size=CHECKSUM_BYTES).digest()


# ---- Request bodies -------------------------------------------------------------------------


def _read_only(description: str) -> Any:
    return Field(None, description=description, exclude=True, json_schema_extra={"readOnly": True})


class ReadOnlyFields(BaseModel):
    """The fields that only the service sets. A body may have them, so that a client can send what it received."""

    model_config = ConfigDict(extra="forbid")

    id: Any = _read_only("Ignored.")
    user_id: Any = _read_only("Ignored: the owner is the user in the path.")
    url: Any = _read_only("Ignored.")
    version: Any = _read_only("Ignored: see `If-Match`.")
    completed_at: Any = _read_only("Ignored.")
    created_at: Any = _read_only("Ignored.")
    updated_at: Any = _read_only("Ignored.")


class TaskInput(ReadOnlyFields):
    """A whole task, for create and replace. A field that is omitted gets its default."""

    title: Title
    description: Description | None = None
    completed: Completed = False
    priority: Priority = Priority.medium
    tags: Tags = []
    due_date: DueDate | None = None
    order: Order | None = None
    extra: Extra = {}


class TaskPatch(ReadOnlyFields):
    """Some fields of a task. A field that is omitted keeps its value; `null` clears a nullable field."""

    title: Title | MISSING = MISSING
    description: Description | MISSING | None = MISSING
    completed: Completed | MISSING = MISSING
    priority: Priority | MISSING = MISSING
    tags: Tags | MISSING = MISSING
    due_date: DueDate | MISSING | None = MISSING
    order: Order | MISSING | None = MISSING
    extra: Extra | MISSING = MISSING


class Completion(ReadOnlyFields):
    """The new value of `completed`. Sending it twice has the same effect as once."""

    completed: Completed


def _reject_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError("body_missing", "Input should be an object, or there should be no body")
    return value


OptionalCompletion = Annotated[Completion | SkipJsonSchema[None], BeforeValidator(_reject_null)]
WRITABLE_FIELDS = [name for name in TaskPatch.model_fields if name not in ReadOnlyFields.model_fields]
# OpenAPI: at least one field. The endpoint checks it.
BulkPatch = Annotated[TaskPatch, Body(json_schema_extra={"anyOf": [{"required": [name]} for name in WRITABLE_FIELDS]})]


# ---- Responses ------------------------------------------------------------------------------


class Task(BaseModel):
    """A task. PostgreSQL writes the JSON; this class documents it."""

    id: UUID = Field(description="UUID of version 4, made by the server.", examples=[EXAMPLE_ID])
    user_id: str = Field(description="The owner.", examples=["alice"])
    url: str = Field(
        description="The absolute URL of this task.",
        json_schema_extra={"format": "uri"},
        examples=[f"http://127.0.0.1:8000/api/alice/tasks/{EXAMPLE_ID}"],
    )
    title: Title
    description: Description | None
    completed: Completed
    completed_at: Timestamp | None = Field(description="When it was completed, in UTC.", examples=[EXAMPLE_TIME])
    priority: Priority
    tags: Tags
    due_date: DueDate | None
    order: Order | None
    extra: Extra
    version: int = Field(
        description="Grows with every change. In quotes it is the `ETag` of the task.", examples=[1795564800000001]
    )
    created_at: Timestamp = Field(description="When it was created, in UTC.", examples=[EXAMPLE_TIME])
    updated_at: Timestamp = Field(description="When it was last changed, in UTC.", examples=[EXAMPLE_TIME])


class Change(Task):
    """The state of a task that was created, changed or deleted."""

    deleted_at: Timestamp | None = Field(description="When it was deleted, in UTC.", examples=[None])


class Changes(BaseModel):
    """The changes since a cursor, in their order. A task is in it once, in its current state."""

    changes: list[Change] = Field(description="Replace the client's copy of each task, or remove a deleted one.")
    cursor: str = Field(description="The position of the next request: send it as `since`.", examples=["q83vEjRW"])
    more: bool = Field(description="Whether there are more changes: send the next request at once.", examples=[False])


class Updated(BaseModel):
    """The number of tasks that were changed."""

    updated: int = Field(description="The number of tasks.", examples=[3])


class Deleted(BaseModel):
    """The number of tasks that were deleted."""

    deleted: int = Field(description="The number of tasks.", examples=[3])


class PriorityCounts(BaseModel):
    """The number of tasks of each priority."""

    low: int = Field(description="Tasks of priority `low`.", examples=[1])
    medium: int = Field(description="Tasks of priority `medium`.", examples=[9])
    high: int = Field(description="Tasks of priority `high`.", examples=[2])


class Summary(BaseModel):
    """The counts of a user's tasks."""

    user_id: str = Field(description="The owner of the tasks.", examples=["alice"])
    total: int = Field(description="All tasks.", examples=[12])
    completed: int = Field(description="Completed.", examples=[5])
    pending: int = Field(description="Not completed.", examples=[7])
    overdue: int = Field(description="Not completed, with a due date in the past.", examples=[2])
    priorities: PriorityCounts = Field(description="The number of tasks of each priority.")
    tags: dict[str, int] = Field(
        description="The number of tasks with each tag, for the 1,000 most used tags.",
        examples=[{"home": 3, "work": 9}],
    )


class Problem(BaseModel):
    """An error, as in RFC 9457, section 3.1."""

    type: str = Field(description="Always `about:blank`: `status` tells errors apart.", examples=["about:blank"])
    title: str = Field(description="The name of the status.", examples=["Not Found"])
    status: int = Field(description="The HTTP status.", examples=[404])
    detail: str = Field(description="What is wrong, for people.", examples=["There is no such task."])
    instance: str = Field(description="The path of the request.", examples=["/api/alice/tasks"])


MAX_ERRORS = 20


class InputError(BaseModel):
    """One rule that the input violates. The input itself is never repeated."""

    loc: list[str | int] = Field(
        description="The location of the error, from the outermost part inwards.", examples=[["body", "title"]]
    )
    msg: str = Field(description="What is wrong, for people.", examples=["Field required"])
    type: str = Field(description="The kind of error, for programs.", examples=["missing"])


class ValidationProblem(Problem):
    """A problem with the input."""

    errors: list[InputError] = Field(
        max_length=MAX_ERRORS, description="One entry for each rule that the input violates, at most 20."
    )


class ServerProblem(Problem):
    """A problem of the service, which is not the fault of the client."""

    request_id: str = Field(
        description="The id of the request, which the log has too: from `X-Request-Id` or `traceparent`, or a new one.",
        examples=["4bf92f3577b34da6a3ce929d0e0e4736"],
    )


class Health(BaseModel):
    """The state of the service."""

    status: str = Field(description="ok or ready.", examples=["ok"])
