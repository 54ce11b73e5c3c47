"""Authentication: the owner's token is accepted, and every other or forged token is rejected."""

import asyncio
import base64
import hmac
import http.server
import io
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi.testclient import TestClient
from pydantic import SecretStr

import auth
from main import create_app
from settings import Settings
from tests.conftest import assert_contract
from tests.helpers import eventually
from tests.servers import HERE

ISSUER, AUDIENCE, SECRET = "https://issuer.example", "https://tasks.example", "a shared secret, long enough for" * 2
ED25519 = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
UNKNOWN_KEY = ed25519.Ed25519PrivateKey.generate()


def public_jwk(key: Any, algorithm: str, kid: str) -> dict[str, Any]:
    """Return the public key of a private key as a JWK, as an issuer publishes it."""
    jwk = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return dict(jwk) | {"kid": kid, "alg": algorithm}


class Issuer:
    """An HTTP server that publishes a JWKS. A test sets how it responds."""

    def __init__(self) -> None:
        self.keys = [public_jwk(ED25519, "EdDSA", "ed"), public_jwk(RSA, "RS256", "rsa"), public_jwk(EC, "ES256", "ec")]
        self.status = 200
        self.trickle = 0  # bytes that it sends before the JWKS, ten per second
        self.requests = 0
        self.location = ""  # where /jwks redirects to; every other path has the JWKS
        self.may_respond = threading.Event()  # while it is not set, requests wait
        self.may_respond.set()
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests += 1
                issuer.may_respond.wait(60)
                redirects = issuer.location and self.path == "/jwks"
                self.send_response(302 if redirects else issuer.status)
                if redirects:
                    self.send_header("Location", issuer.location)
                self.end_headers()
                for _ in range(issuer.trickle):
                    self.wfile.write(b" ")
                    time.sleep(0.1)
                self.wfile.write(json.dumps({"keys": issuer.keys}).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks"
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.close()


@contextmanager
def app_with(settings: Settings, **values: object) -> Iterator[TestClient]:
    """Start an app with these settings, and yield a client for it."""
    changed = settings.model_copy(update={"auth_issuer": ISSUER, "auth_audience": AUDIENCE} | values)
    with TestClient(create_app(changed), raise_server_exceptions=False) as client:
        client.event_hooks = {"response": [assert_contract]}
        yield client


@pytest.fixture(scope="module")
def jwks_client(settings: Settings) -> Iterator[TestClient]:
    issuer = Issuer()
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(401, lambda: client.get("/api/x/tasks", headers=bearer("x")))
        yield client
    issuer.close()


@pytest.fixture(scope="module")
def secret_client(settings: Settings) -> Iterator[TestClient]:
    with app_with(settings, auth_secret=SecretStr(SECRET)) as client:
        yield client


def claims(user: object, **more: object) -> dict[str, object]:
    now = int(time.time())
    return {"sub": user, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 600} | more


def token(user: object, *, key: Any = ED25519, algorithm: str = "EdDSA", kid: str = "ed", **more: object) -> str:
    headers = {"kid": kid} | dict(more.pop("headers", {}))  # type: ignore[call-overload]
    body = {name: value for name, value in claims(user, **more).items() if value is not None}
    return jwt.api_jws.encode(json.dumps(body).encode(), key, algorithm, headers)


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


def encode_by_hand(header: object, payload: object, key: bytes | None = None) -> str:
    """Return a token that no library would encode. Without a key, its signature is empty."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, payload)]
    signature = hmac.digest(key, b".".join(parts), "sha256") if key is not None else b""
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


# ---- The owner -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(ED25519, "EdDSA", "ed"), (RSA, "RS256", "rsa"), (EC, "ES256", "ec")]
)
def test_the_owners_token_is_accepted_with_each_signing_algorithm(
    jwks_client: TestClient, url: str, user: str, key: Any, algorithm: str, kid: str
) -> None:
    headers = bearer(token(user, key=key, algorithm=algorithm, kid=kid))
    created = jwks_client.post(url, json={"title": "mine"}, headers=headers)
    assert created.status_code == 201
    assert jwks_client.get(url, headers=headers).json() == [created.json()]
    assert jwks_client.get(f"/api/{user}", headers=headers).json()["total"] == 1


def test_the_owners_token_is_accepted_with_the_shared_secret(secret_client: TestClient, url: str, user: str) -> None:
    headers = bearer(token(user, key=SECRET, algorithm="HS256"))
    assert secret_client.post(url, json={"title": "mine"}, headers=headers).status_code == 201


def test_the_scheme_is_case_insensitive(jwks_client: TestClient, url: str, user: str) -> None:
    for scheme in ("bearer", "BEARER"):
        assert jwks_client.get(url, headers={"Authorization": f"{scheme} {token(user)}"}).status_code == 200


def test_issuer_and_audience_are_validated_only_if_they_are_set(settings: Settings, url: str, user: str) -> None:
    headers = bearer(token(user, key=SECRET, algorithm="HS256", iss="https://other", aud="https://other"))
    with app_with(settings, auth_secret=SecretStr(SECRET), auth_issuer="", auth_audience="") as client:
        assert client.get(url, headers=headers).status_code == 200


def test_clocks_may_differ_by_a_few_seconds(jwks_client: TestClient, url: str, user: str) -> None:
    now = int(time.time())
    for more in ({"exp": now - 3}, {"nbf": now + 5}, {"iat": now + 5}):
        assert jwks_client.get(url, headers=bearer(token(user, **more))).status_code == 200


def test_a_user_id_may_have_any_format_of_an_issuer(jwks_client: TestClient) -> None:
    for user, path in (
        ("auth0|123", "auth0%7C123"),
        ("ann@example.com", "ann%40example.com"),
        ("\u00fc\U0001f95b", "%C3%BC%F0%9F%A5%9B"),
    ):
        assert jwks_client.get(f"/api/{path}/tasks", headers=bearer(token(user))).status_code == 200


REQUESTS: list[tuple[str, str, Any]] = [
    ("GET", "", None),
    ("GET", "/tasks", None),
    ("POST", "/tasks", {"title": "x"}),
    ("PATCH", "/tasks", {"title": "x"}),
    ("DELETE", "/tasks", None),
    ("GET", "/tasks/{id}", None),
    ("PUT", "/tasks/{id}", {"title": "x"}),
    ("PATCH", "/tasks/{id}", {"title": "x"}),
    ("DELETE", "/tasks/{id}", None),
    ("PATCH", "/tasks/{id}/complete", None),
]


@pytest.mark.parametrize(("method", "suffix", "body"), REQUESTS)
def test_a_token_of_another_user_is_404(
    jwks_client: TestClient, url: str, user: str, method: str, suffix: str, body: Any
) -> None:
    mine = bearer(token(user))
    task = jwks_client.post(url, json={"title": "private"}, headers=mine).json()
    path = f"/api/{user}{suffix.format(id=task['id'])}"

    def send() -> tuple[int, list[tuple[str, str]], bytes]:
        response = jwks_client.request(method, path, json=body, headers=bearer(token(f"user-{uuid4()}")))
        return response.status_code, response.headers.multi_items(), response.content

    while_it_exists = send()
    assert jwks_client.get(url, headers=mine).json() == [task], "another user changed it"
    jwks_client.delete(url, headers=mine)
    assert while_it_exists == send()
    assert while_it_exists[0] == 404
    missing = jwks_client.get(f"{url}/{task['id']}", headers=mine).json()
    assert json.loads(while_it_exists[2]) == missing | {"instance": path}


@pytest.mark.parametrize(("method", "suffix", "body"), REQUESTS)
def test_every_request_under_api_needs_a_token(
    jwks_client: TestClient, user: str, method: str, suffix: str, body: Any
) -> None:
    path = f"/api/{user}{suffix.format(id=uuid4())}"
    response = jwks_client.request(method, path, json=body)
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    for public_path in ("/health", "/health/ready", "/openapi.json", "/docs"):
        assert jwks_client.get(public_path).status_code == 200


# ---- Forgeries -----------------------------------------------------------------------------

PEM = ED25519.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
DER = ED25519.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
RAW = ED25519.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
OPENSSH = ED25519.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
RSA_PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
RSA_PKCS1 = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1)
X = public_jwk(ED25519, "EdDSA", "ed")["x"]


def flip_bit(value: str, part: int) -> str:
    """Return the token with one bit changed in its header (0), claims (1) or signature (2)."""
    parts = value.split(".")
    raw = bytearray(base64.urlsafe_b64decode(parts[part] + "=" * (-len(parts[part]) % 4)))
    raw[len(raw) // 2] ^= 1
    parts[part] = base64.urlsafe_b64encode(bytes(raw)).rstrip(b"=").decode()
    return ".".join(parts)


FORGED: dict[str, Callable[[str], str]] = {
    "not a JWT": lambda _: "nonsense",
    "empty": lambda _: "",
    "two dots": lambda _: "..",
    "no header": lambda user: token(user).partition(".")[2],
    "deep header": lambda _: base64.urlsafe_b64encode(b"[" * 20_000).decode().rstrip("=") + ".e30.e30",
    **{
        f"alg {spelling}": lambda user, spelling=spelling: encode_by_hand({"alg": spelling, "kid": "ed"}, claims(user))  # type: ignore[misc]
        for spelling in ("none", "None", "NONE", "nOnE", "", None, 0, ["none"], {"a": 1})
    },
    "alg left out": lambda user: encode_by_hand({"kid": "ed"}, claims(user)),
    **{
        f"HS256 with the public key as {name}": lambda user, key=key, kid=kid: encode_by_hand(  # type: ignore[misc]
            {"alg": "HS256", "kid": kid}, claims(user), key
        )
        for name, key, kid in [
            ("PEM", PEM, "ed"),
            ("PEM without its last newline", PEM.strip(), "ed"),
            ("DER", DER, "ed"),
            ("raw bytes", RAW, "ed"),
            ("OpenSSH", OPENSSH, "ed"),
            ("its x", X.encode(), "ed"),
            ("RSA PEM", RSA_PEM, "rsa"),
            ("RSA PKCS1", RSA_PKCS1, "rsa"),
            ("nothing", b"", "ed"),
        ]
    },
    "HS256 with a secret": lambda user: token(user, key=SECRET, algorithm="HS256"),
    "an unknown key in jwk": lambda user: token(
        user, key=UNKNOWN_KEY, headers={"jwk": public_jwk(UNKNOWN_KEY, "EdDSA", "ed")}
    ),
    "an unknown key in jku": lambda user: token(user, key=UNKNOWN_KEY, headers={"jku": "http://127.0.0.1:9/jwks"}),
    "an unknown key in x5u": lambda user: token(user, key=UNKNOWN_KEY, headers={"x5u": "http://127.0.0.1:9/cert"}),
    "an unknown key in x5c": lambda user: token(user, key=UNKNOWN_KEY, headers={"x5c": [X]}),
    "signed with an unknown key": lambda user: token(user, key=UNKNOWN_KEY),
    "the kid of another key": lambda user: token(user, kid="rsa"),
    "an unknown kid": lambda user: token(user, key=UNKNOWN_KEY, kid="unknown"),
    "no kid": lambda user: jwt.encode(claims(user), ED25519, "EdDSA"),
    "a path as kid": lambda user: token(user, kid="../../../../dev/null"),
    "SQL as kid": lambda user: token(user, kid="' OR 1=1 --"),
    "a number as kid": lambda user: encode_by_hand({"alg": "EdDSA", "kid": 1}, claims(user)),
    "a critical extension": lambda user: token(user, headers={"crit": ["x"], "x": 1}),
    "expired": lambda user: token(user, exp=int(time.time()) - 60),
    "not yet valid": lambda user: token(user, nbf=int(time.time()) + 60),
    "issued in the future": lambda user: token(user, iat=int(time.time()) + 60),
    "of another issuer": lambda user: token(user, iss="https://other.example"),
    "of the issuer with a trailing slash": lambda user: token(user, iss=ISSUER + "/"),
    "without an issuer": lambda user: token(user, iss=None),
    "for another audience": lambda user: token(user, aud="https://other.example"),
    "for other audiences": lambda user: token(user, aud=["a", "b"]),
    "without an audience": lambda user: token(user, aud=None),
    "without exp": lambda user: token(user, exp=None),
    "exp is text": lambda user: token(user, exp="tomorrow"),
    "exp is a list": lambda user: token(user, exp=[1]),
    "without sub": lambda user: token(user, sub=None),
    "sub is empty": lambda _: token(""),
    "sub is a number": lambda _: token(1),
    "sub is a list": lambda user: token([user]),
    "sub is an object": lambda user: token({"id": user}),
    "sub is very long": lambda _: token("x" * 10_000),
    "sub holds NUL": lambda user: token(user + "\0"),
    "sub holds a slash": lambda user: token(user + "/tasks"),
    "the signature stripped": lambda user: token(user).rpartition(".")[0] + ".",
    "the signature cut off": lambda user: token(user).rpartition(".")[0],
    "one bit of the signature": lambda user: flip_bit(token(user), 2),
    "one bit of the claims": lambda user: flip_bit(token(user), 1),
    "one bit of the header": lambda user: flip_bit(token(user), 0),
    "another's claims": lambda user: ".".join(
        [*token("mallory").split(".")[:1], token(user).split(".")[1], token("mallory").split(".")[2]]
    ),
    "claims that are no object": lambda _: jwt.api_jws.encode(b"[1]", ED25519, "EdDSA", {"kid": "ed"}),
    "claims that are no JSON": lambda _: jwt.api_jws.encode(b"x", ED25519, "EdDSA", {"kid": "ed"}),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_a_forged_token_is_401_and_changes_nothing(
    jwks_client: TestClient, url: str, user: str, forge: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    forged = forge(user)
    for method, body in (("POST", {"title": "forged"}), ("GET", None), ("DELETE", None)):
        response = jwks_client.request(method, url, json=body, headers=bearer(forged))
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        assert user not in response.json()["detail"]
    assert jwks_client.get(url, headers=bearer(token(user))).json() == []
    assert user not in caplog.text
    reasons = {record.message.partition("] Token rejected: ")[2] for record in caplog.records}
    assert len(reasons) == 1
    assert f"`{reasons.pop()}`" in (HERE / "docs/operations.md").read_text()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("expired", "ExpiredSignatureError"),
        ("of another issuer", "InvalidIssuerError"),
        ("for another audience", "InvalidAudienceError"),
        ("an unknown kid", "UnknownKey"),
        ("signed with an unknown key", "InvalidSignatureError"),
        ("without sub", "MissingRequiredClaimError"),
        ("sub holds a slash", "InvalidSubjectError"),
        ("not yet valid", "ImmatureSignatureError"),
    ],
)
def test_the_log_says_why_a_token_was_rejected(
    jwks_client: TestClient, url: str, user: str, caplog: pytest.LogCaptureFixture, name: str, reason: str
) -> None:
    headers = bearer(FORGED[name](user)) | {"X-Request-Id": "r1"}
    response = jwks_client.post(f"{url}?q=secret", headers=headers)
    assert (response.status_code, "request_id" in response.json()) == (401, False)
    [record] = caplog.records
    assert (record.levelname, record.message) == ("INFO", f"[POST /api/{{user_id}}/tasks r1] Token rejected: {reason}")


def test_the_reason_is_that_of_the_key_that_signed(
    settings: Settings, issuer: Issuer, url: str, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.keys = [public_jwk(UNKNOWN_KEY, "EdDSA", "ed"), public_jwk(ED25519, "EdDSA", "ed")]
    for keys in (issuer.keys, issuer.keys[::-1]):
        issuer.keys = keys
        caplog.clear()
        with app_with(settings, auth_jwks_url=issuer.url) as client:
            eventually(401, lambda client=client: client.get(url, headers=bearer(FORGED["expired"](user))))  # type: ignore[misc]
        assert "Token rejected: ExpiredSignatureError" in caplog.text


def test_the_log_says_that_the_subject_is_not_the_user(
    jwks_client: TestClient, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = f"user-{uuid4()}"
    assert jwks_client.get(url, headers=bearer(token(other)) | {"X-Request-Id": "r1"}).status_code == 404
    message = "[GET /api/{user_id}/tasks r1] The subject of the token is not the user_id"
    assert [(record.levelname, record.message) for record in caplog.records] == [("INFO", message)]


@pytest.mark.parametrize(
    "forge",
    [
        lambda user: token(user, key="another secret of 32 bytes or more..", algorithm="HS256"),
        lambda user: token(user, key=SECRET, algorithm="HS512"),
        lambda user: token(user),
        lambda user: encode_by_hand({"alg": "none"}, claims(user)),
        lambda user: token(user, key=SECRET, algorithm="HS256", exp=1),
        lambda user: token(user, key=SECRET, algorithm="HS256", aud="other"),
    ],
    ids=["another secret", "HS512", "EdDSA", "none", "expired", "audience"],
)
def test_a_forged_token_is_401_with_a_shared_secret(
    secret_client: TestClient, url: str, user: str, forge: Callable[[str], str]
) -> None:
    assert secret_client.get(url, headers=bearer(forge(user))).status_code == 401


def test_the_token_is_verified_before_any_other_validation(secret_client: TestClient, url: str) -> None:
    for path in (url, f"{url}?sort=nonsense", f"{url}/no-uuid", f"{url}/no/such/path"):
        assert secret_client.post(path, content="no JSON").status_code == 401


def test_anything_but_a_single_bearer_token_is_401(jwks_client: TestClient, url: str, user: str) -> None:
    good = token(user)
    for headers in (
        [("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {good}")],
        [("Authorization", f"Basic {good}")],
        [("Authorization", good)],
        [("Authorization", f"Bearer {good}, Bearer {good}")],
        [("Authorization", "Bearer")],
    ):
        assert jwks_client.get(url, headers=headers).status_code == 401
    response = jwks_client.get(f"{url}?access_token={good}")
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that were verified with a key, and not found in the cache."""
    verified: list[str] = []
    decode = jwt.decode

    def record(token: str, *arguments: Any, **options: Any) -> Any:
        verified.append(token)
        return decode(token, *arguments, **options)

    monkeypatch.setattr(jwt, "decode", record)
    return verified


def test_a_verified_token_is_cached_until_it_expires(
    secret_client: TestClient, url: str, user: str, verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    headers = bearer(token(user, key=SECRET, algorithm="HS256", exp=int(now) + 100))
    for _ in range(5):
        assert secret_client.get(url, headers=headers).status_code == 200
    assert len(verified) == 1
    monkeypatch.setattr(auth.time, "time", lambda: now + 101)
    secret_client.get(url, headers=headers)
    assert len(verified) == 2


def test_whitespace_around_a_token_does_not_change_its_cache_entry(
    secret_client: TestClient, url: str, user: str, verified: list[str]
) -> None:
    good = token(user, key=SECRET, algorithm="HS256")
    for before in range(1, 6):
        for after in ("", " ", "\t ", "  \t"):
            headers = {"Authorization": f"Bearer{' ' * before}\t{good}{after}"}
            assert secret_client.get(url, headers=headers).status_code == 200
    assert verified == [good]


def test_many_tokens_of_one_user_evict_none_of_others(
    secret_client: TestClient, url: str, user: str, verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CACHE_SIZE", 50)
    mine = bearer(token(user, key=SECRET, algorithm="HS256"))
    assert secret_client.get(url, headers=mine).status_code == 200
    for number in range(100):
        headers = bearer(token(f"other-{user}", key=SECRET, algorithm="HS256", jti=str(number)))
        assert secret_client.get(f"/api/other-{user}/tasks", headers=headers).status_code == 200
    assert len(verified) == 101
    assert secret_client.get(url, headers=mine).status_code == 200
    assert secret_client.get(f"/api/other-{user}/tasks", headers=headers).status_code == 200
    assert len(verified) == 101


def test_the_cache_keeps_the_latest_tokens_up_to_its_size(
    settings: Settings, verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CACHE_SIZE", 50)
    names = [f"user-{uuid4()}" for _ in range(40)]
    headers = [bearer(token(name, key=SECRET, algorithm="HS256", jti=jti)) for name in names for jti in "123"]
    verifier = auth.TokenVerifier(settings.model_copy(update={"auth_secret": SecretStr(SECRET)}))
    for header in headers:
        verifier.authenticate([header["Authorization"]])
    assert len(verifier._cache) <= 50
    assert sorted(verifier._cache) == sorted(digest for digests in verifier._digests.values() for digest in digests)
    for header in reversed(headers[-45:]):
        verifier.authenticate([header["Authorization"]])
    assert len(verified) == len(headers), "the latest tokens were evicted"


def test_an_exp_in_the_distant_future_is_accepted(secret_client: TestClient, url: str, user: str) -> None:
    headers = bearer(token(user, key=SECRET, algorithm="HS256", exp=10**400))
    assert secret_client.get(url, headers=headers).status_code == 200


# ---- The keys of the issuer -----------------------------------------------------------------


@pytest.fixture
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetch the keys every 0.6 seconds, and every 0.2 seconds after an unknown `kid`."""
    monkeypatch.setattr(auth, "MIN_REFRESH_INTERVAL", 0.2)
    monkeypatch.setattr(auth, "REFRESH_INTERVAL", 0.6)


def test_a_token_with_an_unknown_kid_triggers_a_fetch(
    settings: Settings, issuer: Issuer, url: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MIN_REFRESH_INTERVAL", 0.2)  # REFRESH_INTERVAL stays at minutes
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))
        issuer.keys = [public_jwk(UNKNOWN_KEY, "EdDSA", "new")]
        eventually(200, lambda: client.get(url, headers=bearer(token(user, key=UNKNOWN_KEY, kid="new"))))


@pytest.mark.usefixtures("short_intervals")
def test_a_rotated_key_replaces_the_old_one_and_its_tokens(
    settings: Settings, issuer: Issuer, url: str, user: str
) -> None:
    old = issuer.keys
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        headers = bearer(token(user))
        eventually(200, lambda: client.get(url, headers=headers))
        issuer.keys = [public_jwk(UNKNOWN_KEY, "EdDSA", "new")]
        eventually(200, lambda: client.get(url, headers=bearer(token(user, key=UNKNOWN_KEY, kid="new"))))
        assert client.get(url, headers=headers).status_code == 401, "a token of a removed key was accepted"
        issuer.keys = old
        eventually(200, lambda: client.get(url, headers=headers))


def test_unknown_kids_do_not_trigger_a_fetch_within_30_seconds(
    settings: Settings, issuer: Issuer, url: str, user: str
) -> None:
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))
        for number in range(20):
            assert client.get(url, headers=bearer(token(user, kid=str(number)))).status_code == 401
        assert issuer.requests == 1


UNKNOWN_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
UNKNOWN_KEYS = {"EdDSA": UNKNOWN_KEY, "RS256": UNKNOWN_RSA_KEY}
PUBLISHED = {algorithm: public_jwk(key, algorithm, "unusable") for algorithm, key in UNKNOWN_KEYS.items()}
UNUSABLE: dict[str, Any] = {
    "not an object": ["kid"],
    "null": None,
    "empty": {},
    "kid is a number": PUBLISHED["EdDSA"] | {"kid": 1},
    "kid is a list": PUBLISHED["EdDSA"] | {"kid": ["unusable"]},
    "alg is a list": PUBLISHED["EdDSA"] | {"alg": ["EdDSA"]},
    "alg is none": PUBLISHED["EdDSA"] | {"alg": "none"},
    "alg of another kind": PUBLISHED["RS256"] | {"alg": "ES256"},
    "kty is a list": PUBLISHED["EdDSA"] | {"kty": ["OKP"]},
    "a broken key": PUBLISHED["EdDSA"] | {"x": "AA"},
    "a key that is a list": PUBLISHED["EdDSA"] | {"x": [1]},
    "a lone surrogate": PUBLISHED["EdDSA"] | {"x": "\ud800"},
    "for encryption": PUBLISHED["EdDSA"] | {"use": "enc"},
    "use is a list": PUBLISHED["EdDSA"] | {"use": ["sig"]},
    "only for signing": PUBLISHED["EdDSA"] | {"key_ops": ["sign"]},
    "key_ops is a number": PUBLISHED["EdDSA"] | {"key_ops": 1},
    "a private key": dict(jwt.get_algorithm_by_name("EdDSA").to_jwk(UNKNOWN_KEY, as_dict=True)) | {"kid": "unusable"},
    "a private RSA key": dict(jwt.get_algorithm_by_name("RS256").to_jwk(UNKNOWN_RSA_KEY, as_dict=True))
    | {"kid": "unusable"},
    "a secret": {"kty": "oct", "k": "c2VjcmV0", "kid": "unusable"},
}


@pytest.mark.parametrize("jwk", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_unusable_key_is_ignored_and_the_others_are_used(
    settings: Settings, issuer: Issuer, url: str, user: str, jwk: Any
) -> None:
    issuer.keys = [issuer.keys[0], jwk, *issuer.keys[1:]]
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))
        assert client.get(url, headers=bearer(token(user, key=RSA, algorithm="RS256", kid="rsa"))).status_code == 200
        for algorithm, key in UNKNOWN_KEYS.items():
            forged = token(user, key=key, algorithm=algorithm, kid="unusable")
            assert client.get(url, headers=bearer(forged)).status_code == 401


def test_a_key_without_alg_use_and_kid_is_accepted(settings: Settings, issuer: Issuer, url: str, user: str) -> None:
    issuer.keys = [issuer.keys[0] | {"alg": None, "use": None, "key_ops": None, "kid": None}]
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        headers = bearer(jwt.encode(claims(user), ED25519, "EdDSA"))
        eventually(200, lambda: client.get(url, headers=headers))


def test_keys_with_the_same_kid_are_all_accepted(settings: Settings, issuer: Issuer, url: str, user: str) -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    both = {"EdDSA": (ED25519, other), "RS256": (RSA,)}
    issuer.keys = [public_jwk(key, algorithm, "same") for algorithm, keys in both.items() for key in keys]
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user, kid="same"))))
        for algorithm, keys in both.items():
            for key in keys:
                headers = bearer(token(user, key=key, algorithm=algorithm, kid="same"))
                assert client.get(url, headers=headers).status_code == 200
        assert client.get(url, headers=bearer(token(user, key=UNKNOWN_KEY, kid="same"))).status_code == 401


def test_a_forged_token_costs_only_a_few_signature_checks(
    settings: Settings, issuer: Issuer, url: str, user: str, verified: list[str]
) -> None:
    issuer.keys += [public_jwk(ed25519.Ed25519PrivateKey.generate(), "EdDSA", "same") for _ in range(100)]
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))
        verified.clear()
        assert client.get(url, headers=bearer(token(user, key=UNKNOWN_KEY, kid="same"))).status_code == 401
        assert 0 < len(verified) < 10


@pytest.mark.usefixtures("short_intervals")
def test_requests_are_processed_while_keys_are_parsed(
    settings: Settings, issuer: Issuer, url: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing, responded = threading.Event(), threading.Event()
    in_time = []
    parse = jwt.PyJWK

    def parse_slowly(jwk: Any) -> jwt.PyJWK:
        parsing.set()
        in_time.append(responded.wait(10))
        return parse(jwk)

    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))
        monkeypatch.setattr(auth.jwt, "PyJWK", parse_slowly)
        issuer.keys = issuer.keys[:1]
        assert parsing.wait(10)
        assert client.get(url, headers=bearer(token(user))).status_code == 200
        responded.set()
    assert all(in_time), "the request waited for the keys"


@pytest.mark.parametrize(
    "address", ["http://localhost:{port}/jwks", "http://127.0.0.1:{port}/jwks", "//localhost:{port}"]
)
def test_a_redirect_to_another_host_is_not_followed(
    settings: Settings, issuer: Issuer, url: str, user: str, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    other = Issuer()
    issuer.location = address.format(port=other.url.split(":")[2].partition("/")[0])
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        for _ in range(200):
            if "AUTH_JWKS_URL" in caplog.text or other.requests:
                break
            time.sleep(0.05)
        rejected = client.get(url, headers=bearer(token(user)))
        assert rejected.status_code == 503
    message = (
        f"[GET /api/{{user_id}}/tasks {rejected.json()['request_id']}] The keys of the token issuer are not available"
    )
    assert message in caplog.text
    assert (issuer.requests > 0, other.requests) == (True, 0)
    other.close()
    assert "The keys at AUTH_JWKS_URL cannot be read: it redirects to another host" in caplog.text


def test_a_redirect_to_the_same_host_is_followed(settings: Settings, issuer: Issuer, url: str, user: str) -> None:
    for location in ("/keys", issuer.url.replace("/jwks", "/jwks/")):
        issuer.location = location
        with app_with(settings, auth_jwks_url=issuer.url) as client:
            eventually(200, lambda: client.get(url, headers=bearer(token(user))))


@pytest.mark.parametrize(
    ("old", "new", "followed"),
    [
        ("https://a.example/x", "https://a.example/y", True),
        ("http://a.example/x", "https://a.example/x", True),
        ("https://a.example/x", "http://a.example/x", False),
        ("https://a.example/x", "https://b.example/x", False),
        ("https://a.example/x", "https://a.example.b.example/x", False),
        ("https://a.example/x", "https://a.example@b.example/x", False),
        ("http://a.example/x", "http://a.example:81/x", False),
        ("http://a.example/x", "ftp://a.example/x", False),
    ],
)
def test_a_redirect_is_compared_by_scheme_host_and_port(old: str, new: str, followed: bool) -> None:
    def redirect() -> Any:
        request = urllib.request.Request(old)  # noqa: S310  # it is never opened
        return auth._SameHostRedirects().redirect_request(request, io.BytesIO(), 302, "", {}, new)

    if followed:
        assert redirect().full_url == new
    else:
        with pytest.raises(ValueError, match="it redirects to another host"):
            redirect()


@pytest.mark.usefixtures("short_intervals")
def test_the_last_valid_keys_stay_in_use_if_fetches_fail(
    settings: Settings, issuer: Issuer, url: str, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))
        for status, keys in (
            (500, []),
            (200, []),
            (200, [{"kty": "oct", "k": "c2VjcmV0"}]),
            (200, [{"alg": [1], "kty": "EC"}]),
        ):
            issuer.status, issuer.keys = status, keys  # type: ignore[assignment]
            before = issuer.requests
            while issuer.requests < before + 2:
                assert client.get(url, headers=bearer(token(user, jti=str(uuid4())))).status_code == 200
                time.sleep(0.02)
    assert "The keys at AUTH_JWKS_URL cannot be read" in caplog.text


def test_a_token_is_503_before_the_first_keys_are_fetched(
    settings: Settings, issuer: Issuer, url: str, user: str
) -> None:
    issuer.status = 500
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        response = client.get(url, headers=bearer(token(user)))
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert client.get(url).status_code == 401
        issuer.status = 200
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))


@pytest.mark.usefixtures("short_intervals")
def test_a_slow_issuer_delays_no_request(
    settings: Settings, issuer: Issuer, url: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "FETCH_TIMEOUT", 60)
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))
        issuer.may_respond.clear()
        before = issuer.requests
        while issuer.requests == before:
            time.sleep(0.01)
        for _ in range(50):
            assert client.get(url, headers=bearer(token(user, jti=str(uuid4())))).status_code == 200
        assert issuer.requests == before + 1, "the service did not wait for the response"
        issuer.may_respond.set()


@pytest.mark.parametrize("location", ["", "/keys"])
def test_a_slow_issuer_does_not_delay_the_shutdown(
    settings: Settings, issuer: Issuer, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    monkeypatch.setattr(auth, "FETCH_TIMEOUT", 1)
    issuer.trickle, issuer.location = 600, location
    begin = time.monotonic()
    with app_with(settings, auth_jwks_url=issuer.url):
        while not issuer.requests:
            time.sleep(0.01)
    assert time.monotonic() - begin < 30


def test_the_retry_delay_grows_to_30_seconds(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []

    async def sleep(seconds: float) -> None:
        delays.append(seconds)
        if len(delays) == 3000:  # failures, as in a day
            raise asyncio.CancelledError

    def fail(*_: object) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr(auth.asyncio, "sleep", sleep)
    monkeypatch.setattr(urllib.request, "build_opener", fail)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(auth.JWKSVerifier(settings).refresh_keys())
    assert delays[:6] == [1, 2, 4, 8, 16, 30]
    assert set(delays[5:]) == {30}


def test_a_start_without_authentication_is_logged_once(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(create_app(settings)):
        pass
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["Neither AUTH_JWKS_URL nor AUTH_SECRET is set: the user_id in the path is trusted"]
