"""What goes over the wire: path, query and header parameters, request bodies, answers, problems."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
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
from pydantic_core import PydanticCustomError

from models import Priority

EXAMPLE_ID = "5b1d6c1e-8f0a-4c55-9d53-0c3d8f7b2a10"
EXAMPLE_TIME = "2026-12-24T18:00:00.000000Z"


# ---- Values ---------------------------------------------------------------------------------

CONTROLS = r"\x00-\x1f\x7f-\x9f"
NO_CONTROL_CHARACTERS = rf"^[^{CONTROLS}]*$"
TEXT = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$"  # none but tab and line breaks
# The whitespace that is no control character. `\s` is not the same in every language.
BLANKS = r" \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
MAX_SEARCH_WORDS = 10  # of a search
# RFC 3339, section 5.6: date, time and offset are all there. Pydantic alone would also take a
# number, a date, or a time without seconds.
RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _rfc3339(value: object) -> object:
    if not isinstance(value, str) or not RFC3339.fullmatch(value):
        raise PydanticCustomError("datetime_rfc3339", "Input should be an RFC 3339 date-time with an offset")
    return value


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("datetime_range", "Input should be within the years 1 to 9999 in UTC") from None


def _has_few_words(value: str) -> str:
    if len(value.split()) > MAX_SEARCH_WORDS:
        raise PydanticCustomError(
            "too_many_words", "String should have at most {most} words", {"most": MAX_SEARCH_WORDS}
        )
    return value


def _has_a_word(value: str) -> str:
    if not value.split():
        raise PydanticCustomError("no_words", "String should have a word in it")
    return value


def _trimmed(most: int, example: str) -> tuple[Any, ...]:
    """What makes a str one of 1 to `most` characters after trimming, with no control character."""
    # For OpenAPI in one pattern, because `maxLength` counts before trimming. Not for answers: older
    # tasks may hold control characters.
    edge, blanks = f"[^{CONTROLS}{BLANKS}]", rf"[\t-\r\x85{BLANKS}]*"
    pattern = f"^{blanks}{edge}([^{CONTROLS}]{{0,{most - 2}}}{edge})?{blanks}$"
    says = {"description": f"1 to {most} characters after trimming, no control characters.", "examples": [example]}
    answered = {"type": "string", "minLength": 1, "maxLength": most} | says
    return (
        StringConstraints(strip_whitespace=True, min_length=1, max_length=most, pattern=NO_CONTROL_CHARACTERS),
        WithJsonSchema({"type": "string", "pattern": pattern} | says, mode="validation"),
        WithJsonSchema(answered, mode="serialization"),
    )


def _from_digits(text: Any) -> Any:
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else text  # pydantic alone takes 1.0 and 1_0 too


def _true_or_false(text: Any) -> bool:
    if text not in ("true", "false"):  # pydantic alone takes yes, on, 1 and more
        raise PydanticCustomError("bool_parsing", "Input should be true or false")
    return bool(text == "true")


def _without_point(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # in JSON, 1.0 is an integer


WORD, SPACE = f"[^{CONTROLS}{BLANKS}]+", rf"[\t\n\r{BLANKS}]"
SOME_WORDS = f"{WORD}({SPACE}+{WORD}){{0,{MAX_SEARCH_WORDS - 1}}}{SPACE}*"
Search = Annotated[
    str,
    StringConstraints(pattern=TEXT, max_length=200),
    AfterValidator(_has_few_words),
    Field(json_schema_extra={"pattern": f"^{SPACE}*({SOME_WORDS})?$"}),
]
NonBlankSearch = Annotated[
    Search, AfterValidator(_has_a_word), Field(json_schema_extra={"pattern": f"^{SPACE}*{SOME_WORDS}$"})
]
QueryBool = Annotated[bool, BeforeValidator(_true_or_false)]  # in a URL
Limit = Annotated[int, Field(strict=True, ge=1, le=1000), BeforeValidator(_from_digits)]
Timestamp = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_to_utc)]
Title = Annotated[str, *_trimmed(200, "Buy milk")]
ABOUT: dict[str, Any] = {
    "description": "At most 2,000 characters, no control characters but tabs and line breaks.",
    "examples": ["Two litres, the blue one"],
}
Description = Annotated[
    str,
    StringConstraints(max_length=2000, pattern=TEXT),
    Field(**ABOUT),
    WithJsonSchema({"type": "string", "maxLength": 2000} | ABOUT, mode="serialization"),  # see above
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
    AfterValidator(lambda tags: list(dict.fromkeys(tags))),  # without duplicates
]
DueDate = Annotated[
    Timestamp, Field(description="RFC 3339 with an offset; answered in UTC.", examples=["2026-12-24T18:00:00Z"])
]
Order = Annotated[
    int,
    Field(strict=True, ge=-(2**31), le=2**31 - 1, description="A place for ordering by hand.", examples=[1]),
    BeforeValidator(_without_point),
]

# ---- Path and header parameters -------------------------------------------------------------

USER_ID = r"^[^/\x00-\x1f\x7f-\x9f]+$"
UserId = Annotated[
    str, Path(min_length=1, max_length=128, pattern=USER_ID, description="Whose tasks.", examples=["alice"])
]
TaskId = Annotated[UUID, Path(description="Which task.", examples=[EXAMPLE_ID])]


def _never_null(schema: dict[str, Any]) -> None:
    """Leave null out of a header's schema: it is there or not."""
    schema.update(schema.pop("anyOf")[0])


