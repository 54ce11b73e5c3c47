// Pull, push and the conflict rule between an RxDB collection and the service. README.md explains them.
import { deepEqual, defaultConflictHandler, type RxCollection, type RxConflictHandlerInput } from 'rxdb'
import type { RxReplicationWriteToMasterRow, WithDeleted } from 'rxdb'
import { FIELDS, type Task } from './task.ts'

type Page = { changes: (Task & { deleted_at: string | null })[]; cursor: string; more: boolean }

const differing = (a: Partial<Task>, b: Partial<Task>) => FIELDS.filter((name) => !deepEqual(a[name], b[name]))
const pick = (task: Task, names: readonly (keyof Task)[]) => Object.fromEntries(names.map((name) => [name, task[name]]))
// The writes that may have been executed although no response arrived: they are not changes of another device.
const attempts = (id: string): Partial<WithDeleted<Task>>[] => JSON.parse(localStorage.getItem(`sent ${id}`) ?? '[]')

export function createSync(userUrl: string, notify: (text: string) => Promise<unknown>) {
  const settled = new Set<string>() // ids of tasks whose last write was accepted or rejected as a whole

  async function send(method: string, path: string, headers: HeadersInit = {}, fields?: object) {
    const init = { method, headers: { 'Content-Type': 'application/json', ...headers } }
    const response = await fetch(userUrl + path, fields ? { ...init, body: JSON.stringify(fields) } : init)
    if (response.ok || [404, 410, 412, 422].includes(response.status)) return response
    throw new Error(`${method} ${path}: status ${response.status}`) // RxDB tries again
  }

  async function pull(tasks: RxCollection<Task>, checkpoint?: { cursor: string }) {
    const found = new Map<string, WithDeleted<Task>>()
    let page: Page = { changes: [], cursor: checkpoint?.cursor ?? '', more: true }
    while (page.more) {
      const response = await send('GET', page.cursor ? `/changes?since=${page.cursor}` : '/changes')
      const expired = response.status === 410
      page = expired ? { changes: [], cursor: '', more: true } : await response.json()
      // Delete what will not be listed again. RxDB spares a task with a change that is not sent yet.
      const copies = expired ? await tasks.find().exec() : []
      for (const copy of copies) found.set(copy.id, { ...copy.toMutableJSON(), _deleted: true })
      for (const { deleted_at, ...task } of page.changes) found.set(task.id, { ...task, _deleted: deleted_at !== null })
    }
    return { documents: [...found.values()], checkpoint: { cursor: page.cursor } }
  }

  // Send what differs between `known` and `mine`. Return the task as the server has it: RxDB passes it to `resolve`.
  async function push({ assumedMasterState: known, newDocumentState: mine }: RxReplicationWriteToMasterRow<Task>) {
    const path = `/tasks/${mine.id}`
    if (deepEqual(known, mine)) {
      localStorage.removeItem(`sent ${mine.id}`)
      return []
    }
    const changes = pick(mine, differing(mine, known ?? {}))
    const attempt = { ...changes, _deleted: mine._deleted }
    const earlier = attempts(mine.id).filter((other) => !deepEqual(other, attempt))
    localStorage.setItem(`sent ${mine.id}`, JSON.stringify([...earlier, attempt]))
    const ifMatch = { 'If-Match': `"${known?.version ?? 0}"` }
    const create = () => send('PUT', path, { 'If-None-Match': '*' }, pick(mine, FIELDS))
    let response = await (mine._deleted ? send('DELETE', path, ifMatch) : !known ? create()
      : known._deleted ? send('POST', `${path}/restore`) : send('PATCH', path, ifMatch, changes))
    const merge = response.url.endsWith('/restore') || response.headers.has('Idempotent-Replayed')
    if (merge && response.status === 404) response = await create() // its deletion is not kept any more
    if (response.status === 422) await notify(`“${mine.title}” was rejected. ${(await response.json()).detail}`)
    if (response.status === 422 || (response.ok && !merge)) settled.add(mine.id)
    const _deleted = response.ok && mine._deleted
    if (response.status === 422 || response.status === 412) response = await send('GET', path)
    if (response.ok) return [{ ...(await response.json()), _deleted }]
    return [{ ...(known ?? { ...mine, ...earlier[0] }), _deleted: true }]
  }

  async function resolve(states: RxConflictHandlerInput<Task>) {
    const { assumedMasterState: known, realMasterState: theirs, newDocumentState: mine } = states
    if (settled.delete(mine.id)) return theirs
    const own = attempts(mine.id)
    const base = known ?? own[0] ?? {}
    const edited = differing(mine, base)
    const foreign = differing(theirs, base).filter((name) => !own.some((sent) => deepEqual(sent[name], theirs[name])))
    const replaced = edited.filter((name) => foreign.includes(name) && !deepEqual(mine[name], theirs[name]))
    const deletedHere = own.some((sent) => sent._deleted)
    if (theirs._deleted && (mine._deleted || !(edited.length || deletedHere))) return theirs
    if (mine._deleted && !foreign.length) return { ...theirs, _deleted: true }
    if (mine._deleted) await notify(`“${theirs.title}” was not deleted: another device has changed it.`)
    if (theirs._deleted && !deletedHere) await notify(`“${mine.title}” was deleted. Your edit restores it.`)
    for (const name of replaced) await notify(`“${mine.title}”: your ${name} replaces ${JSON.stringify(theirs[name])}`)
    return { ...theirs, ...pick(mine, edited), _deleted: false }
  }
  return { pull, push, conflictHandler: { ...defaultConflictHandler, resolve } }
}
