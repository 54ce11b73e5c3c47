// The process runs in the time zone TZ, and starts others in other zones.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { allDay, dayOf, dueDay, dueToday, overdue, startOfDay } from './dates.js'
import { createTask, listTasks } from './setup.mjs'

const zone = Intl.DateTimeFormat().resolvedOptions().timeZone
assert.equal(zone, process.env.TZ)
const MINUTE = 60_000

// Every day of 2026, which has all changes of daylight saving time.
for (let day = new Date(2026, 0, 1); day.getFullYear() === 2026; day = startOfDay(day, 1)) {
  const text = dayOf(day)
  const task = allDay(text, { color: 'red' })
  assert.deepEqual(task.extra, { color: 'red', due_zone: zone })
  const end = Date.parse(task.due_date)
  assert.equal(dayOf(new Date(end)), text)
  assert.notEqual(dayOf(new Date(end + 1)), text)
  assert.equal(dueDay(task), text)
  const lastMinute = new Date(end - MINUTE)
  assert.equal(overdue(lastMinute).matches(task), false)
  assert.equal(dueToday(lastMinute).matches(task), true)
  assert.equal(overdue(new Date(end + 1)).matches(task), true)
  assert.equal(dueToday(new Date(end + 1)).matches(task), false)
}
assert.deepEqual(allDay('', { color: 'red', due_zone: zone }), { due_date: null, extra: { color: 'red' } })
assert.equal(dueDay({ due_date: null, extra: {} }), '')

// A traveller: the day that was entered in one zone is shown in every other, and is in the query of its day.
const ZONES = ['Pacific/Pago_Pago', 'America/St_Johns', 'UTC', 'Europe/Berlin', 'Pacific/Kiritimati']
const DAYS = ['2026-03-29', '2026-10-25', '2026-11-01', '2026-12-31']
const program = `console.log(JSON.stringify(${JSON.stringify(DAYS)}.map(day => require('./dates.js').allDay(day))))`
for (const TZ of ZONES) {
  const tasks = JSON.parse(execFileSync('node', ['-e', program], { env: { ...process.env, TZ } }))
  for (const [index, task] of tasks.entries()) {
    assert.equal(dueDay(task), DAYS[index])
    const start = new Date(`${DAYS[index]}T00:00`)
    const next = startOfDay(start, 1)
    for (const now of [start, new Date(next - 1)]) {
      const { query, matches } = dueToday(now)
      assert(matches(task) && !overdue(now).matches(task))
      assert(query.due_after < task.due_date && task.due_date < query.due_before, `${TZ} ${task.due_date}`)
    }
    assert(overdue(next).matches(task) && task.due_date < overdue(next).query.due_before)
  }
}

// With the service. Borders are strict, so a task that is due at midnight belongs to the day that begins.
const today = startOfDay(new Date())
const time = milliseconds => ({ due_date: new Date(milliseconds).toISOString() })
await createTask('yesterday, timed', time(today - 1))
await createTask('midnight', time(today))
await createTask('end', time(startOfDay(today, 1) - 1))
await createTask('tomorrow', time(startOfDay(today, 1).getTime()))
await createTask('all day', allDay(dayOf(today)))
await createTask('all day, yesterday', allDay(dayOf(startOfDay(today, -1))))
const elsewhere = { due_date: `${dayOf(today)}T09:59:59.999Z`, extra: { due_zone: 'Pacific/Kiritimati' } }
await createTask('all day, elsewhere', elsewhere)
await createTask('completed', { ...time(today), completed: true })
const titles = tasks => tasks.map(({ title }) => title).sort()
const read = async ({ query, matches }) => titles((await listTasks(`?${new URLSearchParams(query)}`)).filter(matches))
assert.deepEqual(await read(dueToday()), ['all day', 'all day, elsewhere', 'end', 'midnight'])
const strict = new URLSearchParams({ due_after: today.toISOString(), due_before: startOfDay(today, 1).toISOString() })
assert(!titles(await listTasks(`?${strict}`)).some(title => ['midnight', 'tomorrow'].includes(title)))
assert.deepEqual(await read(overdue(startOfDay(today, 1))), [
  'all day', 'all day, elsewhere', 'all day, yesterday', 'end', 'midnight', 'yesterday, timed',
])

console.log('PASSED')
