"""Only the owner gets in: tokens, and every way to forge one."""

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
from tests.conftest import hold_to_contract
from tests.helpers import eventually

ISSUER, AUDIENCE, SECRET = "https://issuer.example", "https://tasks.example", "a shared secret, long enough for" * 2
ED25519 = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
STRANGER = ed25519.Ed25519PrivateKey.generate()


def public(key: Any, algorithm: str, kid: str) -> dict[str, Any]:
    """The public half of a key, as an issuer shows it."""
    shown = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return dict(shown) | {"kid": kid, "alg": algorithm}


class Issuer:
    """A key server whose answers the test chooses."""

    def __init__(self) -> None:
        self.keys = [public(ED25519, "EdDSA", "ed"), public(RSA, "RS256", "rsa"), public(EC, "ES256", "ec")]
        self.status = 200
        self.delay = 0.0
        self.trickle = 0  # bytes, ten a second, before the answer
        self.asked = 0
        self.location = ""  # where /jwks redirects to; any other path shows the keys
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                time.sleep(issuer.delay)
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
    changed = settings.model_copy(update={"auth_issuer": ISSUER, "auth_audience": AUDIENCE} | values)
    with TestClient(create_app(changed), raise_server_exceptions=False) as client:
        client.event_hooks = {"response": [hold_to_contract]}
        yield client


@pytest.fixture(scope="module")
def with_jwks(settings: Settings) -> Iterator[TestClient]:
    issuer = Issuer()
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(401, lambda: client.get("/api/x/tasks", headers=bearer("x")))
        yield client
    issuer.close()


@pytest.fixture(scope="module")
def with_secret(settings: Settings) -> Iterator[TestClient]:
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


