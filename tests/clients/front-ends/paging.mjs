import assert from 'node:assert/strict'
import { QueryClient } from '@tanstack/react-query'
import { openTasks, readAll, readPage } from './paging.js'
import { createTask, tasksURL, user } from './setup.mjs'

for (let number = 1; number <= 120; number += 1) await createTask(`Task ${number}`, { completed: number > 110 })

const page = await readPage(`${tasksURL}?limit=7&total=true`)
assert.deepEqual([page.tasks.length, page.total], [7, 120])
assert.equal((await readPage(page.next)).total, 120)
const all = await readAll(`${tasksURL}?limit=50&sort=created_at`)
assert.deepEqual(all.map(({ title }) => title), Array.from({ length: 120 }, (_, index) => `Task ${index + 1}`))

const queryClient = new QueryClient()
const { pages } = await queryClient.fetchInfiniteQuery({ ...openTasks(user), pages: 9 })
assert.deepEqual(pages.map(({ tasks, total }) => [tasks.length, total]), [[50, 110], [50, 110], [10, 110]])
assert.equal(queryClient.getQueryData(openTasks('bob').queryKey), undefined) // another user sees none of them
await assert.rejects(readPage(`${tasksURL}?limit=0`), { message: /limit/ })

console.log('PASSED')
