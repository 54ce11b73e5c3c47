import assert from 'node:assert/strict'
import { api } from './api.js'
import { forgetToken } from './send.js'
import { state, tokens, user } from './setup.mjs'

const { EXPIRED: expired, VALID: valid } = process.env
const params = { path: { user_id: user } }
const statuses = async requests => (await Promise.all(requests)).map(({ response }) => response.status)
const list = () => api.GET('/api/{user_id}/tasks', { params })

// Concurrent requests share a token, and share the one that replaces it.
tokens.push(expired, valid)
assert.deepEqual(await statuses([list(), list(), list()]), [200, 200, 200])
assert.deepEqual(await statuses([list()]), [200])
assert.equal(state.tokenRequests, 2)

// The body is sent again with the new token.
forgetToken()
tokens.push(expired, valid)
const { data } = await api.POST('/api/{user_id}/tasks', { params, body: { title: 'Buy milk' } })
assert.equal(data.title, 'Buy milk')

// A token is replaced once. After that, the response is the 401.
forgetToken()
tokens.push(expired, expired)
state.requests = 0
assert.deepEqual(await statuses([list()]), [401])
assert.equal(state.requests, 2)

// Without a token there is an error, and the next request asks for a token again.
forgetToken()
await assert.rejects(list(), { message: 'Please sign in again.' })
state.tokenStatus = 500
await assert.rejects(list(), { message: 'The sign-in cannot be checked at the moment.' })
tokens.push(valid)
assert.deepEqual(await statuses([list()]), [200])

console.log('PASSED')
