"""Authentication: the user of a request is the `sub` claim of its bearer token (RFC 6750), a signed JWT (RFC 7519).

Tokens are verified in one of two modes, which the settings select at start-up:

- With `AUTH_SECRET`, issuer and service share one secret key (HS256).
- With `AUTH_JWKS_URL`, the issuer signs with private keys of its own. It publishes the public keys at
  that URL as a JSON Web Key Set (JWKS, RFC 7517).

The algorithms of one mode are never accepted in the other.
"""

import asyncio
import hashlib
import json
import logging
import re
import time
import urllib.error
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
from schemas import USER_ID_PATTERN
from settings import Settings

Keys = dict[str | None, list[jwt.PyJWK]]  # signing keys by their `kid`

logger = logging.getLogger("tasks")

CACHE_SIZE = 5000  # verified tokens, about 400 bytes each
CACHE_SIZE_PER_USER = 8  # so that many tokens of one user do not evict those of other users
ALGORITHMS = ("EdDSA", "RS256", "ES256")  # accepted with AUTH_JWKS_URL
MAX_KEYS_PER_KID = 4  # limits the signature checks per token, because all keys with the token's `kid` are tried
REFRESH_INTERVAL = 300  # seconds; the longest time between two fetches of the JWKS
MIN_REFRESH_INTERVAL = 30  # seconds; the shortest time after a successful fetch, and the longest retry delay
FETCH_TIMEOUT = 5  # seconds for the whole response, and for each read from the socket


@asynccontextmanager
async def open_verifier(settings: Settings) -> AsyncIterator["TokenVerifier"]:
    """Yield the token verifier for these settings. With a JWKS, a background task refreshes its keys."""
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
    """A verifier of tokens that are signed with `AUTH_SECRET`. It caches verified tokens until they expire."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cache: dict[bytes, tuple[str, float]] = {}  # by digest of a token: its user, and when it expires
        self._digests: dict[str, list[bytes]] = {}  # the cache's keys by user, the least recently verified first

    def authenticate(self, headers: list[str]) -> str:
        """Return the user whose token is in the request's Authorization headers.

        Raises HTTPException 401 when the token is missing or not valid, and HTTPException 503 when the
        issuer's keys have not been fetched yet.
        """
        if not headers:
            raise HTTPException(401, "A bearer token is required.", {"WWW-Authenticate": "Bearer"})
        scheme, _, token = headers[0].partition(" ")
        if len(headers) > 1 or scheme.lower() != "bearer":
            raise InvalidToken("NotOneBearerToken")
        token = token.strip()  # otherwise one token with different whitespace would fill the cache
        digest = hashlib.blake2b(token.encode(), digest_size=16).digest()
        user, expires_at = self._cache.get(digest, ("", 0.0))
        if time.time() >= expires_at:
            user, expires_at = self._verify(token)
            self._cache_token(digest, user, expires_at)
        return user

    def _cache_token(self, digest: bytes, user: str, expires_at: float) -> None:
        """Add a verified token to the cache.

        When the user already has CACHE_SIZE_PER_USER tokens in it, the oldest of them is evicted. When the
        whole cache is full, all tokens of the user who was verified least recently are evicted.
        """
        digests = self._digests.pop(user, [])
        if digest not in digests:
            digests.append(digest)
        if len(digests) > CACHE_SIZE_PER_USER:
            del self._cache[digests.pop(0)]
        self._digests[user] = digests
        self._cache[digest] = user, expires_at
        if len(self._cache) > CACHE_SIZE:
            for evicted in self._digests.pop(next(iter(self._digests))):
                del self._cache[evicted]

    def _verify(self, token: str) -> tuple[str, int]:
        """Return the token's user, and when it expires (Unix time). Raises InvalidToken when it is not valid."""
        reason = "UnknownKey"
        for key, algorithm in self._keys_for(token):
            try:
                return self._decode(token, key, algorithm)
            except jwt.PyJWTError as error:  # its message may quote a claim, so only its class is logged
                # Of several keys with the token's `kid`, only one can have signed it. Its reason is the right one.
                if reason in ("UnknownKey", "InvalidSignatureError"):
                    reason = type(error).__name__
        raise InvalidToken(reason)

    def _decode(self, token: str, key: Any, algorithm: str) -> tuple[str, int]:
        """Return the user and the expiry of a token. Raises PyJWTError unless it is valid and signed with this key."""
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=self._settings.auth_issuer or None,
            audience=self._settings.auth_audience or None,
            leeway=10,  # seconds by which the clocks of issuer and service may differ
            options={
                "require": ["exp", "sub"],
                "verify_aud": bool(self._settings.auth_audience),  # PyJWT rejects an `aud` when none is configured
                "enforce_minimum_key_length": True,
            },
        )
        if not re.fullmatch(USER_ID_PATTERN, claims["sub"]) or len(claims["sub"]) > 128:
            raise jwt.exceptions.InvalidSubjectError
        return claims["sub"], int(claims["exp"])

    def _keys_for(self, _token: str) -> list[tuple[Any, str]]:
        """Return the keys that may have signed the token, each with its algorithm. Here it is always AUTH_SECRET."""
        return [(self._settings.auth_secret.get_secret_value(), "HS256")]


