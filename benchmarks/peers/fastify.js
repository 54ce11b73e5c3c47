// Fastify with its plugin for node-postgres. It compiles the validation and the serialisation from
// a schema of each request body and response.
import { randomUUID } from 'node:crypto'
import postgres from '@fastify/postgres'
import Fastify from 'fastify'
import pg from 'pg'
import './types.js'
import { start } from './workers.js'

const fastify = Fastify()
fastify.register(postgres, { pg, connectionString: process.env.DATABASE_URL, max: 20 })

const COLUMNS = `id, user_id, title, description, completed, completed_at, priority, tags, due_date, "order", extra,
  version, created_at, updated_at`

const text = { type: 'string' }
const textOrNull = { type: 'string', nullable: true }
const writable = {
  title: { type: 'string', minLength: 1, maxLength: 200 },
  description: { type: 'string', nullable: true, maxLength: 2000, default: null },
  completed: { type: 'boolean', default: false },
  priority: { type: 'string', enum: ['low', 'medium', 'high'], default: 'medium' },
  tags: { type: 'array', items: text, maxItems: 20, default: [] },
  due_date: { type: 'string', nullable: true, default: null },
  order: { type: 'integer', nullable: true, default: null },
  extra: { type: 'object', default: {} },
}
const task = {
  type: 'object',
  properties: {
    id: text,
    user_id: text,
    url: text,
    title: text,
    description: textOrNull,
    completed: { type: 'boolean' },
    completed_at: textOrNull,
    priority: text,
    tags: { type: 'array', items: text },
    due_date: textOrNull,
    order: { type: 'integer', nullable: true },
    extra: { type: 'object', additionalProperties: true },
    version: { type: 'integer' },
    created_at: text,
    updated_at: text,
  },
}

function toJson(request, row) {
  row.url = `${request.protocol}://${request.host}/api/${encodeURIComponent(row.user_id)}/tasks/${row.id}`
  return row
}

const list = {
  querystring: { type: 'object', properties: { limit: { type: 'integer', minimum: 1, maximum: 1000, default: 1000 } } },
  response: { 200: { type: 'array', items: task } },
}
fastify.get('/api/:userId/tasks', { schema: list }, async (request) => {
  const { rows } = await fastify.pg.query(
    `SELECT ${COLUMNS} FROM tasks WHERE user_id = $1 AND deleted_at IS NULL
     ORDER BY created_at DESC, id DESC LIMIT $2`,
    [request.params.userId, request.query.limit],
  )
  return rows.map((row) => toJson(request, row))
})

const create = { body: { type: 'object', required: ['title'], properties: writable }, response: { 201: task } }
fastify.post('/api/:userId/tasks', { schema: create }, async (request, reply) => {
  const { title, description, completed, priority, tags, due_date, order, extra } = request.body
  const { rows } = await fastify.pg.query(
    `INSERT INTO tasks (user_id, id, title, description, completed, completed_at, priority, tags, due_date, "order",
       extra)
     VALUES ($1, $2, $3, $4, $5::boolean, CASE WHEN $5 THEN now() END, $6, $7, $8, $9, $10) RETURNING ${COLUMNS}`,
    [request.params.userId, randomUUID(), title, description, completed, priority, tags, due_date, order, extra],
  )
  reply.code(201)
  return toJson(request, rows[0])
})

fastify.get('/api/:userId/tasks/:taskId', { schema: { response: { 200: task } } }, async (request, reply) => {
  const { rows } = await fastify.pg.query(`SELECT ${COLUMNS} FROM tasks WHERE user_id = $1 AND id = $2`, [
    request.params.userId,
    request.params.taskId,
  ])
  if (!rows.length) return reply.code(404).send({ detail: 'Task not found' })
  return toJson(request, rows[0])
})

fastify.patch('/api/:userId/tasks/:taskId/complete', { schema: { response: { 200: task } } }, async (request, reply) => {
  const { rows } = await fastify.pg.query(
    `UPDATE tasks SET completed = NOT completed, completed_at = CASE WHEN completed THEN NULL ELSE now() END,
       updated_at = now(), version = version + 1
     WHERE user_id = $1 AND id = $2 RETURNING ${COLUMNS}`,
    [request.params.userId, request.params.taskId],
  )
  if (!rows.length) return reply.code(404).send({ detail: 'Task not found' })
  return toJson(request, rows[0])
})

start((port, host) => fastify.listen({ port, host }))
