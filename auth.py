"""Who is asking: the `sub` of a signed token (JWT, RFC 7519), sent as a bearer token (RFC 6750).

There are two modes, chosen once at start-up. With `AUTH_SECRET` issuer and service share one key;
with `AUTH_JWKS_URL` the issuer signs with keys of its own, whose public halves it shows there. The
algorithms of one mode are never taken in the other.
"""

import asyncio
import hashlib
import json
import logging
import re
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import jwt
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

import errors
from schemas import USER_ID
from settings import Settings

Keys = dict[str | None, list[jwt.PyJWK]]  # by the name (`kid`) that a token has for its key

logger = logging.getLogger("tasks")

CACHE_SIZE = 5000  # verified tokens, at some 400 bytes each
CACHE_SIZE_PER_USER = 8  # and these of one user, so that nobody's many tokens crowd out all others
ALGORITHMS = ("EdDSA", "RS256", "ES256")  # that an issuer may sign with
KEYS_PER_KID = 4  # keys of one name that a token may be signed with; each costs a forged one a verification
REFRESH_INTERVAL = 300  # seconds between two looks at the keys of the issuer
MIN_REFRESH_INTERVAL = 30  # and at least these, also when a token names a key that is not known
FETCH_TIMEOUT = 5  # seconds that the issuer may take for an answer, and be silent for


@asynccontextmanager
async def open_verifier(settings: Settings) -> AsyncIterator["TokenVerifier"]:
    """Yield what verifies tokens as the settings say, and keep its keys fresh meanwhile."""
    if not settings.auth_jwks_url:
        yield TokenVerifier(settings)
        return
    verifier = JWKSVerifier(settings)
    refresh = asyncio.create_task(verifier.refresh_keys())
    try:
        yield verifier
    finally:
        refresh.cancel()


class TokenVerifier:
    """Tells whose token a request carries. They are signed with `AUTH_SECRET`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._verified: dict[bytes, tuple[str, float]] = {}  # by digest: whose, and until when
        self._digests: dict[str, list[bytes]] = {}  # by user, who verified one last at the end: the same digests

    def authenticate(self, headers: list[str]) -> str:
        """Return the user whose token is in the request's Authorization headers.

        Raises HTTPException: 401 when there is no token or not a good one, 503 while the keys of
        the issuer are not known yet.
        """
        if not headers:
            raise HTTPException(401, "A bearer token is required.", {"WWW-Authenticate": "Bearer"})
        scheme, _, token = headers[0].partition(" ")
        if len(headers) > 1 or scheme.lower() != "bearer":
            raise _refused()
        token = token.strip()  # or one token with more and more blanks would be as many
        digest = hashlib.blake2b(token.encode(), digest_size=16).digest()
        user, until = self._verified.get(digest, ("", 0.0))
        if time.time() >= until:
            user, until = self._verify(token)
            self._remember(digest, user, until)
        return user

    def _remember(self, digest: bytes, user: str, until: float) -> None:
        """Keep a verified token, instead of the user's own oldest or those of who verified none for longest."""
        digests = self._digests.pop(user, [])
        if digest not in digests:
            digests.append(digest)
        if len(digests) > CACHE_SIZE_PER_USER:
            del self._verified[digests.pop(0)]
        self._digests[user] = digests
        self._verified[digest] = user, until
        if len(self._verified) > CACHE_SIZE:
            for forgotten in self._digests.pop(next(iter(self._digests))):
                del self._verified[forgotten]

    def _verify(self, token: str) -> tuple[str, int]:
        """Return whose token it is, and when it expires, in seconds since 1970."""
        for key, algorithm in self._keys_for(token):
            with suppress(jwt.PyJWTError):  # whose text may hold a claim: it is neither told nor logged
                return self._claims(token, key, algorithm)
        raise _refused()

    def _claims(self, token: str, key: Any, algorithm: str) -> tuple[str, int]:
        """Return the same of a token that this key has signed. Raises PyJWTError for any other."""
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=self._settings.auth_issuer or None,
            audience=self._settings.auth_audience or None,
            leeway=10,  # seconds that the clocks of issuer and service may differ by
            options={
                "require": ["exp", "sub"],
                "verify_aud": bool(self._settings.auth_audience),  # or whoever names one would be refused
                "enforce_minimum_key_length": True,
            },
        )
        if not re.fullmatch(USER_ID, claims["sub"]) or len(claims["sub"]) > 128:
            raise jwt.InvalidTokenError
        return claims["sub"], int(claims["exp"])

    def _keys_for(self, _token: str) -> list[tuple[Any, str]]:
        """Return the keys that may have signed the token, each with the one algorithm it is for."""
        return [(self._settings.auth_secret.get_secret_value(), "HS256")]


