"""What `schemathesis.toml` cannot say."""

from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

# Rules that no schema can state: about what was answered before, and about a time that leaves the calendar in UTC.
UNSTATED = {"cursor", "idempotency_key_reused", "datetime_range"}


@schemathesis.check
def accepts_what_openapi_allows(ctx: Any, response: Any, case: Any) -> bool | None:
    """As `positive_data_acceptance`, but for a 422 that tells of these rules only."""
    if response.status_code == 422 and {error["type"] for error in response.json()["errors"]} <= UNSTATED:
        return None
    return positive_data_acceptance(ctx, response, case)