def by_hand(header: object, payload: object, key: bytes | None = None) -> str:
    """A token that no library would make."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, payload)]
    signature = hmac.digest(key, b".".join(parts), "sha256") if key is not None else b""
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


# ---- The owner -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(ED25519, "EdDSA", "ed"), (RSA, "RS256", "rsa"), (EC, "ES256", "ec")]
)
def test_the_owner_gets_in_with_a_key_of_the_issuer(
    with_jwks: TestClient, url: str, user: str, key: Any, algorithm: str, kid: str
) -> None:
    headers = bearer(token(user, key=key, algorithm=algorithm, kid=kid))
    task = with_jwks.post(url, json={"title": "mine"}, headers=headers)
    assert task.status_code == 201
    assert with_jwks.get(url, headers=headers).json() == [task.json()]
    assert with_jwks.get(f"/api/{user}", headers=headers).json()["total"] == 1


def test_the_owner_gets_in_with_the_shared_secret(with_secret: TestClient, url: str, user: str) -> None:
    headers = bearer(token(user, key=SECRET, algorithm="HS256"))
    assert with_secret.post(url, json={"title": "mine"}, headers=headers).status_code == 201


def test_the_scheme_may_be_written_in_lower_case(with_jwks: TestClient, url: str, user: str) -> None:
    for scheme in ("bearer", "BEARER"):
        assert with_jwks.get(url, headers={"Authorization": f"{scheme} {token(user)}"}).status_code == 200


def test_issuer_and_audience_are_checked_only_where_they_are_set(settings: Settings, url: str, user: str) -> None:
    headers = bearer(token(user, key=SECRET, algorithm="HS256", iss="https://other", aud="https://other"))
    with app_with(settings, auth_secret=SecretStr(SECRET), auth_issuer="", auth_audience="") as client:
        assert client.get(url, headers=headers).status_code == 200


def test_clocks_may_differ_by_a_few_seconds(with_jwks: TestClient, url: str, user: str) -> None:
    now = int(time.time())
    for more in ({"exp": now - 3}, {"nbf": now + 5}, {"iat": now + 5}):
        assert with_jwks.get(url, headers=bearer(token(user, **more))).status_code == 200


def test_a_user_id_from_an_issuer_is_any_text(with_jwks: TestClient) -> None:
    for user, path in (
        ("auth0|123", "auth0%7C123"),
        ("ann@example.com", "ann%40example.com"),
        ("\u00fc\U0001f95b", "%C3%BC%F0%9F%A5%9B"),
    ):
        assert with_jwks.get(f"/api/{path}/tasks", headers=bearer(token(user))).status_code == 200


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
def test_anothers_token_is_answered_as_if_there_were_no_such_user(
    with_jwks: TestClient, url: str, user: str, method: str, suffix: str, body: Any
) -> None:
    mine = bearer(token(user))
    task = with_jwks.post(url, json={"title": "private"}, headers=mine).json()
    path = f"/api/{user}{suffix.format(id=task['id'])}"

    def ask() -> tuple[int, list[tuple[str, str]], bytes]:
        answer = with_jwks.request(method, path, json=body, headers=bearer(token(f"user-{uuid4()}")))
        return answer.status_code, answer.headers.multi_items(), answer.content

    while_there_is_something = ask()
    assert with_jwks.get(url, headers=mine).json() == [task], "a stranger changed it"
    with_jwks.delete(url, headers=mine)
    assert while_there_is_something == ask()
    assert while_there_is_something[0] == 404
    missing = with_jwks.get(f"{url}/{task['id']}", headers=mine).json()
    assert json.loads(while_there_is_something[2]) == missing | {"instance": path}


@pytest.mark.parametrize(("method", "suffix", "body"), REQUESTS)
def test_every_request_needs_a_token(with_jwks: TestClient, user: str, method: str, suffix: str, body: Any) -> None:
    path = f"/api/{user}{suffix.format(id=uuid4())}"
    answer = with_jwks.request(method, path, json=body)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    for open_to_all in ("/health", "/health/ready", "/openapi.json", "/docs"):
        assert with_jwks.get(open_to_all).status_code == 200


# ---- Forgeries -----------------------------------------------------------------------------

PEM = ED25519.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
DER = ED25519.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
RAW = ED25519.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
OPENSSH = ED25519.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
RSA_PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
RSA_PKCS1 = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1)
X = public(ED25519, "EdDSA", "ed")["x"]


def flipped(value: str, part: int) -> str:
    """The token with one bit of a part changed."""
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
        f"alg {spelling}": lambda user, spelling=spelling: by_hand({"alg": spelling, "kid": "ed"}, claims(user))  # type: ignore[misc]
        for spelling in ("none", "None", "NONE", "nOnE", "", None, 0, ["none"], {"a": 1})
    },
    "alg left out": lambda user: by_hand({"kid": "ed"}, claims(user)),
    **{
        f"HS256 with the public key as {name}": lambda user, key=key, kid=kid: by_hand(  # type: ignore[misc]
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
    "HS256 with the secret of nobody": lambda user: token(user, key=SECRET, algorithm="HS256"),
    "a key of our own in jwk": lambda user: token(user, key=STRANGER, headers={"jwk": public(STRANGER, "EdDSA", "ed")}),
    "a key of our own in jku": lambda user: token(user, key=STRANGER, headers={"jku": "http://127.0.0.1:9/jwks"}),
    "a key of our own in x5u": lambda user: token(user, key=STRANGER, headers={"x5u": "http://127.0.0.1:9/cert"}),
    "a key of our own in x5c": lambda user: token(user, key=STRANGER, headers={"x5c": [X]}),
    "signed by a stranger": lambda user: token(user, key=STRANGER),
    "the kid of another key": lambda user: token(user, kid="rsa"),
    "an unknown kid": lambda user: token(user, key=STRANGER, kid="unknown"),
    "no kid": lambda user: jwt.encode(claims(user), ED25519, "EdDSA"),
    "a path as kid": lambda user: token(user, kid="../../../../dev/null"),
    "SQL as kid": lambda user: token(user, kid="' OR 1=1 --"),
    "a number as kid": lambda user: by_hand({"alg": "EdDSA", "kid": 1}, claims(user)),
    "a critical extension": lambda user: token(user, headers={"crit": ["x"], "x": 1}),
    "expired": lambda user: token(user, exp=int(time.time()) - 60),
    "not yet valid": lambda user: token(user, nbf=int(time.time()) + 60),
    "issued in the future": lambda user: token(user, iat=int(time.time()) + 60),
    "of another issuer": lambda user: token(user, iss="https://other.example"),
    "of an issuer with a slash more": lambda user: token(user, iss=ISSUER + "/"),
    "without an issuer": lambda user: token(user, iss=None),
    "for another audience": lambda user: token(user, aud="https://other.example"),
    "for many audiences but this": lambda user: token(user, aud=["a", "b"]),
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
    "one bit of the signature": lambda user: flipped(token(user), 2),
    "one bit of the claims": lambda user: flipped(token(user), 1),
    "one bit of the header": lambda user: flipped(token(user), 0),
    "another's claims": lambda user: ".".join(
        [*token("mallory").split(".")[:1], token(user).split(".")[1], token("mallory").split(".")[2]]
    ),
    "claims that are no object": lambda _: jwt.api_jws.encode(b"[1]", ED25519, "EdDSA", {"kid": "ed"}),
    "claims that are no JSON": lambda _: jwt.api_jws.encode(b"x", ED25519, "EdDSA", {"kid": "ed"}),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_a_forged_token_is_401_and_leaves_no_trace(
    with_jwks: TestClient, url: str, user: str, forge: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    forged = forge(user)
    for method, body in (("POST", {"title": "forged"}), ("GET", None), ("DELETE", None)):
        answer = with_jwks.request(method, url, json=body, headers=bearer(forged))
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        assert user not in answer.json()["detail"]
    assert with_jwks.get(url, headers=bearer(token(user))).json() == []
    assert user not in caplog.text


@pytest.mark.parametrize(
    "forge",
    [
        lambda user: token(user, key="another secret of 32 bytes or more..", algorithm="HS256"),
        lambda user: token(user, key=SECRET, algorithm="HS512"),
        lambda user: token(user),
        lambda user: by_hand({"alg": "none"}, claims(user)),
        lambda user: token(user, key=SECRET, algorithm="HS256", exp=1),
        lambda user: token(user, key=SECRET, algorithm="HS256", aud="other"),
    ],
    ids=["another secret", "HS512", "EdDSA", "none", "expired", "audience"],
)
def test_a_forged_token_is_401_with_a_shared_secret(
    with_secret: TestClient, url: str, user: str, forge: Callable[[str], str]
) -> None:
    assert with_secret.get(url, headers=bearer(forge(user))).status_code == 401


def test_nothing_of_a_request_is_looked_at_before_its_token(with_secret: TestClient, url: str) -> None:
    for path in (url, f"{url}?sort=nonsense", f"{url}/no-uuid", f"{url}/no/such/path"):
        assert with_secret.post(path, content="no JSON").status_code == 401


def test_what_is_no_single_bearer_token_is_401(with_jwks: TestClient, url: str, user: str) -> None:
    good = token(user)
    for headers in (
        [("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {good}")],
        [("Authorization", f"Basic {good}")],
        [("Authorization", good)],
        [("Authorization", f"Bearer {good}, Bearer {good}")],
        [("Authorization", "Bearer")],
    ):
        assert with_jwks.get(url, headers=headers).status_code == 401
    answer = with_jwks.get(f"{url}?access_token={good}")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_a_verified_token_is_not_verified_again_and_never_outlives_its_exp(
    with_secret: TestClient, url: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = []
    verify = auth.TokenVerifier._verify
    monkeypatch.setattr(auth.TokenVerifier, "_verify", lambda *given: verified.append(1) or verify(*given))
    now = time.time()
    headers = bearer(token(user, key=SECRET, algorithm="HS256", exp=int(now) + 100))
    for _ in range(5):
        assert with_secret.get(url, headers=headers).status_code == 200
    assert len(verified) == 1
    monkeypatch.setattr(auth.time, "time", lambda: now + 101)
    with_secret.get(url, headers=headers)
    assert len(verified) == 2


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that were verified, because they were not remembered."""
    verified: list[str] = []
    verify = auth.TokenVerifier._verify
    monkeypatch.setattr(
        auth.TokenVerifier, "_verify", lambda self, token: verified.append(token) or verify(self, token)
    )
    return verified


