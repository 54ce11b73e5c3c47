"""Who is asking: the `sub` of a signed token (JWT, RFC 7519), sent as a bearer token (RFC 6750).

There are two modes, chosen once at start-up. With `AUTH_JWKS_URL` the issuer signs with keys of its
own, whose public halves it shows there; with `AUTH_SECRET` both sides share one. The algorithms of
one mode are never taken in the other.
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

LEEWAY = 10  # seconds that the clocks of issuer and service may differ by
REMEMBERED = 5000  # verified tokens, at some 250 bytes each

REFRESH = 300  # seconds between two looks at the keys of the issuer
REFRESH_EARLY = 30  # and at least these, also when a token names a key that is not known
FETCH_TIMEOUT = 5  # seconds that the issuer may be silent for
MAX_KEYS_SIZE = 1024 * 1024  # bytes


class SharedSecret:
    """The one key of `AUTH_SECRET`."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def of(self, _token: str) -> tuple[Any, list[str]]:
        """Return the key that must have signed the token, and the algorithms it is for."""
        return self._secret, ["HS256"]


class KeySet:
    """The keys that an issuer shows at a URL (RFC 7517), looked up in the background."""

    ALGORITHMS = ("EdDSA", "RS256", "ES256")

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._shown: object = None
        self._unknown_key = asyncio.Event()

    def of(self, token: str) -> tuple[Any, list[str]]:
        """Return the key that must have signed the token, and the algorithms it is for.

        Raises jwt.InvalidTokenError when the issuer shows no such key, and HTTPException 503
        while it is not known which keys it shows.
        """
        if not self._keys:
            raise HTTPException(503, "The keys of the token issuer are not known yet.", {"Retry-After": "1"})
        key = self._keys.get(jwt.get_unverified_header(token).get("kid"))
        if key is None:
            self._unknown_key.set()
            raise jwt.InvalidTokenError
        return key, [key.algorithm_name]

    async def keep_fresh(self, tokens: "Tokens") -> None:
        """Look the keys up now and again, for ever. While that fails, the last good ones serve on."""
        pause = 1.0
        while True:
            try:
                self._take(await asyncio.to_thread(self._fetch), tokens)
            except Exception as error:  # whatever the issuer does or shows, this must go on
                logger.warning("The keys at AUTH_JWKS_URL cannot be read: %s", " ".join(str(error).split()))
                await asyncio.sleep(pause)
                pause = min(2 * pause, REFRESH_EARLY)
                continue
            pause = 1.0
            self._unknown_key.clear()
            await asyncio.sleep(REFRESH_EARLY)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._unknown_key.wait(), REFRESH - REFRESH_EARLY)

    def _take(self, shown: Any, tokens: "Tokens") -> None:
        usable = [key for key in jwt.PyJWKSet.from_dict(shown) if key.algorithm_name in self.ALGORITHMS]
        if not usable:
            raise ValueError("there is no key for " + ", ".join(self.ALGORITHMS))
        if shown != self._shown:
            self._keys, self._shown = {key.key_id: key for key in usable}, shown
            tokens.forget()  # a key that is shown no more may have been stolen

    def _fetch(self) -> Any:
        give_up = time.monotonic() + 2 * FETCH_TIMEOUT
        body = b""
        with urllib.request.urlopen(self._url, timeout=FETCH_TIMEOUT) as answer:  # noqa: S310  # http(s), by Settings
            while part := answer.read1(65536):
                body += part
                if len(body) > MAX_KEYS_SIZE or time.monotonic() > give_up:
                    raise ValueError("the answer is too long or takes too long")
        return json.loads(body)


class Tokens:
    """Tells whose token a request carries."""

    def __init__(self, keys: SharedSecret | KeySet, *, issuer: str, audience: str) -> None:
        """Take tokens signed with `keys`; of this issuer, for this audience, where not empty."""
        self._keys = keys
        self._issuer = issuer or None
        self._audience = audience or None
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

    def forget(self) -> None:
        """Verify every token anew."""
        self._verified.clear()

    def _verify(self, token: str) -> tuple[str, float]:
        """Return whose token it is, and when it expires, in seconds since 1970."""
        try:
            key, algorithms = self._keys.of(token)
            claims = jwt.decode(
                token,
                key,
                algorithms=algorithms,
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY,
                options={
                    "require": ["exp", "sub"],
                    "verify_iss": self._issuer is not None,
                    "verify_aud": self._audience is not None,
                    "enforce_minimum_key_length": True,
                },
            )
        except jwt.PyJWTError:  # whose text may hold a claim: it is neither told nor logged
            raise _refused() from None
        if not re.fullmatch(USER_ID, claims["sub"]) or len(claims["sub"]) > 128:
            raise _refused()
        return claims["sub"], min(int(claims["exp"]), 2**40)


def _refused() -> HTTPException:
    return HTTPException(401, "The token is not valid.", {"WWW-Authenticate": 'Bearer error="invalid_token"'})


@asynccontextmanager
async def verifier(settings: Settings) -> AsyncIterator[Tokens]:
    """Yield what verifies tokens as the settings say, and keep its keys fresh meanwhile."""
    claims = {"issuer": settings.auth_issuer, "audience": settings.auth_audience}
    if not settings.auth_jwks_url:
        yield Tokens(SharedSecret(settings.auth_secret.get_secret_value()), **claims)
        return
    keys = KeySet(settings.auth_jwks_url)
    tokens = Tokens(keys, **claims)
    refresh = asyncio.create_task(keys.keep_fresh(tokens))
    try:
        yield tokens
    finally:
        refresh.cancel()
