"""An assistant without a model: call tools of an MCP server with the SDK's client, as a test says.

It runs with the Python of examples/assistant. Its argument is a JSON object: `server` is a URL, or a program as in
`mcpServers`; `mode` is that of the SDK; and `token` or, to get one from the issuer, the `cookie` of a signed-in user.
It writes the tools as one line of JSON. Then it reads lines of a tool and its arguments, and writes each result.
"""

import asyncio
import json
import sys
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken


class Storage:
    """The OAuth client's tokens, in memory."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


def oauth(server: str, cookie: str) -> OAuthClientProvider:
    """Return the SDK's OAuth client, with a user who consents in a browser with this cookie."""
    callback: dict[str, list[str]] = {}

    async def consent(url: str) -> None:
        issuer = url.partition("/oauth2/")[0]
        headers = {"Cookie": cookie, "Origin": issuer.removesuffix("/api/auth")}
        async with httpx2.AsyncClient(headers=headers) as browser:
            page = await browser.get(url)
            consent = {"accept": True, "oauth_query": urlsplit(page.headers["Location"]).query}
            response = await browser.post(f"{issuer}/oauth2/consent", json=consent)
            callback.update(parse_qs(urlsplit(response.raise_for_status().json()["url"]).query))

    async def get_callback() -> AuthorizationCodeResult:
        return AuthorizationCodeResult(code=callback["code"][0], state=callback["state"][0], iss=callback["iss"][0])

    metadata = OAuthClientMetadata.model_validate({"redirect_uris": ["http://127.0.0.1:3000/callback"]})
    return OAuthClientProvider(server, metadata, Storage(), consent, get_callback)


async def main(server: Any, mode: str = "auto", token: str = "", cookie: str = "") -> None:
    """Write the tools, and the result of each call."""
    http = httpx2.AsyncClient(
        timeout=60,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        auth=oauth(server, cookie) if cookie else None,
    )
    over_http = isinstance(server, str)
    transport = streamable_http_client(server, http_client=http) if over_http else StdioServerParameters(**server)
    async with http, Client(transport, mode=mode, read_timeout_seconds=60) as client:
        print((await client.list_tools()).model_dump_json(by_alias=True, exclude_none=True), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            tool, arguments = json.loads(line)
            result = await client.call_tool(tool, arguments)
            print(result.model_dump_json(by_alias=True, exclude_none=True), flush=True)


asyncio.run(main(**json.loads(sys.argv[1])))
