import { jwtClient } from 'better-auth/client/plugins'
import { createAuthClient } from 'better-auth/react'

export const authClient = createAuthClient({
  fetchOptions: {
    // The client throws when there is no response. With this one, each request returns `data` or `error`.
    customFetchImpl: (...request) =>
      fetch(...request).catch(() => Response.json({ message: 'The server cannot be reached.' }, { status: 503 })),
  },
  plugins: [jwtClient()],
})
