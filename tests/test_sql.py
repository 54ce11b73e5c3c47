"""docs/sql.md shows the statements of the service."""

import ast
from contextlib import closing

import psycopg2
import pytest

from docs import sql
from tests.servers import HERE


def test_docs_sql_shows_the_statements_of_this_version() -> None:
    assert (HERE / "docs/sql.md").read_text() == sql.page(), "make sql"


def test_docs_sql_shows_every_statement_of_queries() -> None:
    tree = ast.parse((HERE / "queries.py").read_text())
    public = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}
    shown = {
        node.attr for node in ast.walk(ast.parse((HERE / "docs/sql.py").read_text())) if isinstance(node, ast.Attribute)
    }
    assert public - shown == set()


@pytest.mark.parametrize("statement", sql.page().split("```sql\n")[1:], ids=list(sql.EXAMPLES))
@pytest.mark.usefixtures("client")  # which creates the tables
def test_a_statement_of_docs_sql_is_valid(database_url: str, statement: str) -> None:
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        for part in statement.partition("```")[0].split("; "):
            cursor.execute("EXPLAIN " + part)
            assert cursor.fetchall()
