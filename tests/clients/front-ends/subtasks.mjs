import assert from 'node:assert/strict'
import { group } from './subtasks.js'
import { createTask, listTasks, realFetch, tasksURL } from './setup.mjs'

const restore = id => realFetch(`${tasksURL}/${id}/restore`, { method: 'POST' })
const parent = await createTask('Move house')
const child = await createTask('Pack', { extra: { parent: parent.id } })
await createTask('Label the boxes', { extra: { parent: child.id } })
const shape = async () =>
  group(await listTasks('?sort=title')).map(({ task, subtasks }) => [task.title, subtasks.map(({ title }) => title)])
const grouped = [['Label the boxes', []], ['Move house', ['Pack']]]
assert.deepEqual(await shape(), grouped)

await realFetch(parent.url, { method: 'DELETE' })
assert.deepEqual(await shape(), [['Label the boxes', []], ['Pack', []]])
await restore(parent.id)
assert.deepEqual(await shape(), grouped)

// Deletes tasks, all or none. The service takes at most 100 ids.
const deleteAll = async ids => {
  const query = new URLSearchParams(ids.map(id => ['id', id]))
  return (await realFetch(`${tasksURL}?${query}`, { method: 'DELETE' })).status
}
const spare = Array.from({ length: 99 }, () => crypto.randomUUID())
assert.equal(await deleteAll([parent.id, child.id, ...spare]), 422)
assert.deepEqual(await shape(), grouped)
assert.equal(await deleteAll([parent.id, child.id, ...spare.slice(1)]), 200)
assert.deepEqual(await shape(), [['Label the boxes', []]])
for (const id of [parent.id, child.id]) await restore(id)
assert.deepEqual(await shape(), grouped)

// Two tasks that are each other's parent are both shown.
const [one, two] = [crypto.randomUUID(), crypto.randomUUID()]
const cycle = [{ id: one, extra: { parent: two } }, { id: two, extra: { parent: one } }]
assert.deepEqual(group(cycle).map(({ task }) => task.id), [one, two])

console.log('PASSED')
