"""docs/operations.md says what the code does."""

import ast
import re
from collections.abc import Iterator

from uvicorn.main import main as uvicorn

from tests.servers import HERE

PAGE = (HERE / "docs/operations.md").read_text()
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def text(node: ast.expr) -> str | None:
    """A message with … for each value in it, or None when it is not written out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[a-z]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


def messages() -> Iterator[str]:
    """What the service logs, and what it gives a start up with."""
    for file in (*HERE.glob("*.py"), *HERE.glob("routes/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            logs = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "logger"
            if logs and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                message = text(node.args[0])
                assert message, f"{file.name}:{node.lineno} logs what nobody can look up"
                yield message
            elif ast.unparse(node.func) in ("SystemExit", "DatabaseUnavailable") and (message := text(node.args[0])):
                yield message


def test_every_line_of_the_log_is_explained() -> None:
    found = set(messages())
    assert len(found) > 5
    assert not {message for message in found if message not in PAGE}


def test_the_command_has_only_options_that_the_server_has() -> None:
    (command,) = re.findall(r"^uvicorn main:app .*$", PAGE, re.MULTILINE)
    used = set(re.findall(r"--[a-z-]+", command))
    known = {option for parameter in uvicorn.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert used <= known
    assert {"--timeout-graceful-shutdown", "--workers"} <= used
    assert all(f"`{option}`" in PAGE for option in used - {"--host", "--port"})
