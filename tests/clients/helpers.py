"""Functions and values that several test files share."""

from uuid import uuid4

import httpx2

from tests.servers import HERE

CLIENTS = HERE / "tests/clients"


def sign_up(issuer: str) -> tuple[str, dict[str, str]]:
    """A new person: the id, and the header that says who it is."""
    with httpx2.Client(base_url=f"{issuer}/api/auth") as browser:
        person = {"name": "Ann", "email": f"{uuid4()}@example.com", "password": "correct horse 1"}
        user = browser.post("/sign-up/email", json=person).json()["user"]
        return user["id"], {"Authorization": f"Bearer {browser.get('/token').json()['token']}"}
