"""docs/operations.md explains every log message, and its command is valid."""

import ast
import re
from collections.abc import Iterator

from uvicorn.main import main as uvicorn

from tests.servers import HERE

PAGE = (HERE / "docs/operations.md").read_text()
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def text(node: ast.expr) -> str | None:
    """Return a message with … in place of each value, or None when it is not a literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[a-z]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


def messages() -> Iterator[str]:
    """Yield the log messages of the service and the messages with which a start-up fails."""
    for file in (*HERE.glob("*.py"), *HERE.glob("routes/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            is_log = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "logger"
            if is_log and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                message = text(node.args[0])
                assert message, f"{file.name}:{node.lineno} logs a message that is not a literal"
                yield message
            elif ast.unparse(node.func) in ("SystemExit", "DatabaseUnavailable") and (message := text(node.args[0])):
                yield message


def test_every_log_message_is_documented() -> None:
    texts = set(messages())
    assert len(texts) > 5
    assert not {message for message in texts if message not in PAGE}


def test_the_documented_command_has_only_known_options() -> None:
    (command,) = re.findall(r"^uvicorn main:app .*$", PAGE, re.MULTILINE)
    used = set(re.findall(r"--[a-z-]+", command))
    known = {option for parameter in uvicorn.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert used <= known
    assert {"--timeout-graceful-shutdown", "--http"} <= used
    assert all(f"`{option}`" in PAGE for option in used - {"--host", "--port"})