class JWKSVerifier(TokenVerifier):
    """The same, signed with keys that the issuer shows at `AUTH_JWKS_URL` (RFC 7517)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._keys: Keys = {}
        self._shown: object = None
        self._unknown_key = asyncio.Event()

    def _keys_for(self, token: str) -> list[tuple[Any, str]]:
        if not self._keys:
            raise HTTPException(503, "The keys of the token issuer are not known yet.", {"Retry-After": "1"})
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError:
            return []
        if kid not in self._keys:
            self._unknown_key.set()
        return [(key, key.algorithm_name) for key in self._keys.get(kid, [])]

    async def refresh_keys(self) -> None:
        """Look the keys up now and again, for ever. While that fails, the last good ones serve on."""
        pause = 0.5
        while True:
            try:
                self._take(*await asyncio.to_thread(self._look_up))
            except Exception as error:  # whatever the issuer does or shows, this must go on
                logger.warning("The keys at AUTH_JWKS_URL cannot be read: %s", " ".join(str(error).split()))
                pause = min(2 * pause, MIN_REFRESH_INTERVAL)
                await asyncio.sleep(pause)
            else:
                pause = 0.5
                self._unknown_key.clear()
                await asyncio.sleep(MIN_REFRESH_INTERVAL)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._unknown_key.wait(), REFRESH_INTERVAL - MIN_REFRESH_INTERVAL)

    def _look_up(self) -> tuple[object, Keys]:
        """Return what the issuer shows, and the keys in it; in a thread, for there may be thousands."""
        shown = self._fetch()
        if shown == self._shown:
            return shown, self._keys
        keys: Keys = {}
        for jwk in shown.get("keys", []):
            if (key := _usable(jwk)) and len(keys.setdefault(key.key_id, [])) < KEYS_PER_KID:
                keys[key.key_id].append(key)
        if not keys:
            raise ValueError("there is no key for " + ", ".join(ALGORITHMS))
        return shown, keys

    def _fetch(self) -> Any:
        give_up, body = time.monotonic() + FETCH_TIMEOUT, b""
        opener = urllib.request.build_opener(_SameHost)
        with opener.open(self._settings.auth_jwks_url, timeout=FETCH_TIMEOUT) as answer:  # http(s), by Settings
            while part := answer.read1():
                body += part
                if len(body) > 1024 * 1024 or time.monotonic() > give_up:  # the service could not end meanwhile
                    raise ValueError("the answer is too long or takes too long")
        return json.loads(body)

    def _take(self, shown: object, keys: Keys) -> None:
        if keys is not self._keys:
            self._keys, self._shown = keys, shown
            self._verified.clear()  # a key that is shown no more may have been stolen
            self._digests.clear()


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to the host that the settings name, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        same = (new.scheme, new.netloc) == (old.scheme, old.netloc)
        if not same and (new.scheme, new.hostname) != ("https", old.hostname):
            raise ValueError("it redirects to another host, or away from https")
        fp.close()  # or all of its body would be read, which may never end
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _usable(jwk: Any) -> jwt.PyJWK | None:
    """Return the key for verifying tokens that an entry of the issuer's list is, if it is one (RFC 7517)."""
    try:
        # Whoever sees a private key (`d`) signs with it.
        if "d" in jwk or (jwk.get("use") or "sig") != "sig" or "verify" not in (jwk.get("key_ops") or ["verify"]):
            return None
        key = jwt.PyJWK(jwk)
    except Exception:  # whatever is odd about it, the others serve on
        return None
    return key if key.algorithm_name in ALGORITHMS and isinstance(key.key_id, str | None) else None


def _refused() -> HTTPException:
    return HTTPException(401, "The token is not valid.", {"WWW-Authenticate": 'Bearer error="invalid_token"'})


class OwnerMiddleware:
    """Lets a request under /api pass whose token belongs to the user in its path.

    It stands before all routes, so that none can be without it, and nothing of a request is looked
    at before it is known whose it is. Responds with 401 without a good token. To everybody else the
    user does not exist: 404.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and (path := get_route_path(scope)).startswith("/api/"):
            request = Request(scope)
            try:
                user = scope["app"].state.verifier.authenticate(request.headers.getlist("authorization"))
                if user != path.split("/")[2]:
                    raise errors.not_found()
            except HTTPException as error:
                response = await errors.handle_http_exception(request, error)
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)
