import { createRxDatabase, type RxCollection } from 'rxdb'
import { replicateRxCollection } from 'rxdb/plugins/replication'
import { getRxStorageDexie } from 'rxdb/plugins/storage-dexie'
import { createSync } from './sync.ts'
import { schema, type Task } from './task.ts'

export interface Message {
  id: string
  text: string
}

/** Open the user's copy in IndexedDB, and keep it in sync with the service. All tabs share it; one of them syncs. */
export async function openTasks(userUrl: string) {
  const database = await createRxDatabase<{ tasks: RxCollection<Task>; messages: RxCollection<Message> }>({
    name: `tasks-${encodeURIComponent(userUrl)}`,
    storage: getRxStorageDexie(),
  })
  // The tab that syncs may be hidden, so its messages are stored for every tab.
  const notify = (text: string) => database.messages.insert({ id: crypto.randomUUID(), text })
  const { pull, push, conflictHandler } = createSync(userUrl, notify)
  const { tasks, messages } = await database.addCollections({
    tasks: { schema, conflictHandler },
    messages: {
      schema: {
        version: 0,
        primaryKey: 'id',
        type: 'object',
        properties: { id: { type: 'string', maxLength: 36 }, text: { type: 'string' } },
      },
    },
  })
  // Mark each change, so that RxDB also sends a task that was changed and changed back: it may have skipped a pull.
  const touch = (task: Task) => void (task.updated_at = new Date().toISOString())
  tasks.preInsert(touch, false)
  tasks.preSave(touch, false)

  const replication = replicateRxCollection<Task, { cursor: string }>({
    replicationIdentifier: userUrl,
    collection: tasks,
    retryTime: 2000,
    toggleOnDocumentVisible: false, // otherwise each tab that is shown would sync, too
    pull: {
      batchSize: Number.MAX_SAFE_INTEGER, // `pull` reads all pages itself: RxDB need not ask for more
      handler: (checkpoint) => pull(tasks, checkpoint),
    },
    push: {
      batchSize: 1000, // batches are sent at the same time: one batch keeps the order of new tasks
      handler: async (rows) => {
        const states = []
        for (const row of rows) states.push(...(await push(row)))
        return states
      },
    },
  })

  // A hidden tab may be the one that syncs, so the visible tab wakes it.
  const wake = new BroadcastChannel(database.name)
  wake.onmessage = () => replication.reSync()
  const poll = () => {
    if (document.visibilityState === 'hidden') return
    replication.reSync()
    wake.postMessage('')
  }
  setInterval(poll, 2000)
  for (const event of ['online', 'focus', 'visibilitychange']) addEventListener(event, poll)

  return { tasks, messages, replication }
}