class JWKSVerifier(TokenVerifier):
    """A verifier of tokens that are signed with the keys published at `AUTH_JWKS_URL`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._keys: Keys = {}
        self._jwks: object = None  # the document that the keys were read from
        self._unknown_kid = asyncio.Event()

    def _keys_for(self, token: str) -> list[tuple[Any, str]]:
        """Return the keys with the token's `kid`.

        Raises HTTPException 503 when no keys have been fetched yet, and InvalidToken when the token has no header.
        """
        if not self._keys:
            raise HTTPException(503, "The keys of the token issuer are not available yet.", {"Retry-After": "1"})
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError as error:
            raise InvalidToken(type(error).__name__) from None
        if kid not in self._keys:
            self._unknown_kid.set()
        return [(key, key.algorithm_name) for key in self._keys.get(kid, [])]

    async def refresh_keys(self) -> None:
        """Fetch the keys now and at intervals, until cancelled. When a fetch fails, the previous keys stay in use."""
        delay = 0.5
        while True:
            try:
                self._replace_keys(*await asyncio.to_thread(self._fetch_keys))
            except Exception as error:  # no response of the issuer may end this task
                logger.warning("The keys at AUTH_JWKS_URL cannot be read: %s", " ".join(str(error).split()))
                delay = min(2 * delay, MIN_REFRESH_INTERVAL)
                await asyncio.sleep(delay)
            else:
                delay = 0.5
                self._unknown_kid.clear()
                await asyncio.sleep(MIN_REFRESH_INTERVAL)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._unknown_kid.wait(), REFRESH_INTERVAL - MIN_REFRESH_INTERVAL)

    def _fetch_keys(self) -> tuple[object, Keys]:
        """Return the issuer's JWKS, and the keys in it. Call this in a thread, because parsing many keys takes long.

        Raises what `_fetch_jwks` raises, and ValueError when the JWKS has no key that can be used.
        """
        jwks = self._fetch_jwks()
        if jwks == self._jwks:
            return jwks, self._keys
        keys: Keys = {}
        for jwk in jwks.get("keys", []):
            if (key := _parse_key(jwk)) and len(keys.setdefault(key.key_id, [])) < MAX_KEYS_PER_KID:
                keys[key.key_id].append(key)
        if not keys:
            raise ValueError("it has no key for " + ", ".join(ALGORITHMS))
        return jwks, keys

    def _fetch_jwks(self) -> Any:
        """Return the document at AUTH_JWKS_URL.

        Raises OSError or http.client.HTTPException when it cannot be fetched, and ValueError when it is not
        JSON, too large or too slow.
        """
        deadline, body = time.monotonic() + FETCH_TIMEOUT, b""
        opener = urllib.request.build_opener(_SameHostRedirects)
        try:
            # The settings allow only http and https.
            with opener.open(self._settings.auth_jwks_url, timeout=FETCH_TIMEOUT) as response:
                while part := response.read1():
                    body += part
                    # A slow response would delay the service's shutdown, which waits for this thread.
                    if len(body) > 1024 * 1024 or time.monotonic() > deadline:
                        raise ValueError("the response is too large or too slow")
        except urllib.error.HTTPError as error:
            error.close()  # it is the response too, and keeps the connection open
            raise
        return json.loads(body)

    def _replace_keys(self, jwks: object, keys: Keys) -> None:
        """Use these keys from now on. If they are new, empty the cache."""
        if keys is not self._keys:
            self._keys, self._jwks = keys, jwks
            self._cache.clear()  # a token that is signed with a removed key must no longer be accepted
            self._digests.clear()


class _SameHostRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect handler that stays on the host from the settings, and never goes from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        same_origin = (new.scheme, new.netloc) == (old.scheme, old.netloc)
        if not same_origin and (new.scheme, new.hostname) != ("https", old.hostname):
            raise ValueError("it redirects to another host, or away from https")
        fp.close()  # otherwise urllib reads the whole body, which may be endless
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _parse_key(jwk: Any) -> jwt.PyJWK | None:
    """Return the key in an entry of a JWKS (RFC 7517, section 4), or None if it cannot verify tokens."""
    try:
        # A private key (with the member `d`) is not accepted, because anybody can sign with a published one.
        if "d" in jwk or (jwk.get("use") or "sig") != "sig" or "verify" not in (jwk.get("key_ops") or ["verify"]):
            return None
        key = jwt.PyJWK(jwk)
    except Exception:  # a malformed entry must not make the other keys unusable
        return None
    return key if key.algorithm_name in ALGORITHMS and isinstance(key.key_id, str | None) else None


class InvalidToken(HTTPException):
    """401 for a token that is not valid. `reason` is the kind of error, for the log only. It contains no claim."""

    def __init__(self, reason: str) -> None:
        super().__init__(401, "The token is not valid.", {"WWW-Authenticate": 'Bearer error="invalid_token"'})
        self.reason = reason


class OwnerMiddleware:
    """Middleware that passes on a request under /api only if it has a token of the user in its path.

    It wraps all routes, so that no endpoint can be added without it, and it runs before any other part
    of the request is validated. A missing or invalid token gets 401. A valid token of another user gets
    404, as if the user in the path did not exist.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond with 401, 404 or 503."""
        if scope["type"] == "http" and (path := get_route_path(scope)).startswith("/api/"):
            request = Request(scope)
            try:
                user = scope["app"].state.verifier.authenticate(request.headers.getlist("authorization"))
                if user != path.split("/")[2]:
                    logger.info("[%s] The subject of the token is not the user_id", errors.describe_request(scope))
                    raise errors.not_found()
            except HTTPException as error:
                if isinstance(error, InvalidToken):
                    logger.info("[%s] Token rejected: %s", errors.describe_request(scope), error.reason)
                response = await errors.handle_http_exception(request, error)
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)