def test_blanks_around_a_token_do_not_make_it_another(
    with_secret: TestClient, url: str, user: str, verified: list[str]
) -> None:
    good = token(user, key=SECRET, algorithm="HS256")
    for before in range(1, 6):
        for after in ("", " ", "\t ", "  \t"):
            headers = {"Authorization": f"Bearer{' ' * before}\t{good}{after}"}
            assert with_secret.get(url, headers=headers).status_code == 200
    assert verified == [good]


def test_many_tokens_of_one_user_push_out_nobody_elses(
    with_secret: TestClient, url: str, user: str, verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CACHE_SIZE", 50)
    mine = bearer(token(user, key=SECRET, algorithm="HS256"))
    assert with_secret.get(url, headers=mine).status_code == 200
    for number in range(100):
        headers = bearer(token(f"other-{user}", key=SECRET, algorithm="HS256", jti=str(number)))
        assert with_secret.get(f"/api/other-{user}/tasks", headers=headers).status_code == 200
    assert len(verified) == 101
    assert with_secret.get(url, headers=mine).status_code == 200
    assert with_secret.get(f"/api/other-{user}/tasks", headers=headers).status_code == 200
    assert len(verified) == 101


def test_tokens_of_many_users_take_no_more_memory_than_is_set(
    settings: Settings, verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CACHE_SIZE", 50)
    names = [f"user-{uuid4()}" for _ in range(40)]
    headers = [bearer(token(name, key=SECRET, algorithm="HS256", jti=jti)) for name in names for jti in "123"]
    verifier = auth.TokenVerifier(settings.model_copy(update={"auth_secret": SecretStr(SECRET)}))
    for one in headers:
        verifier.authenticate([one["Authorization"]])
    assert len(verifier._verified) <= 50
    assert sorted(verifier._verified) == sorted(digest for digests in verifier._digests.values() for digest in digests)
    for one in reversed(headers[-45:]):
        verifier.authenticate([one["Authorization"]])
    assert len(verified) == len(headers), "the last ones were forgotten"


def test_an_absurdly_late_exp_is_no_error(with_secret: TestClient, url: str, user: str) -> None:
    headers = bearer(token(user, key=SECRET, algorithm="HS256", exp=10**400))
    assert with_secret.get(url, headers=headers).status_code == 200


# ---- The keys of the issuer -----------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MIN_REFRESH_INTERVAL", 0.2)
    monkeypatch.setattr(auth, "REFRESH_INTERVAL", 0.6)


def test_a_token_with_an_unknown_key_has_the_keys_looked_up(
    settings: Settings, issuer: Issuer, url: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MIN_REFRESH_INTERVAL", 0.2)  # and the next look by itself only minutes later
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))
        issuer.keys = [public(STRANGER, "EdDSA", "new")]
        eventually(200, lambda: client.get(url, headers=bearer(token(user, key=STRANGER, kid="new"))))


@pytest.mark.usefixtures("quick")
def test_a_new_key_is_taken_when_a_token_names_it_and_an_old_one_is_dropped(
    settings: Settings, issuer: Issuer, url: str, user: str
) -> None:
    old = issuer.keys
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        headers = bearer(token(user))
        eventually(200, lambda: client.get(url, headers=headers))
        issuer.keys = [public(STRANGER, "EdDSA", "new")]
        eventually(200, lambda: client.get(url, headers=bearer(token(user, key=STRANGER, kid="new"))))
        assert client.get(url, headers=headers).status_code == 401, "a token of a dropped key was remembered"
        issuer.keys = old
        eventually(200, lambda: client.get(url, headers=headers))


def test_unknown_keys_ask_the_issuer_once_in_30_seconds_at_most(
    settings: Settings, issuer: Issuer, url: str, user: str
) -> None:
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))
        for number in range(20):
            assert client.get(url, headers=bearer(token(user, kid=str(number)))).status_code == 401
        assert issuer.asked == 1


