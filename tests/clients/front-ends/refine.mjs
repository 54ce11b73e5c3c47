import assert from 'node:assert/strict'
import { createDataProvider } from '@refinedev/rest'
import simpleRest from '@refinedev/simple-rest'
import { dataProvider } from './refine.js'
import { createTask, tasksURL } from './setup.mjs'

const url = tasksURL.replace('/tasks', '')
const resource = 'tasks'
for (let number = 1; number <= 25; number += 1) await createTask(`Task ${String(number).padStart(2, '0')}`)
const titles = ({ data }) => data.map(({ title }) => title)
const simple = simpleRest(url)
const ascending = [{ field: 'title', order: 'asc' }]

// Pages in any order, with both packages.
for (const provider of [dataProvider, { ...simple, getList: dataProvider.getList }]) {
  const list = (currentPage, rest) =>
    provider.getList({ resource, pagination: { currentPage, pageSize: 10 }, sorters: ascending, ...rest })
  const third = await list(3)
  assert.deepEqual([titles(third)[4], third.data.length, third.total], ['Task 25', 5, 25])
  assert.equal(titles(await list(1, { sorters: [{ field: 'title', order: 'desc' }] }))[0], 'Task 25')
  const tagged = await createTask('Tagged', { tags: ['home', 'garden'] })
  const filters = [{ field: 'tag', operator: 'eq', value: ['home', 'garden'] }]
  assert.deepEqual((await list(1, { filters })).data, [tagged])
  assert.throws(() => list(1, { filters: [{ field: 'title', operator: 'contains', value: 'a' }] }), /contains/)
  assert.equal((await provider.getList({ resource })).data.length, 10)

  const { data: created } = await provider.create({ resource, variables: { title: 'Buy milk' } })
  const { data: one } = await provider.getOne({ resource, id: created.id })
  assert.deepEqual(one, created)
  const update = { resource, id: one.id, variables: { title: 'Buy oat milk' } }
  assert.equal((await provider.update(update)).data.title, 'Buy oat milk')
  const meta = { headers: { 'If-Match': `"${one.version}"` } }
  await assert.rejects(provider.update({ ...update, meta }), { statusCode: 412 })
  const ids = [one.id, tagged.id]
  assert.deepEqual(titles(await provider.getMany({ resource, ids })).sort(), ['Buy oat milk', 'Tagged'])
  for (const id of ids) await provider.deleteOne({ resource, id })
  await assert.rejects(provider.getOne({ resource, id: one.id }), { statusCode: 404 })
}

// Errors.
await assert.rejects(dataProvider.create({ resource, variables: { title: '' } }), {
  message: 'title: String should have at least 1 character.',
  statusCode: 422,
  errors: { title: 'String should have at least 1 character' },
})
await assert.rejects(simple.create({ resource, variables: { title: '' } }), { statusCode: 422, message: undefined })

// What the packages do by themselves.
const { dataProvider: rest } = createDataProvider(url)
const missing = await rest.getOne({ resource, id: crypto.randomUUID() })
assert.equal(missing.data.detail, 'There is no such task.')
assert.equal(rest.getMany, undefined)
await assert.rejects(simple.getList({ resource, pagination: { currentPage: 2 } }), { statusCode: 422 })

console.log('PASSED')
