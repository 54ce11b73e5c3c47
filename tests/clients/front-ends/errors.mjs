import assert from 'node:assert/strict'
import { api } from './api.js'
import { check, fieldErrors, ProblemError, sentence } from './errors.js'
import { tasksURL, user } from './setup.mjs'

const { error } = await api.POST('/api/{user_id}/tasks', {
  params: { path: { user_id: user } },
  body: { title: '', tags: ['home', ''] },
})
const title = 'String should have at least 1 character'
assert.deepEqual(fieldErrors(error), { title, tags: title })
assert.equal(sentence(error), `title: ${title}. tags 1: ${title}.`)

const missing = await fetch(`${tasksURL}/9b2e4c0f-6f0c-4a55-9a7b-0d2b6c8f1e11`)
await assert.rejects(check(missing), { message: 'There is no such task.' })
const query = await fetch(`${tasksURL}?colour=red`)
await assert.rejects(check(query), failure => {
  assert(failure instanceof ProblemError)
  assert.deepEqual(fieldErrors(failure.problem), {})
  return failure.message === 'colour: Extra inputs are not permitted.'
})
assert.equal(sentence({ detail: 'It failed.', request_id: '7' }), 'It failed. (7)')

const proxy = new Response('<h1>Bad Gateway</h1>', { status: 502, statusText: 'Bad Gateway' })
await assert.rejects(check(proxy), { message: 'Bad Gateway' })
const successful = Response.json([])
assert.equal(await check(successful), successful)

console.log('PASSED')
