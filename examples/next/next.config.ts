// next.config.ts
import type { NextConfig } from 'next'

const config: NextConfig = {
  // A fallback applies to paths that the app does not serve, so /api/auth stays with Better Auth.
  rewrites: async () => ({
    beforeFiles: [],
    afterFiles: [],
    fallback: [{ source: '/api/:path*', destination: `${process.env.TASKS_URL}/api/:path*` }],
  }),
}

export default config