STRANGERS_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGERS = {"EdDSA": STRANGER, "RS256": STRANGERS_RSA}
SHOWN = {algorithm: public(key, algorithm, "odd") for algorithm, key in STRANGERS.items()}
ODD: dict[str, Any] = {
    "not an object": ["kid"],
    "null": None,
    "empty": {},
    "kid is a number": SHOWN["EdDSA"] | {"kid": 1},
    "kid is a list": SHOWN["EdDSA"] | {"kid": ["odd"]},
    "alg is a list": SHOWN["EdDSA"] | {"alg": ["EdDSA"]},
    "alg is none": SHOWN["EdDSA"] | {"alg": "none"},
    "alg of another kind": SHOWN["RS256"] | {"alg": "ES256"},
    "kty is a list": SHOWN["EdDSA"] | {"kty": ["OKP"]},
    "a broken key": SHOWN["EdDSA"] | {"x": "AA"},
    "a key that is no text": SHOWN["EdDSA"] | {"x": [1]},
    "half a surrogate pair": SHOWN["EdDSA"] | {"x": "\ud800"},
    "for encryption": SHOWN["EdDSA"] | {"use": "enc"},
    "use is a list": SHOWN["EdDSA"] | {"use": ["sig"]},
    "only for signing": SHOWN["EdDSA"] | {"key_ops": ["sign"]},
    "key_ops is a number": SHOWN["EdDSA"] | {"key_ops": 1},
    "a private key": dict(jwt.get_algorithm_by_name("EdDSA").to_jwk(STRANGER, as_dict=True)) | {"kid": "odd"},
    "a private RSA key": dict(jwt.get_algorithm_by_name("RS256").to_jwk(STRANGERS_RSA, as_dict=True)) | {"kid": "odd"},
    "a secret": {"kty": "oct", "k": "c2VjcmV0", "kid": "odd"},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_an_odd_key_is_not_taken_and_others_serve_on(
    settings: Settings, issuer: Issuer, url: str, user: str, odd: Any
) -> None:
    issuer.keys = [issuer.keys[0], odd, *issuer.keys[1:]]
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))
        assert client.get(url, headers=bearer(token(user, key=RSA, algorithm="RS256", kid="rsa"))).status_code == 200
        for algorithm, key in STRANGERS.items():
            forged = token(user, key=key, algorithm=algorithm, kid="odd")
            assert client.get(url, headers=bearer(forged)).status_code == 401


