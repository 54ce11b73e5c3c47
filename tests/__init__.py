"""Tests of the service against a real PostgreSQL, mostly through HTTP.

They run with the default settings: the environment and `.env.local` of the developer have no effect on the
test process, nor on the processes that it starts.
"""

import os

from settings import Settings

SETTINGS = [name.upper() for name in Settings.model_fields]

for name in [*os.environ]:
    used = name.upper() in SETTINGS or name in ("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS")
    if used or name.startswith(("PG", "UVICORN_")):  # libpq and uvicorn read variables too
        del os.environ[name]
os.environ |= dict.fromkeys(SETTINGS, "")  # an empty value means the default, and overrides .env.local
