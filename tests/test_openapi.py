"""Tests of openapi.json, from which clients are generated."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

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
    "restore_task",
    "read_summary",
    "erase_user",
    "list_changes",
    "health",
    "ready",
}


@pytest.fixture(scope="module")
def document(client: TestClient) -> Any:
    """Return openapi.json as the service returns it."""
    return client.get("/openapi.json").json()


def get_operations(document: Any) -> list[Any]:
    """Return all operations of the document."""
    return [operation for path in document["paths"].values() for operation in path.values()]


def test_committed_openapi_json_equals_the_served_document(document: Any) -> None:
    assert json.loads((HERE / "openapi.json").read_text()) == document, "run: make openapi"


def test_version_is_the_newest_in_the_changelog(document: Any) -> None:
    newest = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (HERE / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert document["info"]["version"] == newest[0]


def test_operation_ids_are_short_and_stable(document: Any) -> None:
    assert sorted(operation["operationId"] for operation in get_operations(document)) == sorted(OPERATIONS)


def test_every_error_is_declared_as_a_problem(document: Any) -> None:
    for operation in get_operations(document):
        for status, response in operation["responses"].items():
            if status >= "400":
                (media_type,) = response["content"]
                assert media_type == "application/problem+json"
                name = {"422": "ValidationProblem", "500": "ServerProblem", "503": "ServerProblem"}.get(
                    status, "Problem"
                )
                assert response["content"][media_type]["schema"] == {"$ref": f"#/components/schemas/{name}"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_operation_but_health_declares_500_and_503(document: Any) -> None:
    for operation in get_operations(document):
        if operation["operationId"] != "health":
            assert {"500", "503"} <= set(operation["responses"]), operation["operationId"]


def test_only_operations_under_api_declare_the_bearer_token(document: Any) -> None:
    assert document["components"]["securitySchemes"]["token"] == {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
    }
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert bool(operation["security"]) is path.startswith("/api/")
            assert ("401" in operation["responses"]) is path.startswith("/api/")


def needs_no_example(schema: Any) -> bool:
    """Return whether the schema's values are evident: a reference, an enum, or a boolean."""
    return "$ref" in schema or "enum" in schema or schema.get("type") == "boolean" or "$ref" in schema.get("items", {})


def has_keyword(keyword: str, schema: Any) -> bool:
    """Return whether the schema or one of its `anyOf` schemas has the keyword."""
    return keyword in schema or any(keyword in option for option in schema.get("anyOf", []))


def is_nullable(schema: Any) -> bool:
    return {"type": "null"} in schema.get("anyOf", [])


def test_operations_parameters_and_fields_have_descriptions_and_examples(document: Any) -> None:
    for operation in get_operations(document):
        assert operation["summary"]
        assert operation["description"]
        for parameter in operation.get("parameters", []):
            assert parameter["description"], parameter
            schema = parameter["schema"]
            has_example = needs_no_example(schema) or has_keyword("examples", schema)
            assert has_example or parameter["name"] in ("cursor", "since"), parameter
    for name, schema in document["components"]["schemas"].items():
        assert schema["description"], name
        for field, field_schema in schema.get("properties", {}).items():
            assert "$ref" in field_schema or has_keyword("description", field_schema), (name, field)
            has_example = needs_no_example(field_schema) or has_keyword("examples", field_schema)
            assert has_example or "readOnly" in field_schema, (name, field)


def test_task_patch_has_no_defaults_and_declares_nullable_fields(document: Any) -> None:
    task, patch = (document["components"]["schemas"][name] for name in ("Task", "TaskPatch"))
    assert "required" not in patch
    for name, field in patch["properties"].items():
        assert "default" not in field
        if field.get("readOnly"):
            continue
        assert is_nullable(field) is is_nullable(task["properties"][name]), name


def test_request_bodies_declare_read_only_fields_and_no_others(document: Any) -> None:
    schemas_of_all = document["components"]["schemas"]
    read_only = {"id", "user_id", "url", "version", "completed_at", "created_at", "updated_at"}
    for name in ("TaskInput", "TaskPatch", "Completion"):
        fields = schemas_of_all[name]["properties"]
        assert {field for field, schema in fields.items() if schema.get("readOnly")} == read_only
        assert schemas_of_all[name]["additionalProperties"] is False
    assert set(schemas_of_all["TaskInput"]["properties"]) == set(schemas_of_all["Task"]["properties"])


# The blocks of Unicode with all control characters and whitespace, and some characters of other blocks.
CHARACTERS = [chr(code) for code in (*range(0x3100), 0xFEFF, 0xFFFD, 0x1F95B, 0x10FFFF)]
EDGE_LENGTHS = [
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
STRINGS: dict[str, Callable[[str], object]] = {
    "title": lambda text: schemas.TaskInput(title=text),
    "tag": lambda text: schemas.TaskInput(title="t", tags=[text]),
    "description": lambda text: schemas.TaskInput(title="t", description=text),
    "search": lambda text: schemas.ListQuery(q=text),
    "bulk search": lambda text: schemas.BulkFilters(q=text),
}


def get_string_schema(document: Any, name: str) -> Any:
    """Return the schema that openapi.json declares for one of STRINGS."""
    fields = document["components"]["schemas"]["TaskInput"]["properties"]
    tasks_path = document["paths"]["/api/{user_id}/tasks"]
    searches = {
        method: parameter["schema"]
        for method, operation in tasks_path.items()
        for parameter in operation["parameters"]
        if parameter["name"] == "q"
    }
    return {
        "title": fields["title"],
        "tag": fields["tags"]["items"],
        "description": fields["description"]["anyOf"][0],
        "search": searches["get"],
        "bulk search": searches["delete"],
    }[name]


def allows(schema: Any, text: str) -> bool:
    """Return whether the string is valid against the pattern and the lengths of the schema."""
    pattern = schema["pattern"].replace("$", r"\Z")  # only in Python, `$` also matches before a trailing newline
    fits = schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", len(text))
    return fits and bool(re.search(pattern, text))


@pytest.mark.parametrize("name", STRINGS)
def test_string_schemas_allow_exactly_what_validation_accepts(document: Any, name: str) -> None:
    validate, schema = STRINGS[name], get_string_schema(document, name)
    forms = ("_", "_x", "x_", "x_x", "x_" * 11)
    texts = [form.replace("_", character) for character in CHARACTERS for form in forms]
    for text in [*EDGE_LENGTHS, *texts, *(f"{text}\n" for text in EDGE_LENGTHS)]:
        try:
            validate(text)
        except ValidationError:
            assert not allows(schema, text), ascii(text)
        else:
            assert allows(schema, text), ascii(text)


def test_task_schema_allows_control_characters_in_responses(document: Any) -> None:
    for name, field in document["components"]["schemas"]["Task"]["properties"].items():
        assert not has_keyword("pattern", field), name
        assert not has_keyword("pattern", field.get("items", {})), name
