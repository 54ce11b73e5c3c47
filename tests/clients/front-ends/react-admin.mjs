import assert from 'node:assert/strict'
import jsonServerProvider from 'ra-data-json-server'
import simpleRestProvider from 'ra-data-simple-rest'
import { dataProvider } from './react-admin.js'
import { readRange } from './range.js'
import { createTask, listTasks, tasksURL } from './setup.mjs'

const url = tasksURL.replace('/tasks', '')
for (let number = 1; number <= 25; number += 1) await createTask(`Task ${String(number).padStart(2, '0')}`)
const list = (provider, page, order = 'ASC', filter = {}) =>
  provider.getList('tasks', { pagination: { page, perPage: 10 }, sort: { field: 'title', order }, filter })
const titles = ({ data }) => data.map(({ title }) => title)

// Pages in any order.
const third = await list(dataProvider, 3)
assert.deepEqual([titles(third), third.total], [['Task 21', 'Task 22', 'Task 23', 'Task 24', 'Task 25'], 25])
assert.equal(titles(await list(dataProvider, 1, 'DESC'))[0], 'Task 25')
assert.equal(titles(await list(dataProvider, 2))[0], 'Task 11')
assert.deepEqual(titles(await list(dataProvider, 4)), [])
const tagged = await createTask('Tagged', { tags: ['home', 'garden'], completed: true })
const filtered = await list(dataProvider, 1, 'ASC', { completed: true, tag: ['home', 'garden'] })
assert.deepEqual(filtered.data, [tagged])
const byId = { filter: {}, sort: { field: 'id', order: 'ASC' } }
await assert.rejects(dataProvider.getList('tasks', byId), { message: /^sort: / })

// More than one response of the service for a page: each has at most 1,000 tasks, and at most 2 MiB.
const description = 'x'.repeat(2000)
const extra = { text: 'x'.repeat(4000) }
await Promise.all(Array.from({ length: 400 }, () => createTask('Large', { description, extra, tags: ['large'] })))
const large = await dataProvider.getList('tasks', {
  pagination: { page: 4, perPage: 100 }, sort: { field: 'title', order: 'ASC' }, filter: { tag: 'large' },
})
assert.deepEqual([large.data.length, large.total], [100, 400])

// The other methods.
const { data: created } = await dataProvider.create('tasks', { data: { title: 'Buy milk' } })
const { data: one } = await dataProvider.getOne('tasks', { id: created.id })
const update = { id: one.id, data: { ...one, title: 'Buy oat milk' }, previousData: one }
assert.equal((await dataProvider.update('tasks', update)).data.title, 'Buy oat milk')
await assert.rejects(dataProvider.update('tasks', update), { status: 412 }) // a form that was opened before the change
const ids = [one.id, tagged.id]
const many = titles(await dataProvider.getMany('tasks', { ids }))
assert.deepEqual(many.sort(), ['Buy oat milk', 'Tagged'])
await dataProvider.updateMany('tasks', { ids, data: { priority: 'low' } })
assert.deepEqual(titles(await dataProvider.getMany('tasks', { ids })).sort(), many)
assert.equal((await listTasks('?priority=low')).length, 2)
await dataProvider.delete('tasks', { id: one.id, previousData: one })
await dataProvider.deleteMany('tasks', { ids: [tagged.id] })
assert.deepEqual(titles(await dataProvider.getMany('tasks', { ids })), [])

// Errors.
const text = 'title: String should have at least 1 character.'
await assert.rejects(dataProvider.create('tasks', { data: { title: '' } }), error => {
  assert.deepEqual([error.message, error.status], [text, 422])
  return assert.deepEqual(error.body.errors, { title: text.slice(7, -1) }) === undefined
})
await assert.rejects(dataProvider.getOne('tasks', { id: one.id }), { status: 404, message: 'There is no such task.' })

// What the packages do by themselves.
for (const provider of [jsonServerProvider(url), simpleRestProvider(url)]) {
  await assert.rejects(list(provider, 1), { status: 422 })
  const change = { ids: [third.data[0].id], data: { completed: true } }
  await assert.rejects(provider.updateMany('tasks', change), { status: 422 })
  await assert.rejects(provider.create('tasks', { data: { title: '' } }), ({ body }) => Array.isArray(body.errors))
}
const simple = simpleRestProvider(url)
await assert.rejects(simple.getMany('tasks', { ids: [third.data[0].id] }), { status: 422 })
const getMany = (resource, { ids }) => readRange(`${url}/${resource}`, ids.map(id => ['id', id]), 0, ids.length)
const [last] = third.data
assert.deepEqual((await getMany('tasks', { ids: [last.id] })).data, [last])
assert.equal((await simple.update('tasks', { id: last.id, data: { ...last, title: 'Last' } })).data.title, 'Last')
assert.equal((await simple.getOne('tasks', { id: last.id })).data.title, 'Last')
await simple.delete('tasks', { id: last.id })
await assert.rejects(simple.getOne('tasks', { id: last.id }), { status: 404 })

console.log('PASSED')
