"""What `schemathesis.toml` cannot say."""

from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

# Rules about what was answered before, which no schema can state.
OF_BEFORE = {"cursor", "idempotency_key_reused"}


@schemathesis.check
def accepts_what_openapi_allows(ctx: Any, response: Any, case: Any) -> bool | None:
    """As `positive_data_acceptance`, but for a 422 that tells of these rules only."""
    if response.status_code == 422 and {error["type"] for error in response.json()["errors"]} <= OF_BEFORE:
        return None
    return positive_data_acceptance(ctx, response, case)
