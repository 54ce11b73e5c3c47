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

import jwt
from starlette.exceptions import HTTPException

from schemas import USER_ID
from settings import Settings

logger = logging.getLogger("tasks")

REMEMBERED = 5000  # verified tokens, at some 250 bytes each
REFRESH = 300  # seconds between two looks at the keys of the issuer
REFRESH_EARLY = 30  # and at least these, also when a token names a key that is not known
FETCH_TIMEOUT = 5  # seconds that the issuer may take for an answer, and be silent for


@asynccontextmanager
async def verifier(settings: Settings) -> AsyncIterator["Tokens"]:
    """Yield what verifies tokens as the settings say, and keep its keys fresh meanwhile."""
    if not settings.auth_jwks_url:
        yield Tokens(settings)
        return
    tokens = IssuerTokens(settings)
    refresh = asyncio.create_task(tokens.keep_fresh())
    try:
        yield tokens
    finally:
        refresh.cancel()


class Tokens:
    """Tells whose token a request carries. They are signed with `AUTH_SECRET`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._verified: dict[bytes, tuple[str, float]] = {}  # by digest: whose, and until when

    def user(self, headers: list[str]) -> str:
        """Return the user whose token is in the request's Authorization headers.

        Raises HTTPException: 401 when there is no token or not a good one, 503 while the keys of
        the issuer are not known yet.
        """
        if not headers:
            raise HTTPException(401, "A bearer token is required.", {"WWW-Authenticate": "Bearer"})
        scheme, _, token = headers[0].partition(" ")
        if len(headers) > 1 or scheme.lower() != "bearer":
            raise _refused()
        digest = hashlib.blake2b(token.encode(), digest_size=16).digest()
        user, until = self._verified.get(digest, ("", 0.0))
        if time.time() >= until:
            user, until = self._verify(token.strip())
            if len(self._verified) >= REMEMBERED:
                self._verified.clear()
            self._verified[digest] = user, until
        return user

    def _verify(self, token: str) -> tuple[str, int]:
        """Return whose token it is, and when it expires, in seconds since 1970."""
        try:
            key, algorithm = self._key(token)
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
        except jwt.PyJWTError:  # whose text may hold a claim: it is neither told nor logged
            raise _refused() from None
        if not re.fullmatch(USER_ID, claims["sub"]) or len(claims["sub"]) > 128:
            raise _refused()
        return claims["sub"], int(claims["exp"])

    def _key(self, _token: str) -> tuple[Any, str]:
        """Return the key that must have signed the token, and the algorithm it is for."""
        return self._settings.auth_secret.get_secret_value(), "HS256"


class IssuerTokens(Tokens):
    """The same, signed with keys that the issuer shows at `AUTH_JWKS_URL` (RFC 7517)."""

    ALGORITHMS = ("EdDSA", "RS256", "ES256")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._shown: object = None
        self._unknown_key = asyncio.Event()

    def _key(self, token: str) -> tuple[Any, str]:
        if not self._keys:
            raise HTTPException(503, "The keys of the token issuer are not known yet.", {"Retry-After": "1"})
        key = self._keys.get(jwt.get_unverified_header(token).get("kid"))
        if key is None:
            self._unknown_key.set()
            raise jwt.InvalidTokenError
        return key, key.algorithm_name

    async def keep_fresh(self) -> None:
        """Look the keys up now and again, for ever. While that fails, the last good ones serve on."""
        pause = 0.5
        while True:
            try:
                self._take(await asyncio.to_thread(self._fetch))
            except Exception as error:  # whatever the issuer does or shows, this must go on
                logger.warning("The keys at AUTH_JWKS_URL cannot be read: %s", " ".join(str(error).split()))
                pause = min(2 * pause, REFRESH_EARLY)
                await asyncio.sleep(pause)
            else:
                pause = 0.5
                self._unknown_key.clear()
                await asyncio.sleep(REFRESH_EARLY)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._unknown_key.wait(), REFRESH - REFRESH_EARLY)

    def _fetch(self) -> Any:
        give_up, body = time.monotonic() + FETCH_TIMEOUT, b""
        url = self._settings.auth_jwks_url
        with urllib.request.urlopen(url, timeout=FETCH_TIMEOUT) as answer:  # noqa: S310  # http(s), by Settings
            while part := answer.read1():
                body += part
                if len(body) > 1024 * 1024 or time.monotonic() > give_up:  # the service could not end meanwhile
                    raise ValueError("the answer is too long or takes too long")
        return json.loads(body)

    def _take(self, shown: Any) -> None:
        usable = [key for key in jwt.PyJWKSet.from_dict(shown) if key.algorithm_name in self.ALGORITHMS]
        if not usable:
            raise ValueError("there is no key for " + ", ".join(self.ALGORITHMS))
        if shown != self._shown:
            self._keys, self._shown = {key.key_id: key for key in usable}, shown
            self._verified.clear()  # a key that is shown no more may have been stolen


def _refused() -> HTTPException:
    return HTTPException(401, "The token is not valid.", {"WWW-Authenticate": 'Bearer error="invalid_token"'})
