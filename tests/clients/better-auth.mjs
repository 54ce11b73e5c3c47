// A real Better Auth server on a free loopback port, for tests; all state is in memory.
// Prints "READY http://127.0.0.1:PORT" once it listens; ends on SIGTERM or when stdin closes.
import { randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { toNodeHandler } from "better-auth/node";
import { jwt } from "better-auth/plugins/jwt";

const server = createServer();
const stop = () => process.exit(0);
process.on("SIGTERM", stop);
process.stdin.on("end", stop).on("close", stop).on("error", stop).resume();

// baseURL is the issuer and the audience of the tokens, so the port must be known first.
server.listen(0, "127.0.0.1", async () => {
  const baseURL = `http://127.0.0.1:${server.address().port}`;
  const auth = betterAuth({
    baseURL,
    secret: randomBytes(32).toString("hex"),
    database: memoryAdapter({ user: [], session: [], account: [], verification: [], jwks: [] }),
    emailAndPassword: { enabled: true },
    plugins: [jwt()],
    rateLimit: { enabled: false },
    telemetry: { enabled: false },
  });
  await auth.api.getJwks(); // creates the signing key, because each of several concurrent first requests would create one
  server.on("request", toNodeHandler(auth));
  console.log(`READY ${baseURL}`);
});
