// Pull, push and the conflict rule between an RxDB collection and the service. README.md explains them.
import { deepEqual, defaultConflictHandler, type RxCollection, type RxConflictHandler } from 'rxdb'
import type { RxReplicationWriteToMasterRow, WithDeleted } from 'rxdb'
import { FIELDS, type Task } from './task.ts'

type Copy = WithDeleted<Task>
type Fields = Partial<Task>

const differing = (a: Fields, b: Fields) => FIELDS.filter((name) => !deepEqual(a[name], b[name]))
const pick = (task: Task, names: readonly (keyof Task)[]): Fields => Object.fromEntries(names.map((name) => [name, task[name]]))
// What this device sent and has no response to. It tells the device's own writes from those of other devices.
const attempts = (id: string): Partial<Copy>[] => JSON.parse(localStorage.getItem(`sent ${id}`) ?? '[]')

export function createSync(userUrl: string, notify: (text: string) => Promise<unknown>) {
  const settled = new Set<string>() // tasks whose last write was accepted, or rejected, as a whole

  async function send(method: string, path: string, headers: HeadersInit = {}, fields?: Fields) {
    const body = fields ? { body: JSON.stringify(fields) } : {}
    const response = await fetch(userUrl + path, { method, headers: { 'Content-Type': 'application/json', ...headers }, ...body })
    if (response.ok || [404, 410, 412, 422].includes(response.status)) return response
    throw new Error(`${method} ${path}: status ${response.status}`) // RxDB tries again
  }

  async function pull(tasks: RxCollection<Task>, checkpoint?: { cursor: string }) {
    const found = new Map<string, Copy>()
    let page = { changes: [] as (Task & { deleted_at: string | null })[], cursor: checkpoint?.cursor ?? '', more: true }
    while (page.more) {
      const response = await send('GET', page.cursor ? `/changes?since=${page.cursor}` : '/changes')
      const expired = response.status === 410
      page = expired ? { changes: [], cursor: '', more: true } : await response.json()
      // Begin again: delete what is not listed any more. RxDB spares a task with a change that is not sent yet.
      if (expired) for (const task of await tasks.find().exec()) found.set(task.id, { ...task.toMutableJSON(), _deleted: true })
      for (const { deleted_at, ...task } of page.changes) found.set(task.id, { ...task, _deleted: deleted_at !== null })
    }
    return { documents: [...found.values()], checkpoint: { cursor: page.cursor } }
  }

  // Send what differs between `known` and `mine`. Return the task as the server has it, which RxDB gives to `resolve`.
  async function push({ assumedMasterState: known, newDocumentState: mine }: RxReplicationWriteToMasterRow<Task>): Promise<Copy[]> {
    const [path, key] = [`/tasks/${mine.id}`, `sent ${mine.id}`]
    if (deepEqual(known, mine)) return localStorage.removeItem(key), []
    const ifMatch = { 'If-Match': `"${known?.version ?? 0}"` }
    const changes = pick(mine, differing(mine, known ?? {}))
    const attempt = { ...changes, _deleted: mine._deleted }
    const earlier = attempts(mine.id).filter((other) => !deepEqual(other, attempt))
    localStorage.setItem(key, JSON.stringify([...earlier, attempt]))
    const create = () => send('PUT', path, { 'If-None-Match': '*' }, pick(mine, FIELDS))
    let response = await (mine._deleted ? send('DELETE', path, ifMatch) : !known ? create()
      : known._deleted ? send('POST', `${path}/restore`) : send('PATCH', path, ifMatch, changes))
    const merge = response.url.endsWith('/restore') || response.headers.has('Idempotent-Replayed')
    if (response.status === 404 && merge) response = await create() // it is not even kept as deleted
    if (response.status === 422) await notify(`“${mine.title}” was rejected. ${(await response.json()).detail}`)
    if (response.status === 422 || (response.ok && !merge)) settled.add(mine.id)
    const deleted = response.ok && mine._deleted
    if (response.status === 422 || response.status === 412) response = await send('GET', path)
    if (response.ok) return [{ ...(await response.json()), _deleted: deleted }]
    return [{ ...(known ?? { ...mine, ...earlier[0] }), _deleted: true }]
  }

  const conflictHandler: RxConflictHandler<Task> = {
    isEqual: defaultConflictHandler.isEqual,
    async resolve({ assumedMasterState: known, realMasterState: theirs, newDocumentState: mine }) {
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
      if (mine._deleted) return theirs
      if (theirs._deleted && !deletedHere) await notify(`“${mine.title}” was deleted by another device. Your change has restored it.`)
      for (const name of replaced) await notify(`“${mine.title}”: your ${name} replaces ${JSON.stringify(theirs[name])} of another device.`)
      return { ...theirs, ...pick(mine, edited), _deleted: false }
    },
  }
  return { pull, push, conflictHandler }
}
