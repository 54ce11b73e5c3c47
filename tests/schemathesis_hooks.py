"""Schemathesis hooks: a check that cannot be configured in `schemathesis.toml`."""

from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

# The types of errors about rules that a JSON Schema cannot express: a cursor and an idempotency key must fit earlier
# responses and requests, and a time must be within the years 1 to 9999 in UTC.
RULES_OUTSIDE_OPENAPI = {"cursor", "idempotency_key_reused", "datetime_range"}


@schemathesis.check
def accepts_what_openapi_allows(ctx: Any, response: Any, case: Any) -> bool | None:
    """Run the check `positive_data_acceptance`, except on a 422 response whose errors all belong to those rules."""
    if response.status_code == 422 and {error["type"] for error in response.json()["errors"]} <= RULES_OUTSIDE_OPENAPI:
        return None
    return positive_data_acceptance(ctx, response, case)
