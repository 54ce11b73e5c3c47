// A real Better Auth server as the OAuth authorization server of an MCP server, for tests; all state is in memory.
// Start it with the URL of the MCP server. It prints "READY http://127.0.0.1:PORT" once it listens, and ends on SIGTERM
// or when stdin closes. GET /sign?{JSON} responds with a token with these claims, so that tests can have invalid ones.
import { randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { mcp } from "@better-auth/mcp";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { toNodeHandler } from "better-auth/node";
import { jwt } from "better-auth/plugins/jwt";

const server = createServer();
const stop = () => process.exit(0);
process.on("SIGTERM", stop);
process.stdin.on("end", stop).on("close", stop).on("error", stop).resume();

const tables = [
  "user", "session", "account", "verification", "jwks", "oauthClient", "oauthResource", "oauthClientResource",
  "oauthRefreshToken", "oauthAccessToken", "oauthConsent", "oauthClientAssertion",
];

// baseURL is the issuer of the tokens, so the port must be known first.
server.listen(0, "127.0.0.1", async () => {
  const baseURL = `http://127.0.0.1:${server.address().port}`;
  const auth = betterAuth({
    baseURL,
    secret: randomBytes(32).toString("hex"),
    database: memoryAdapter(Object.fromEntries(tables.map((table) => [table, []]))),
    emailAndPassword: { enabled: true },
    plugins: [
      jwt(),
      mcp({
        resource: process.argv[2],
        loginPage: "/login",
        consentPage: "/consent",
        allowDynamicClientRegistration: true,
        allowUnauthenticatedClientRegistration: true,
      }),
    ],
    rateLimit: { enabled: false },
    telemetry: { enabled: false },
  });
  await auth.api.getJwks(); // creates the signing key, because each of several concurrent first requests would create one
  const handler = toNodeHandler(auth);
  server.on("request", async (request, response) => {
    if (!request.url.startsWith("/sign?")) return handler(request, response);
    const payload = JSON.parse(decodeURIComponent(request.url.slice("/sign?".length)));
    response.end((await auth.api.signJWT({ body: { payload } })).token);
  });
  console.log(`READY ${baseURL}`);
});
