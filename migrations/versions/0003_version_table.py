"""From here on the version has a table of its own name: see migrations/env.py, which renames it."""

revision: str = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
