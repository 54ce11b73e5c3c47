"""Tests of what a client sees, against a real PostgreSQL.

They see no setting of whoever runs them, neither in this process nor in those that they start.
"""

import os

from settings import Settings

SETTINGS = [name.upper() for name in Settings.model_fields]

# libpq and uvicorn are set by variables of their own.
for name in [*os.environ]:
    taken = name.upper() in SETTINGS or name in ("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS")
    if taken or name.startswith(("PG", "UVICORN_")):
        del os.environ[name]
os.environ |= dict.fromkeys(SETTINGS, "")  # which means the default, and wins over .env.local
