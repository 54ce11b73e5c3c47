// migrate.mjs
import { getMigrations } from 'better-auth/db/migration'
import { auth } from './lib/auth.mjs'

const { runMigrations } = await getMigrations(auth.options)
await runMigrations()
process.exit() // does not wait for idle database connections
