import type { RxJsonSchema } from 'rxdb'

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

// The fields that a client may change.
export const FIELDS = ['title', 'description', 'completed', 'priority', 'tags', 'due_date', 'order', 'extra'] as const

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
