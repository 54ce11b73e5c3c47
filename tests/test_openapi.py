"""openapi.json, which clients are generated from."""

import json
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import TypeAdapter, ValidationError

import schemas
from tests.servers import HERE

OPERATIONS = {
    "list_tasks",
    "create_task",
    "update_tasks",
    "delete_tasks",
    "read_task",
    "replace_task",
    "update_task",
    "delete_task",
    "complete_task",
    "read_summary",
    "health",
    "ready",
}


@pytest.fixture(scope="module")
def document(client: TestClient) -> Any:
    return client.get("/openapi.json").json()


def operations(document: Any) -> list[Any]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def test_the_committed_document_is_what_the_service_answers(document: Any) -> None:
    assert json.loads((HERE / "openapi.json").read_text()) == document, "run: make openapi"


def test_the_version_is_the_newest_of_the_changelog(document: Any) -> None:
    newest = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (HERE / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert document["info"]["version"] == newest[0]


def test_operation_ids_are_short_and_stable(document: Any) -> None:
    assert sorted(operation["operationId"] for operation in operations(document)) == sorted(OPERATIONS)


def test_every_error_is_declared_as_a_problem(document: Any) -> None:
    for operation in operations(document):
        for status, answer in operation["responses"].items():
            if status >= "400":
                (media_type,) = answer["content"]
                assert media_type == "application/problem+json"
                name = "ValidationProblem" if status == "422" else "Problem"
                assert answer["content"][media_type]["schema"] == {"$ref": f"#/components/schemas/{name}"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_operation_that_asks_the_database_declares_what_can_go_wrong_there(document: Any) -> None:
    for operation in operations(document):
        if operation["operationId"] != "health":
            assert {"500", "503"} <= set(operation["responses"]), operation["operationId"]


def test_what_is_under_api_may_need_a_token(document: Any) -> None:
    assert document["components"]["securitySchemes"]["token"] == {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
    }
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert bool(operation["security"]) is path.startswith("/api/")
            assert ("401" in operation["responses"]) is path.startswith("/api/")


def needs_no_example(kind: Any) -> bool:
    return "$ref" in kind or "enum" in kind or kind.get("type") == "boolean" or "$ref" in kind.get("items", {})


def has(key: str, kind: Any) -> bool:
    return key in kind or any(key in one for one in kind.get("anyOf", []))


def can_be_null(kind: Any) -> bool:
    return {"type": "null"} in kind.get("anyOf", [])


def test_everything_is_described_with_an_example(document: Any) -> None:
    for operation in operations(document):
        assert operation["summary"]
        assert operation["description"]
        for parameter in operation.get("parameters", []):
            assert parameter["description"], parameter
            schema = parameter["schema"]
            assert needs_no_example(schema) or has("examples", schema) or parameter["name"] == "cursor", parameter
    for name, schema in document["components"]["schemas"].items():
        assert schema["description"], name
        for field, kind in schema.get("properties", {}).items():
            assert "$ref" in kind or has("description", kind), (name, field)
            assert needs_no_example(kind) or has("examples", kind), (name, field)


def test_a_patch_has_no_defaults_and_says_what_can_be_null(document: Any) -> None:
    task, patch = (document["components"]["schemas"][name] for name in ("Task", "TaskPatch"))
    assert "required" not in patch
    for name, field in patch["properties"].items():
        assert "default" not in field
        assert can_be_null(field) is can_be_null(task["properties"][name]), name


# All of the first planes of Unicode where there are control characters or whitespace, and some that are neither.
CHARACTERS = [chr(code) for code in (*range(0x3100), 0xFEFF, 0xFFFD, 0x1F95B, 0x10FFFF)]


def allows(schema: Any, text: str) -> bool:
    """Whether the schema says that this string is one."""
    pattern = schema["pattern"].replace("$", r"\Z")  # in Python alone, `$` is before a last line break too
    return len(text) <= schema.get("maxLength", len(text)) and bool(re.search(pattern, text))


@pytest.mark.parametrize("name", ["Title", "Tag", "Description", "Search", "NonBlankSearch"])
def test_openapi_allows_exactly_the_strings_that_are_taken(name: str) -> None:
    taken = TypeAdapter(getattr(schemas, name))
    schema = taken.json_schema()
    long = [
        "",
        "x" * 50,
        "x" * 51,
        "x" * 200,
        "x" * 201,
        "x" * 2000,
        "x" * 2001,
        "x " * 10,
        "x " * 11,
        f" {'x' * 200} ",
    ]
    texts = [form.replace("_", one) for one in CHARACTERS for form in ("_", "_x", "x_", "x_x", "x_" * 11)]
    for text in [*long, *texts, *(f"{text}\n" for text in long)]:
        try:
            taken.validate_python(text)
        except ValidationError:
            assert not allows(schema, text), ascii(text)
        else:
            assert allows(schema, text), ascii(text)


def test_openapi_allows_a_title_from_before_in_an_answer(document: Any) -> None:
    for name, field in document["components"]["schemas"]["Task"]["properties"].items():
        assert not has("pattern", field), name
        assert not has("pattern", field.get("items", {})), name
