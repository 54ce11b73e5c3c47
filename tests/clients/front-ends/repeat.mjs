import assert from 'node:assert/strict'
import { allDay, dueDay } from './dates.js'
import { complete, nextDay } from './repeat.js'
import { createTask, listTasks, realFetch } from './setup.mjs'

assert.equal(nextDay('2026-03-28', { days: 1 }), '2026-03-29')
assert.equal(nextDay('2026-12-28', { days: 7 }), '2027-01-04')
assert.equal(nextDay('2026-01-31', { months: 1, on: 31 }), '2026-02-28')
assert.equal(nextDay('2026-02-28', { months: 1, on: 31 }), '2026-03-31')
assert.equal(nextDay('2027-11-30', { months: 3, on: 30 }), '2028-02-29')
assert.equal(nextDay('2026-12-24', { months: 12, on: 24 }), '2027-12-24')

const open = () => listTasks('?completed=false')

// Concurrent completions, also by a client with an older title, create one successor.
const weekly = { ...allDay('2026-10-24', { color: 'red', repeat: { days: 7 } }) }
const task = await createTask('Water the plants', { ...weekly, priority: 'high', tags: ['home'] })
const stale = { ...task, title: 'Water the flowers' }
await Promise.all(Array.from({ length: 20 }, (_, number) => complete(number % 4 ? task : stale)))
const [successor, ...others] = await open()
assert.deepEqual(others, [])
assert.equal(dueDay(successor), '2026-10-31')
assert.deepEqual([successor.extra, successor.priority, successor.tags], [task.extra, 'high', ['home']])

// A deleted successor stays deleted.
await realFetch(successor.url, { method: 'DELETE' })
for (const copy of [task, stale]) assert.equal((await complete(copy)).completed, true)
assert.deepEqual(await open(), [])

// A time keeps its local hour when the clocks change.
const daily = { due_date: new Date('2026-10-24T18:30:00').toISOString(), extra: { repeat: { days: 1 } } }
await complete(await createTask('Feed the cat', daily))
const [cat] = await open()
assert.equal(Date.parse(cat.due_date), Date.parse('2026-10-25T18:30:00'))

// A task without a rule has no successor, and an error is not hidden.
await complete(cat)
await complete(await createTask('Once', { due_date: daily.due_date }))
assert.deepEqual((await open()).map(({ title }) => title), ['Feed the cat'])
await assert.rejects(complete({ ...task, id: crypto.randomUUID(), title: '' }), { message: /^title: / })
await assert.rejects(complete({ ...task, id: crypto.randomUUID(), extra: {} }), { message: 'There is no such task.' })

console.log('PASSED')
