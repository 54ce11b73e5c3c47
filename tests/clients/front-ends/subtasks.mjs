import assert from 'node:assert/strict'
import { deleteAll, group, restoreAll } from './subtasks.js'
import { createTask, listTasks, realFetch, tasksURL, user } from './setup.mjs'

const parent = await createTask('Move house')
const child = await createTask('Pack', { extra: { parent: parent.id } })
await createTask('Label the boxes', { extra: { parent: child.id } })
const shape = async () =>
  group(await listTasks('?sort=title')).map(({ task, subtasks }) => [task.title, subtasks.map(({ title }) => title)])
const grouped = [['Label the boxes', []], ['Move house', ['Pack']]]
assert.deepEqual(await shape(), grouped)

await realFetch(parent.url, { method: 'DELETE' })
assert.deepEqual(await shape(), [['Label the boxes', []], ['Pack', []]])
await restoreAll(user, [parent.id])
assert.deepEqual(await shape(), grouped)

const ids = await deleteAll(group(await listTasks('?sort=title'))[1])
assert.deepEqual(await shape(), [['Label the boxes', []]])
await restoreAll(user, ids)
assert.deepEqual(await shape(), grouped)

// More than 100 ids are rejected, and nothing is deleted.
const many = { task: parent, subtasks: Array(100).fill(child) }
await assert.rejects(deleteAll(many))
assert.equal((await listTasks()).length, 3)

// Two tasks that are each other's parent are both shown.
const [one, two] = [crypto.randomUUID(), crypto.randomUUID()]
const cycle = [{ id: one, extra: { parent: two } }, { id: two, extra: { parent: one } }]
assert.deepEqual(group(cycle).map(({ task }) => task.id), [one, two])

console.log('PASSED')
