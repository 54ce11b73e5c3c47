import assert from 'node:assert/strict'
import { api } from './api.js'
import { move } from './order.js'
import { createTask, listTasks, user } from './setup.mjs'

const below = limit => Math.floor(Math.random() * limit)
const byOrder = (a, b) => (a.order ?? Infinity) - (b.order ?? Infinity) || (a.id < b.id ? -1 : 1)
const sorted = list => [...list].sort((a, b) => (a.order === b.order ? (a.id < b.id ? -1 : 1) : byOrder(a, b)))
const ids = list => list.map(({ id }) => id)

// Applies a move, and checks that the sorted list has the order that the user sees.
function apply(list, from, to) {
  const expected = ids(list).toSpliced(from, 1).toSpliced(to, 0, list[from].id)
  const orders = new Map(move(list, from, to).map(({ id, order }) => [id, order]))
  for (const order of orders.values()) assert.equal(order, order | 0)
  const result = sorted(list.map(item => ({ ...item, order: orders.get(item.id) ?? item.order })))
  assert.deepEqual(ids(result), expected)
  return { result, saved: orders.size }
}

let list = sorted(Array.from({ length: 20 }, () => ({ id: crypto.randomUUID(), order: null })))
let renumbered = 0
for (let turn = 0; turn < 5000; turn += 1) {
  const { result, saved } = apply(list, below(20), below(20))
  list = result
  renumbered += saved > 1
}
assert(renumbered > 0 && renumbered < 1000, `${renumbered}`)

// The same place again and again: the gap is used up after ten moves.
list = sorted(Array.from({ length: 3 }, (_, index) => ({ id: `${index}`, order: index * 1024 })))
const saved = Array.from({ length: 11 }, () => {
  const step = apply(list, 2, 1)
  list = step.result
  return step.saved
})
assert.deepEqual(saved, [...Array(10).fill(1), 3])

// Equal numbers, null, and the ends of 32 bits.
for (const orders of [[5, 5, 5], [null, null, null], [1, null, null], [-(2 ** 31), 0, 2 ** 31 - 1]]) {
  const start = sorted(orders.map((order, index) => ({ id: `${index}`, order })))
  for (const from of [0, 1, 2]) for (const to of [0, 1, 2]) if (from !== to) apply(start, from, to)
}

// With the service.
for (let number = 0; number < 6; number += 1) await createTask(`Task ${number}`)
for (let turn = 0; turn < 40; turn += 1) {
  const before = await listTasks('?sort=order')
  const [from, to] = [below(6), below(6)]
  for (const { id, order } of move(before, from, to)) {
    const version = before.find(task => task.id === id).version
    const { error } = await api.PATCH('/api/{user_id}/tasks/{task_id}', {
      params: { path: { user_id: user, task_id: id }, header: { 'if-match': `"${version}"` } },
      body: { order },
    })
    assert.equal(error, undefined)
  }
  const expected = ids(before).toSpliced(from, 1).toSpliced(to, 0, before[from].id)
  assert.deepEqual(ids(await listTasks('?sort=order')), expected)
}

console.log('PASSED')