def test_a_key_without_alg_use_and_kid_is_taken(settings: Settings, issuer: Issuer, url: str, user: str) -> None:
    issuer.keys = [issuer.keys[0] | {"alg": None, "use": None, "key_ops": None, "kid": None}]
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        headers = bearer(jwt.encode(claims(user), ED25519, "EdDSA"))
        eventually(200, lambda: client.get(url, headers=headers))


def test_two_keys_of_one_name_are_both_taken(settings: Settings, issuer: Issuer, url: str, user: str) -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    both = {"EdDSA": (ED25519, other), "RS256": (RSA,)}
    issuer.keys = [public(key, algorithm, "same") for algorithm, keys in both.items() for key in keys]
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user, kid="same"))))
        for algorithm, keys in both.items():
            for key in keys:
                headers = bearer(token(user, key=key, algorithm=algorithm, kid="same"))
                assert client.get(url, headers=headers).status_code == 200
        assert client.get(url, headers=bearer(token(user, key=STRANGER, kid="same"))).status_code == 401


def test_a_forged_token_costs_a_few_verifications_at_most(
    settings: Settings, issuer: Issuer, url: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.keys += [public(ed25519.Ed25519PrivateKey.generate(), "EdDSA", "same") for _ in range(100)]
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))
        tried = []
        check = auth.TokenVerifier._claims
        monkeypatch.setattr(auth.TokenVerifier, "_claims", lambda *given: tried.append(1) or check(*given))
        assert client.get(url, headers=bearer(token(user, key=STRANGER, kid="same"))).status_code == 401
        assert 0 < len(tried) < 10


