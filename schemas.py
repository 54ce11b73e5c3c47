"""What goes over the wire: path, query and header parameters, request bodies, answers, problems."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Header, Path
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
    create_model,
)
from pydantic.json_schema import SkipJsonSchema
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


def _has_a_word(value: str) -> str:
    if not value.split():
        raise PydanticCustomError("no_words", "String should have a word in it")
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


def _digits(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch("[0-9]{1,9}", value):  # pydantic takes 1.0 and 1_0 too
        raise PydanticCustomError("int_parsing", "Input should be a whole number")
    return value


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # in JSON, 1.0 is an integer


def _trimmed(most: int) -> Callable[[dict[str, Any]], None]:
    """For OpenAPI: 1 to `most` characters after trimming, none of them NUL. `maxLength` counts before it."""

    def describe(schema: dict[str, Any]) -> None:
        del schema["minLength"], schema["maxLength"]
        # In JSON Schema U+0085 is no space, as it is in JavaScript; here it is trimmed.
        edge = r"[^\s\x85\x00]"
        schema["pattern"] = rf"^[\s\x85]*{edge}([^\x00]{{0,{most - 2}}}{edge})?[\s\x85]*$"

    return describe


def _true_or_false(value: object) -> bool:
    if value not in ("true", "false"):  # pydantic alone takes yes, on, 1 and more
        raise PydanticCustomError("bool_parsing", "Input should be true or false")
    return value == "true"


NoNul = Annotated[str, AfterValidator(_no_nul), Field(json_schema_extra={"pattern": r"^[^\x00]*$"})]
Words = Annotated[
    NoNul,
    AfterValidator(_has_a_word),
    Field(json_schema_extra={"pattern": r"^[^\x00]*[^\s\x1c-\x1f\x85\x00][^\x00]*$"}),
]
Flag = Annotated[bool, BeforeValidator(_true_or_false)]  # in a URL
Timestamp = Annotated[AwareDatetime, BeforeValidator(_is_rfc3339), AfterValidator(_to_utc)]
Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(_no_nul),
    Field(description="1 to 200 characters after trimming.", examples=["Buy milk"], json_schema_extra=_trimmed(200)),
]
Description = Annotated[
    NoNul, Field(max_length=2000, description="At most 2,000 characters.", examples=["Two litres, the blue one"])
]
Completed = Annotated[bool, Field(strict=True, description="Whether it is done.")]
Tag = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=50),
    AfterValidator(_no_nul),
    Field(json_schema_extra=_trimmed(50)),
]
Tags = Annotated[
    list[Tag],
    Field(max_length=20, description="At most 20, each 1 to 50 characters after trimming.", examples=[["home"]]),
    AfterValidator(_drop_duplicates),
]
DueDate = Annotated[
    Timestamp, Field(description="RFC 3339 with an offset; answered in UTC.", examples=["2026-12-24T18:00:00Z"])
]
Order = Annotated[
    int,
    Field(strict=True, ge=-(2**31), le=2**31 - 1, description="A place for ordering by hand.", examples=[1]),
    BeforeValidator(_whole),
]

# ---- Path and header parameters -------------------------------------------------------------

USER_ID = r"^[^/\x00-\x1f\x7f-\x9f]+$"
UserId = Annotated[
    str,
    Path(
        min_length=1,
        max_length=128,
        pattern=USER_ID,
        description="Whose tasks: 1 to 128 characters, opaque to this service.",
        examples=["alice"],
    ),
]
AN_ID = "5b1d6c1e-8f0a-4c55-9d53-0c3d8f7b2a10"
A_TIME = "2026-12-24T18:00:00.000000Z"
TaskId = Annotated[UUID, Path(description="Which task.", examples=[AN_ID])]
IdempotencyKey = Annotated[
    str | SkipJsonSchema[None],  # a header is there or not, it is never null
    Header(
        min_length=1,
        max_length=255,
        pattern="^[!-~]+$",
        description="Any text of your own. The same key and body, sent again, make no second task.",
        examples=[AN_ID],
    ),
]


def _etag_header(name: str, description: str) -> dict[str, Any]:
    schema = {"type": "string", "description": description, "examples": ['"42"'], "title": name}
    return {"name": name.lower(), "in": "header", "required": False, "schema": schema, "description": description}


# For OpenAPI alone: any text may be sent, and one that is no ETag matches none. To have FastAPI
# hand a header over took a twentieth of a read.
IF_MATCH = _etag_header("If-Match", "An `ETag` that the task must still have, else 412. `*` is any.")
IF_NONE_MATCH = _etag_header("If-None-Match", "An `ETag`. While it is still the same, the answer is 304.")

# ---- Query parameters -----------------------------------------------------------------------

LIKE_SPECIAL = re.compile(r"[%_\\]")
AS_ITSELF = r"\\\g<0>"

Q = "Words that are all in title or description, whatever the case."


class Filters(BaseModel):
    """Which tasks: those for which everything that is given holds."""

    model_config = ConfigDict(extra="forbid")

    completed: Annotated[Flag | MISSING, Field(description="Whether they are done.")] = MISSING
    priority: Annotated[
        list[Priority] | MISSING, Field(description="Repeat it for any of several.", examples=[["high"]])
    ] = MISSING
    tag: Annotated[list[Tag] | MISSING, Field(description="Repeat it for all of several.", examples=[["home"]])] = (
        MISSING
    )
    q: Annotated[
        NoNul | MISSING,
        Field(description=Q, examples=["milk eggs"]),
    ] = MISSING
    due_before: Annotated[Timestamp | MISSING, Field(description="Due earlier than this.", examples=[A_TIME])] = MISSING
    due_after: Annotated[Timestamp | MISSING, Field(description="Due later than this.", examples=[A_TIME])] = MISSING
    updated_after: Annotated[Timestamp | MISSING, Field(description="Changed later than this.", examples=[A_TIME])] = (
        MISSING
    )

    def given(self) -> dict[str, Any]:
        """Return what is given, by name, as `queries.FILTERS` takes it."""
        values = self.model_dump(include=set(Filters.model_fields))
        if "q" in values:
            words = dict.fromkeys(values.pop("q").split())
            if words:
                values["q"] = " ".join(f"%{LIKE_SPECIAL.sub(AS_ITSELF, word)}%" for word in words)
        return values


REPEATABLE = {"priority", "tag"}  # the filters that take several values

# What a list can be sorted by, and what a cursor holds of it. A leading "-" turns the order round.
SORTS: dict[str, Any] = {
    "created_at": Timestamp,
    "updated_at": Timestamp,
    "due_date": Timestamp | None,
    "priority": Priority,
    "title": NoNul,
    "order": Order | None,
}
PLACES: dict[str, TypeAdapter[tuple[Any, UUID]]]
PLACES = {name: TypeAdapter(tuple[kind, UUID]) for name, kind in SORTS.items()}  # type: ignore[valid-type]
CHECKSUM_BYTES = 9


class Selection(Filters):
    """Which tasks to change or delete. A search without a word, which would be for all, is refused."""

    q: Annotated[Words | MISSING, Field(description=Q, examples=["milk eggs"])] = MISSING


def _is_sort(value: str) -> str:
    if value.removeprefix("-") not in SORTS:
        raise PydanticCustomError("sort", "Input should be one of the fields that a list can be sorted by")
    return value


class ListQuery(Filters):
    """Which tasks, in which order, and how many at once."""

    sort: Annotated[
        str,
        AfterValidator(_is_sort),
        Field(
            description="A null `due_date` or `order` comes last, and first with `-`. Ties are broken by `id`.",
            json_schema_extra={"enum": [sign + name for name in SORTS for sign in ("", "-")]},
        ),
    ] = "-created_at"
    limit: Annotated[
        int,
        Field(ge=1, le=1000, description="At most so many in one page.", examples=[20]),
        BeforeValidator(_digits),
    ] = 1000
    total: Annotated[Flag, Field(description="Whether to answer with `X-Total-Count`.")] = False
    cursor: Annotated[
        str | SkipJsonSchema[None], Field(description="Where the page before ended: follow `Link`, do not make one.")
    ] = None

    def cursor_after(self, task: dict[str, Any], user_id: str) -> str:
        """Return the cursor of the page that begins behind `task`, as it was answered."""
        place = json.dumps([task[self.sort.removeprefix("-")], task["id"]], ensure_ascii=False).encode()
        return base64.urlsafe_b64encode(self._checksum(place, user_id) + place).rstrip(b"=").decode()

    def place(self, user_id: str) -> tuple[Any, UUID]:
        """Return what the cursor holds: the value that is sorted by, and the id.

        Raises ValueError when it was cut, changed, or made for another list.
        """
        text = self.cursor or ""
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        checksum, place = raw[:CHECKSUM_BYTES], raw[CHECKSUM_BYTES:]
        same = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()  # base64 has several spellings of one value
        if checksum != self._checksum(place, user_id) or text != same:
            raise ValueError("the cursor was not made for this list")
        return PLACES[self.sort.removeprefix("-")].validate_json(place)

    def _checksum(self, place: bytes, user_id: str) -> bytes:
        # Not a signature: whoever forges one gains nothing but another place in their own list.
        made_for = json.dumps([user_id, self.sort, self.model_dump_json(include=set(Filters.model_fields))])
        return hashlib.blake2b(made_for.encode() + place, digest_size=CHECKSUM_BYTES).digest()


def parameters(model: type[Filters]) -> list[dict[str, Any]]:
    """Return the fields of `model` as the query parameters of an operation, for OpenAPI."""
    fields = model.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": field,
            "description": field.get("description", ""),
        }
        for name, field in fields.items()
    ]


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


MAY_BE_MISSING: dict[str, Any] = {name: (kind | MISSING, MISSING) for name, kind in TaskInput.__annotations__.items()}
TaskPatch = create_model(
    "TaskPatch",
    __doc__="Some fields of a task. What is left out stays; `null` clears a field that can be null.",
    **MAY_BE_MISSING,
)


class Completion(BaseModel):
    """Whether the task is done from now on. Sent twice, it does no more than sent once."""

    completed: Completed


# ---- Answers --------------------------------------------------------------------------------


class Task(BaseModel):
    """One task, as it is answered. PostgreSQL writes the JSON; this class documents it."""

    id: Annotated[UUID, Field(description="Made by the server, version 4.", examples=[AN_ID])]
    user_id: Annotated[str, Field(description="Whose task.", examples=["alice"])]
    url: Annotated[
        str,
        Field(
            description="The absolute address of this task.",
            json_schema_extra={"format": "uri"},
            examples=[f"http://127.0.0.1:8000/api/alice/tasks/{AN_ID}"],
        ),
    ]
    title: Title
    description: Description | None
    completed: Completed
    completed_at: Annotated[Timestamp | None, Field(description="Since when it is done, in UTC.", examples=[A_TIME])]
    priority: Priority
    tags: Tags
    due_date: DueDate | None
    order: Order | None
    created_at: Annotated[Timestamp, Field(description="When it was created, in UTC.", examples=[A_TIME])]
    updated_at: Annotated[Timestamp, Field(description="When anything of it last changed, in UTC.", examples=[A_TIME])]


class Updated(BaseModel):
    """How many tasks were changed."""

    updated: Annotated[int, Field(description="How many.", examples=[3])]


class Deleted(BaseModel):
    """How many tasks were deleted."""

    deleted: Annotated[int, Field(description="How many.", examples=[3])]


class PriorityCounts(BaseModel):
    """How many tasks have each priority."""

    low: Annotated[int, Field(description="Low.", examples=[1])]
    medium: Annotated[int, Field(description="Medium.", examples=[9])]
    high: Annotated[int, Field(description="High.", examples=[2])]


class Summary(BaseModel):
    """A user's tasks in numbers."""

    user_id: Annotated[str, Field(description="Whose tasks.", examples=["alice"])]
    total: Annotated[int, Field(description="All.", examples=[12])]
    completed: Annotated[int, Field(description="Done.", examples=[5])]
    pending: Annotated[int, Field(description="Not done.", examples=[7])]
    overdue: Annotated[int, Field(description="Not done, and the due date has passed.", examples=[2])]
    priorities: Annotated[PriorityCounts, Field(description="Of each priority.")]
    tags: Annotated[dict[str, int], Field(description="With each tag.", examples=[{"home": 3, "work": 9}])]


class Problem(BaseModel):
    """An error, as in RFC 9457, section 3.1."""

    type: Annotated[str, Field(description="about:blank: the status says it all.", examples=["about:blank"])]
    title: Annotated[str, Field(description="The status in words.", examples=["Not Found"])]
    status: Annotated[int, Field(description="The HTTP status, once more.", examples=[404])]
    detail: Annotated[str, Field(description="What was wrong, for people.", examples=["There is no such task."])]
    instance: Annotated[str, Field(description="The path that was asked for.", examples=["/api/alice/tasks"])]


class InputError(BaseModel):
    """One rule that the input breaks. The input itself is never shown."""

    loc: Annotated[list[str | int], Field(description="Where, from the outside in.", examples=[["body", "title"]])]
    msg: Annotated[str, Field(description="What is wrong there, for people.", examples=["Field required"])]
    type: Annotated[str, Field(description="The kind of error, for programs.", examples=["missing"])]


class ValidationProblem(Problem):
    """A problem with the input: one entry in `errors` for each rule it breaks."""

    errors: Annotated[list[InputError], Field(description="The rules that the input breaks.")]


class Health(BaseModel):
    """How the service is."""

    status: Annotated[str, Field(description="ok or ready.", examples=["ok"])]
