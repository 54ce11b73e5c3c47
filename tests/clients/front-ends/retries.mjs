import assert from 'node:assert/strict'
import { api } from './api.js'
import { faults, listTasks, realFetch, state, user } from './setup.mjs'

const params = { path: { user_id: user } }
const unavailable = async () => new Response(null, { status: 503, headers: { 'Retry-After': '0' } })
const loseResponse = async request => {
  assert.equal((await realFetch(request)).status, 201)
  throw new TypeError('fetch failed')
}
const requests = async send => {
  state.requests = 0
  const outcome = await send().then(({ response }) => response.status, error => error.message)
  return [outcome, state.requests]
}
const list = () => api.GET('/api/{user_id}/tasks', { params })
const create = header => () =>
  api.POST('/api/{user_id}/tasks', { params: { ...params, header }, body: { title: 'Buy milk' } })

faults.push(unavailable, loseResponse)
assert.deepEqual(await requests(create({ 'idempotency-key': '1' })), [201, 3])
assert.equal((await listTasks()).length, 1)

// Without a key, a repeated create would make a second task.
faults.push(loseResponse)
assert.deepEqual(await requests(create()), ['fetch failed', 1])
assert.equal((await listTasks()).length, 2)

faults.push(unavailable, unavailable, unavailable, unavailable)
assert.deepEqual(await requests(list), [503, 4])

const programmingError = async () => {
  throw new RangeError('wrong')
}
faults.push(programmingError)
assert.deepEqual(await requests(list), ['wrong', 1])

console.log('PASSED')
