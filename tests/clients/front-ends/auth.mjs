// Serves lib/auth.js, prints the origin, and reads the URL of the service that trusts this issuer.
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { createInterface } from 'node:readline'
import { toNodeHandler } from 'better-auth/node'

const server = createServer()
await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
const origin = `http://127.0.0.1:${server.address().port}`
writeFileSync('lib/auth.js', readFileSync('lib/auth.js', 'utf8').replaceAll('http://localhost:3000', origin))
const { auth, callFor, cleanUp } = await import('./lib/auth.js')
await auth.api.getJwks() // creates the key, because each of several concurrent first requests would create one
server.on('request', toNodeHandler(auth))
console.log(origin)

const lines = createInterface(process.stdin)
const service = await new Promise(resolve => lines.once('line', resolve))
lines.close()
const realFetch = fetch
let isAvailable = true
globalThis.fetch = async (url, init) => {
  if (!isAvailable) return new Response(null, { status: 503, headers: { 'Retry-After': '0' } })
  return realFetch(url.replace('http://127.0.0.1:8000', service), init)
}

const post = (path, body, cookie = '') => {
  const headers = { 'Content-Type': 'application/json', Origin: origin, Cookie: cookie }
  return realFetch(`${origin}/api/auth${path}`, { method: 'POST', headers, body: JSON.stringify(body) })
}
const account = { email: `${crypto.randomUUID()}@example.com`, password: 'correct horse 1' }
const signUp = await post('/sign-up/email', { ...account, name: 'Ann' })
const { user } = await signUp.json()
const cookie = signUp.headers.getSetCookie().map(one => one.split(';')[0]).join('; ')
const read = async path => (await callFor(user.id, 'GET', path)).json()

for (let ready = false; !ready; ) { // until the service has fetched the keys
  ready = await read('/tasks').then(() => true, ({ problem }) => {
    assert.equal(problem.status, 503)
    return false
  })
}
const { token } = await auth.api.signJWT({ body: { payload: { sub: user.id } } })
for (const [title, completed] of [['Open', false], ['Completed', true]]) {
  const headers = { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` }
  const body = JSON.stringify({ title, completed })
  assert.equal((await realFetch(`${service}/api/${user.id}/tasks`, { method: 'POST', headers, body })).status, 201)
}
const titles = async () => (await read('/tasks')).map(({ title }) => title).sort()

await cleanUp(user.id)
assert.deepEqual(await titles(), ['Completed', 'Open'])
const { now } = Date
Date.now = () => now() + 91 * 24 * 60 * 60 * 1000
await cleanUp(user.id)
Date.now = now
assert.deepEqual(await titles(), ['Open'])
assert.equal((await post('/sign-jwt', { payload: { sub: user.id } }, cookie)).status, 404)

// When the erasure fails, the account remains, and a second attempt erases both.
isAvailable = false
assert.equal((await post('/delete-user', {}, cookie)).ok, false)
isAvailable = true
assert.deepEqual(await titles(), ['Open'])
assert.equal((await post('/sign-in/email', account)).status, 200)
assert.equal((await post('/delete-user', {}, cookie)).status, 200)
assert.deepEqual((await read('/changes')).changes, [])
assert.equal((await post('/sign-in/email', account)).status, 401)

console.log('PASSED')
server.closeAllConnections()
server.close()
