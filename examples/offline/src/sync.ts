import { deepEqual, defaultConflictHandler, type RxCollection } from 'rxdb'
import { type Conflict, differing, FIELDS, type Page, pick, type State, type Task, type Write } from './task.ts'
// The writes to this version that may have been executed although no response arrived: no other device made them.
const attempts = (id: string, base = 0): Partial<State>[] => JSON.parse(localStorage[`sent ${id}`] ?? '{}')[base] ?? []

export function createSync(userUrl: string, notify: (text: string) => Promise<unknown>) {
  const settled = new Set<string>() // ids of tasks whose last write was accepted or rejected as a whole
  const news = new Map<string, State>() // the newest known state of each task that the copy may not have yet
  const learn = (task: State) => (news.get(task.id)?.version ?? 0) > task.version ? news : news.set(task.id, task)

  async function send(method: string, path: string, headers: HeadersInit = {}, fields?: object) {
    const init = { method, headers: { 'Content-Type': 'application/json', ...headers } }
    const response = await fetch(userUrl + path, fields ? { ...init, body: JSON.stringify(fields) } : init)
    if (response.ok || [404, 410, 412, 422].includes(response.status)) return response
    throw new Error(`${method} ${path}: status ${response.status}`) // RxDB tries again
  }

  async function pull(tasks: RxCollection<Task>, checkpoint?: { cursor: string }) {
    // RxDB drops a task that is pulled while it stores the result of a push: pass it again until the copy has it.
    const copies = await tasks.findByIds([...news.keys()]).exec()
    for (const [id, { _deleted, version }] of news) {
      if (_deleted ? copies.has(id) : copies.get(id)?.version !== version) continue
      if (!attempts(id, version).length) localStorage.removeItem(`sent ${id}`)
      news.delete(id)
    }
    let page: Page = { changes: [], cursor: checkpoint?.cursor ?? '', more: true }
    while (page.more) {
      const response = await send('GET', page.cursor ? `/changes?since=${page.cursor}` : '/changes')
      page = response.status === 410 ? { changes: [], cursor: '', more: true } : await response.json()
      if (!page.cursor) news.clear()
      // Delete what will not be listed again. RxDB spares a task with a change that is not sent yet.
      const expired = page.cursor ? [] : await tasks.find().exec()
      for (const copy of expired) news.set(copy.id, { ...copy.toMutableJSON(), version: 0, _deleted: true })
      for (const { deleted_at, ...task } of page.changes) learn({ ...task, _deleted: deleted_at !== null })
    }
    return { documents: [...news.values()], checkpoint: { cursor: page.cursor } }
  }

  // Send what differs between `known` and `mine`. Return the task as the server has it: RxDB passes it to `resolve`.
  async function push({ assumedMasterState: known, newDocumentState: mine }: Write) {
    if (deepEqual(known, mine)) return []
    const path = `/tasks/${mine.id}`
    const changes = pick(mine, differing(mine, known ?? {}))
    const attempt = { ...changes, _deleted: mine._deleted }
    const earlier = attempts(mine.id, known?.version).filter((other) => !deepEqual(other, attempt))
    localStorage.setItem(`sent ${mine.id}`, JSON.stringify({ [known?.version ?? 0]: [...earlier, attempt] }))
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
    if (response.ok) return [learn({ ...(await response.json()), _deleted }).get(mine.id)!]
    // The new time tells RxDB this state and `known` apart, should `resolve` bring the task back.
    return [{ ...(known ?? { ...mine, ...earlier[0] }), updated_at: new Date().toISOString(), _deleted: true }]
  }

  async function resolve({ assumedMasterState: known, realMasterState: theirs, newDocumentState: mine }: Conflict) {
    if (settled.delete(mine.id)) return theirs
    const own = attempts(mine.id, known?.version)
    const base = known ?? own[0] ?? {}
    // A field that was changed, sent and changed back is edited too: the server may have the value that was sent.
    const statesWith = (name: keyof Task) => [base, ...own.filter((sent) => name in sent)]
    const edited = FIELDS.filter((name) => statesWith(name).some((state) => !deepEqual(state[name], mine[name])))
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
