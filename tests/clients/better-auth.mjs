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

// The port must be known before the auth object is made: baseURL is the tokens' issuer and audience.
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
  await auth.api.getJwks(); // makes the one signing key now: concurrent first requests would each make their own
  server.on("request", toNodeHandler(auth));
  console.log(`READY ${baseURL}`);
});