@pytest.mark.usefixtures("quick")
def test_while_keys_are_parsed_requests_are_served(
    settings: Settings, issuer: Issuer, url: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing, served = threading.Event(), threading.Event()
    waited = []
    parse = jwt.PyJWK

    def slow(jwk: Any) -> jwt.PyJWK:
        parsing.set()
        waited.append(served.wait(10))
        return parse(jwk)

    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))
        monkeypatch.setattr(auth.jwt, "PyJWK", slow)
        issuer.keys = issuer.keys[:1]
        assert parsing.wait(10)
        assert client.get(url, headers=bearer(token(user))).status_code == 200
        served.set()
    assert all(waited), "the request was served only after the keys"


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
            if "AUTH_JWKS_URL" in caplog.text or other.asked:
                break
            time.sleep(0.05)
        assert client.get(url, headers=bearer(token(user))).status_code == 503
    assert (issuer.asked > 0, other.asked) == (True, 0)
    other.close()
    assert "The keys at AUTH_JWKS_URL cannot be read: it redirects to another host" in caplog.text


def test_a_redirect_on_the_issuers_own_host_is_followed(
    settings: Settings, issuer: Issuer, url: str, user: str
) -> None:
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
def test_a_redirect_leads_nowhere_but_to_the_same_host(old: str, new: str, followed: bool) -> None:
    def redirect() -> Any:
        request = urllib.request.Request(old)  # noqa: S310  # nothing is opened
        return auth._SameHost().redirect_request(request, io.BytesIO(), 302, "", {}, new)

    if followed:
        assert redirect().full_url == new
    else:
        with pytest.raises(ValueError, match="it redirects to another host"):
            redirect()


@pytest.mark.usefixtures("quick")
def test_the_last_good_keys_serve_on_while_the_issuer_is_down_or_shows_nonsense(
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
            asked = issuer.asked
            while issuer.asked < asked + 2:
                assert client.get(url, headers=bearer(token(user, jti=str(uuid4())))).status_code == 200
                time.sleep(0.02)
    assert "The keys at AUTH_JWKS_URL cannot be read" in caplog.text


def test_without_any_key_yet_the_answer_is_503_not_401(settings: Settings, issuer: Issuer, url: str, user: str) -> None:
    issuer.status = 500
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        answer = client.get(url, headers=bearer(token(user)))
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert client.get(url).status_code == 401
        issuer.status = 200
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))


@pytest.mark.usefixtures("quick")
def test_a_slow_issuer_delays_no_request(settings: Settings, issuer: Issuer, url: str, user: str) -> None:
    with app_with(settings, auth_jwks_url=issuer.url) as client:
        eventually(200, lambda: client.get(url, headers=bearer(token(user))))
        issuer.delay = 2
        asked = issuer.asked
        while issuer.asked == asked:
            time.sleep(0.01)
        answered = 0
        while issuer.asked == asked + 1 and answered < 50:  # while it is asked, and is silent
            assert client.get(url, headers=bearer(token(user, jti=str(uuid4())))).status_code == 200
            answered += 1
        assert answered == 50
        issuer.delay = 0


@pytest.mark.parametrize("location", ["", "/keys"])
def test_an_issuer_that_trickles_does_not_keep_the_service_from_ending(
    settings: Settings, issuer: Issuer, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    monkeypatch.setattr(auth, "FETCH_TIMEOUT", 1)
    issuer.trickle, issuer.location = 600, location
    begin = time.monotonic()
    with app_with(settings, auth_jwks_url=issuer.url):
        while not issuer.asked:
            time.sleep(0.01)
    assert time.monotonic() - begin < 30


def test_an_issuer_that_is_down_for_a_day_is_asked_on_at_most_every_30_seconds(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3000:
            raise asyncio.CancelledError

    def down(_: object) -> None:
        raise OSError("nobody answers")

    monkeypatch.setattr(auth.asyncio, "sleep", sleep)
    monkeypatch.setattr(auth.JWKSVerifier, "_fetch", down)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(auth.JWKSVerifier(settings).refresh_keys())
    assert pauses[:6] == [1, 2, 4, 8, 16, 30]
    assert set(pauses[5:]) == {30}


def test_a_start_without_tokens_says_so_once(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(create_app(settings)):
        pass
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["Neither AUTH_JWKS_URL nor AUTH_SECRET is set: the user_id in the path is trusted"]
