// Calls every operation of the service, with the types that openapi-typescript generates from openapi.json.
// Fails when a response is not the expected one. The argument is the URL of the service.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import createClient from 'openapi-fetch'
import type { components, paths } from './openapi.js'

type Task = components['schemas']['Task']
type Change = components['schemas']['Change']

const api = createClient<paths>({ baseUrl: process.argv[2] })
const user_id = `user-${randomUUID()}`
const me = { path: { user_id } }

const health = await api.GET('/health')
assert.equal(health.data?.status, 'ok')
const ready = await api.GET('/health/ready')
assert.equal(ready.data?.status, 'ready')

// Only the title is required. A repeated request with the same Idempotency-Key creates no second task.
const key = randomUUID()
const create = () =>
  api.POST('/api/{user_id}/tasks', {
    params: { ...me, header: { 'idempotency-key': key } },
    body: { title: 'Buy milk', tags: ['home'] },
  })
const { data: milk } = await create()
assert(milk)
const priority: 'low' | 'medium' | 'high' = milk.priority
assert.equal(priority, 'medium')
const repeat = await create()
assert.equal(repeat.response.headers.get('Idempotent-Replayed'), 'true')
assert.equal(repeat.data?.id, milk.id)

const { data: eggs } = await api.POST('/api/{user_id}/tasks', {
  params: me,
  body: { title: 'Buy eggs', priority: 'high', due_date: '2020-01-01T00:00:00Z', order: 1, extra: { color: 'red' } },
})
assert(eggs)
assert.deepEqual(eggs.extra, { color: 'red' })
assert.equal(eggs.due_date, '2020-01-01T00:00:00.000000Z')

// A list, page by page.
const listed: Task[] = []
let cursor: string | undefined
do {
  const { data, response } = await api.GET('/api/{user_id}/tasks', {
    params: { ...me, query: { sort: '-priority', priority: ['medium', 'high'], limit: 1, total: true, cursor } },
  })
  assert(data)
  assert.equal(response.headers.get('X-Total-Count'), '2')
  listed.push(...data)
  const next = /<(.*)>/.exec(response.headers.get('Link') ?? '')?.[1]
  cursor = next && (new URL(next).searchParams.get('cursor') ?? undefined)
} while (cursor)
assert.deepEqual(listed, [eggs, milk])
const some = await api.GET('/api/{user_id}/tasks', { params: { ...me, query: { id: [milk.id, randomUUID()] } } })
assert.deepEqual(some.data, [milk])

// One task.
const taskPath = { ...me.path, task_id: milk.id }
const read = await api.GET('/api/{user_id}/tasks/{task_id}', { params: { path: taskPath } })
assert.deepEqual(read.data, milk)
const etag = `"${milk.version}"` // no need to read the task before a change
assert.equal(read.response.headers.get('ETag'), etag)
const unchanged = await api.GET('/api/{user_id}/tasks/{task_id}', {
  params: { path: taskPath, header: { 'if-none-match': etag } },
})
assert.equal(unchanged.response.status, 304)

const patched = await api.PATCH('/api/{user_id}/tasks/{task_id}', {
  params: { path: taskPath, header: { 'if-match': etag } },
  body: { description: 'Two litres' },
})
assert.equal(patched.data?.description, 'Two litres')

const conflict = await api.PUT('/api/{user_id}/tasks/{task_id}', {
  params: { path: taskPath, header: { 'if-match': etag } },
  body: { title: 'Buy oat milk' },
})
assert.equal(conflict.response.status, 412)
assert(conflict.error)
const detail: string = conflict.error.detail
assert.equal(detail, 'The task has been changed since.')

const replaced = await api.PUT('/api/{user_id}/tasks/{task_id}', {
  params: { path: taskPath },
  body: { ...milk, title: 'Buy oat milk', tags: [] }, // read-only fields are ignored
})
assert.equal(replaced.data?.description, null)

const toggled = await api.PATCH('/api/{user_id}/tasks/{task_id}/complete', { params: { path: taskPath } })
assert.equal(toggled.data?.completed, true)
const set = await api.PATCH('/api/{user_id}/tasks/{task_id}/complete', {
  params: { path: taskPath },
  body: { completed: true },
})
assert.equal(set.data?.completed_at, toggled.data.completed_at)

// A task under an id that the client made. A repeated request creates no second task.
const breadPath = { ...me.path, task_id: randomUUID() }
const put = () =>
  api.PUT('/api/{user_id}/tasks/{task_id}', {
    params: { path: breadPath, header: { 'if-none-match': '*' } },
    body: { title: 'Buy bread' },
  })
const { data: bread, response: created } = await put()
assert.equal(created.status, 201)
assert.equal(bread?.id, breadPath.task_id)
assert.equal((await put()).response.headers.get('Idempotent-Replayed'), 'true')

// A copy that follows the changes.
const copy = new Map<string, Change>()
let since: string | undefined
async function follow() {
  for (let more = true; more; ) {
    const { data } = await api.GET('/api/{user_id}/changes', { params: { ...me, query: { since, limit: 2 } } })
    assert(data)
    for (const change of data.changes) change.deleted_at ? copy.delete(change.id) : copy.set(change.id, change)
    since = data.cursor
    more = data.more
  }
}
await follow()
assert.deepEqual(new Set(copy.keys()), new Set([milk.id, eggs.id, bread.id]))
const removed = await api.DELETE('/api/{user_id}/tasks/{task_id}', { params: { path: breadPath } })
assert(removed.data && removed.data.version > bread.version)
await follow()
assert.equal(copy.has(bread.id), false)
const restored = await api.POST('/api/{user_id}/tasks/{task_id}/restore', { params: { path: breadPath } })
assert.equal(restored.data?.title, 'Buy bread')
await follow()
assert.deepEqual(copy.get(bread.id), { ...restored.data, deleted_at: null })
await api.DELETE('/api/{user_id}/tasks/{task_id}', { params: { path: breadPath } })
const late = await put()
assert.equal(late.response.status, 410)

// The summary, and operations on many tasks.
const { data: summary } = await api.GET('/api/{user_id}', { params: me })
assert.deepEqual(summary, {
  user_id, total: 2, completed: 1, pending: 1, overdue: 1, priorities: { low: 0, medium: 1, high: 1 }, tags: {},
} satisfies components['schemas']['Summary'])

const updated = await api.PATCH('/api/{user_id}/tasks', {
  params: { ...me, query: { completed: false } },
  body: { completed: true },
})
assert.equal(updated.data?.updated, 1)

const deleted = await api.DELETE('/api/{user_id}/tasks/{task_id}', { params: { path: taskPath } })
assert.equal(deleted.data?.title, 'Buy oat milk')
const cleared = await api.DELETE('/api/{user_id}/tasks', { params: { ...me, query: { completed: true } } })
assert.equal(cleared.data?.deleted, 1)

const erased = await api.DELETE('/api/{user_id}', { params: { ...me, query: { confirm: user_id } } })
assert.equal(erased.data?.deleted, 0)
const tooOld = await api.GET('/api/{user_id}/changes', { params: { ...me, query: { since } } })
assert.equal(tooOld.response.status, 410)

// Validation errors are typed too.
const { error } = await api.POST('/api/{user_id}/tasks', { params: me, body: { title: '' } })
assert(error && 'errors' in error)
assert.deepEqual(error.errors.map(({ loc }) => loc), [['body', 'title']])

// @ts-expect-error: no such priority
const wrong: Task['priority'] = 'urgent'
// @ts-expect-error: no such sort
await api.GET('/api/{user_id}/tasks', { params: { ...me, query: { sort: wrong } } })

console.log('PASSED')