MAX_ETAGS_LENGTH = 8192  # characters of a condition
IdempotencyKey = Annotated[
    Annotated[str, Field(min_length=1, max_length=255, pattern="^[!-~]+$")] | None,
    Field(json_schema_extra=_never_null),
    Header(description="Any text of your own.", examples=[EXAMPLE_ID]),
]
ETags = Annotated[
    Annotated[str, Field(max_length=MAX_ETAGS_LENGTH)] | None,
    Field(json_schema_extra=_never_null),
]
IfMatch = Annotated[
    ETags, Header(description="An `ETag` that the task must still have, else 412. `*` is any.", examples=['"42"'])
]
IfNoneMatch = Annotated[
    ETags, Header(description="An `ETag`. While it is still the same, the response is 304.", examples=['"42"'])
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

# What a cursor holds for each of them: the value that is sorted by, and the id that breaks ties.
CURSOR_POSITIONS: dict[str, TypeAdapter[tuple[Any, UUID]]] = {
    "created_at": TypeAdapter(tuple[Timestamp, UUID]),
    "updated_at": TypeAdapter(tuple[Timestamp, UUID]),
    "due_date": TypeAdapter(tuple[Timestamp | None, UUID]),
    "priority": TypeAdapter(tuple[Priority, UUID]),
    "title": TypeAdapter(
        tuple[Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")], UUID]
    ),  # older ones hold others
    "order": TypeAdapter(tuple[Order | None, UUID]),
}
MAX_FILTER_VALUES = 100
MAX_QUERY_LENGTH = 4096  # characters of all parameters but the cursor: `Link` repeats them, and proxies take 8 KiB
CHECKSUM_BYTES = 9
WORDS = "At most 10 words, all of them in title or description, whatever the case."


class Filters(BaseModel):
    """Which tasks: those for which everything that is given holds."""

    model_config = ConfigDict(extra="forbid")

    completed: QueryBool | MISSING = Field(MISSING, description="Whether they are done.")
    priority: Annotated[list[Priority], Field(max_length=MAX_FILTER_VALUES)] | MISSING = Field(
        MISSING, description="Repeat for any of several.", examples=[["high"]]
    )
    tag: Annotated[list[Tag], Field(max_length=MAX_FILTER_VALUES)] | MISSING = Field(
        MISSING, description="Repeat for all of several.", examples=[["home"]]
    )
    q: Search | MISSING = Field(MISSING, description=WORDS, examples=["milk eggs"])
    due_before: Timestamp | MISSING = Field(MISSING, description="Due earlier than this.", examples=[EXAMPLE_TIME])
    due_after: Timestamp | MISSING = Field(MISSING, description="Due later than this.", examples=[EXAMPLE_TIME])
    updated_after: Timestamp | MISSING = Field(MISSING, description="Changed later than this.", examples=[EXAMPLE_TIME])

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, values: dict[str, Any]) -> dict[str, Any]:
        if 6 * len(str(values)) > MAX_QUERY_LENGTH:  # encoded, no byte becomes more than six
            others = {name: value for name, value in values.items() if name != "cursor"}
            if len(urlencode(others, doseq=True)) > MAX_QUERY_LENGTH:
                message = "Query should have at most {most} characters beside the cursor"
                raise PydanticCustomError("query_too_long", message, {"most": f"{MAX_QUERY_LENGTH:,}"})
        return values

    def filters(self) -> dict[str, Any]:
        """Return what is given, by name."""
        return self.model_dump(include=set(Filters.model_fields))


class Selection(Filters):
    """Which tasks to change or delete. A search without a word, which would be for all, is refused."""

    q: NonBlankSearch | MISSING = Field(MISSING, description=WORDS, examples=["milk eggs"])


class ListQuery(Filters):
    """Which tasks, in which order, and how many at once."""

    sort: Sort = Field(
        "-created_at",
        description="A null `due_date` or `order` comes last, and first with `-`. Ties are broken by `id`.",
    )
    limit: Limit = Field(1000, description="At most so many in one page.", examples=[20])
    total: QueryBool = Field(False, description="Whether to answer with `X-Total-Count`.")
    cursor: str | SkipJsonSchema[None] = Field(
        None, description="Where the page before ended: follow `Link`, do not make one."
    )

    def encode_cursor(self, task: dict[str, Any], user_id: str) -> str:
        """Return the cursor of the page that begins behind `task`, as it was sent."""
        position = json.dumps([task[self.sort.removeprefix("-")], task["id"]], ensure_ascii=False)
        return self._encode(position.encode(), user_id)

    def decode_cursor(self, user_id: str) -> tuple[Any, UUID]:
        """Return the position that the cursor holds: the value that is sorted by, and the id.

        Raises ValueError when it was cut, changed, or made for another list.
        """
        position = base64.urlsafe_b64decode(f"{self.cursor}==")[CHECKSUM_BYTES:]
        if self.cursor != self._encode(position, user_id):
            raise ValueError("the cursor was not made for this list")
        return CURSOR_POSITIONS[self.sort.removeprefix("-")].validate_json(position)

    def _encode(self, position: bytes, user_id: str) -> str:
        # Not a signature: whoever forges one gains nothing but another place in their own list.
        made_for = json.dumps([user_id, self.sort, self.model_dump_json(include=set(Filters.model_fields))])
        checksum = hashlib.blake2b(made_for.encode() + position, digest_size=CHECKSUM_BYTES).digest()
        return base64.urlsafe_b64encode(checksum + position).rstrip(b"=").decode()


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


def _no_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError("body_missing", "Input should be an object, or there should be no body")
    return value


OptionalCompletion = Annotated[Completion | SkipJsonSchema[None], BeforeValidator(_no_null)]
NonEmptyTaskPatch = Annotated[
    TaskPatch, Body(json_schema_extra={"anyOf": [{"required": [name]} for name in TaskPatch.model_fields]})
]


# ---- Answers --------------------------------------------------------------------------------


class Task(BaseModel):
    """One task, as it is answered. PostgreSQL writes the JSON; this class documents it."""

    id: UUID = Field(description="Made by the server, version 4.", examples=[EXAMPLE_ID])
    user_id: str = Field(description="Whose task.", examples=["alice"])
    url: str = Field(
        description="The absolute address of this task.",
        json_schema_extra={"format": "uri"},
        examples=[f"http://127.0.0.1:8000/api/alice/tasks/{EXAMPLE_ID}"],
    )
    title: Title
    description: Description | None
    completed: Completed
    completed_at: Timestamp | None = Field(description="Since when it is done, in UTC.", examples=[EXAMPLE_TIME])
    priority: Priority
    tags: Tags
    due_date: DueDate | None
    order: Order | None
    created_at: Timestamp = Field(description="When it was created, in UTC.", examples=[EXAMPLE_TIME])
    updated_at: Timestamp = Field(description="When anything of it last changed, in UTC.", examples=[EXAMPLE_TIME])


class Updated(BaseModel):
    """How many tasks were changed."""

    updated: int = Field(description="How many.", examples=[3])


class Deleted(BaseModel):
    """How many tasks were deleted."""

    deleted: int = Field(description="How many.", examples=[3])


class PriorityCounts(BaseModel):
    """How many tasks have each priority."""

    low: int = Field(description="Low.", examples=[1])
    medium: int = Field(description="Medium.", examples=[9])
    high: int = Field(description="High.", examples=[2])


class Summary(BaseModel):
    """A user's tasks in numbers."""

    user_id: str = Field(description="Whose tasks.", examples=["alice"])
    total: int = Field(description="All.", examples=[12])
    completed: int = Field(description="Done.", examples=[5])
    pending: int = Field(description="Not done.", examples=[7])
    overdue: int = Field(description="Not done, and the due date has passed.", examples=[2])
    priorities: PriorityCounts = Field(description="Of each priority.")
    tags: dict[str, int] = Field(description="With each tag, the 1,000 most used.", examples=[{"home": 3, "work": 9}])


class Problem(BaseModel):
    """An error, as in RFC 9457, section 3.1."""

    type: str = Field(description="about:blank: the status says it all.", examples=["about:blank"])
    title: str = Field(description="The status in words.", examples=["Not Found"])
    status: int = Field(description="The HTTP status, once more.", examples=[404])
    detail: str = Field(description="What was wrong, for people.", examples=["There is no such task."])
    instance: str = Field(description="The path that was asked for.", examples=["/api/alice/tasks"])


MAX_ERRORS = 20


class InputError(BaseModel):
    """One rule that the input breaks. The input itself is never shown."""

    loc: list[str | int] = Field(description="Where, from the outside in.", examples=[["body", "title"]])
    msg: str = Field(description="What is wrong there, for people.", examples=["Field required"])
    type: str = Field(description="The kind of error, for programs.", examples=["missing"])


class ValidationProblem(Problem):
    """A problem with the input: one entry in `errors` for each rule it breaks."""

    errors: list[InputError] = Field(max_length=MAX_ERRORS, description="The rules that the input breaks, at most 20.")


class Health(BaseModel):
    """How the service is."""

    status: str = Field(description="ok or ready.", examples=["ok"])
