// lib/auth.mjs
import { betterAuth } from 'better-auth'
import { jwt } from 'better-auth/plugins/jwt'
import { PostgresDialect } from 'kysely'
import pg from 'pg'

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL })

export const auth = betterAuth({
  // A schema of its own keeps its tables apart from those of the service.
  database: { dialect: new PostgresDialect({ pool }), type: 'postgres', schemaName: 'auth' },
  emailAndPassword: { enabled: true },
  plugins: [jwt()],
})
