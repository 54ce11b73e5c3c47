import { deepEqual, type RxConflictHandlerInput, type RxJsonSchema } from 'rxdb'
import type { RxReplicationWriteToMasterRow, WithDeleted } from 'rxdb'

export interface Task {
  id: string
  user_id: string
  url: string
  title: string
  description: string | null
  completed: boolean
  completed_at: string | null
  priority: 'low' | 'medium' | 'high'
  tags: string[]
  due_date: string | null
  order: number | null
  extra: Record<string, unknown>
  version: number
  created_at: string
  updated_at: string
}

// A task, a change to be sent and a conflict, as RxDB has them.
export type State = WithDeleted<Task>
export type Write = RxReplicationWriteToMasterRow<Task>
export type Conflict = RxConflictHandlerInput<Task>

// A page of the changes, as the service sends it.
export interface Page {
  changes: (Task & { deleted_at: string | null })[]
  cursor: string
  more: boolean
}

// The fields that a client may change.
export const FIELDS = ['title', 'description', 'completed', 'priority', 'tags', 'due_date', 'order', 'extra'] as const

export const differing = (a: Partial<Task>, b: Partial<Task>) => FIELDS.filter((name) => !deepEqual(a[name], b[name]))
export const pick = (task: Task, names: readonly (keyof Task)[]) =>
  Object.fromEntries(names.map((name) => [name, task[name]]))

export const schema: RxJsonSchema<Task> = {
  version: 0,
  primaryKey: 'id',
  type: 'object',
  properties: {
    id: { type: 'string', maxLength: 36 },
    user_id: { type: 'string' },
    url: { type: 'string' },
    title: { type: 'string' },
    description: { type: ['string', 'null'] },
    completed: { type: 'boolean' },
    completed_at: { type: ['string', 'null'] },
    priority: { type: 'string' },
    tags: { type: 'array', items: { type: 'string' } },
    due_date: { type: ['string', 'null'] },
    order: { type: ['integer', 'null'] },
    extra: { type: 'object' },
    version: { type: 'integer' },
    created_at: { type: 'string' },
    updated_at: { type: 'string' },
  },
}
