// Express and node-postgres, with a pool and one parameterised query per request.
import { randomUUID } from 'node:crypto'
import express from 'express'
import pg from 'pg'
import './types.js'
import { start } from './workers.js'

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 20 })
const app = express()
app.use(express.json())

const COLUMNS = `id, user_id, title, description, completed, completed_at, priority, tags, due_date, "order", extra,
  version, created_at, updated_at`

function toJson(req, { id, user_id, ...rest }) {
  const url = `${req.protocol}://${req.get('host')}/api/${encodeURIComponent(user_id)}/tasks/${id}`
  return { id, user_id, url, ...rest }
}

app.get('/api/:userId/tasks', async (req, res) => {
  const limit = Number(req.query.limit ?? 1000)
  const { rows } = await pool.query(
    `SELECT ${COLUMNS} FROM tasks WHERE user_id = $1 AND deleted_at IS NULL
     ORDER BY created_at DESC, id DESC LIMIT $2`,
    [req.params.userId, limit],
  )
  res.json(rows.map((row) => toJson(req, row)))
})

app.post('/api/:userId/tasks', async (req, res) => {
  const { title, description = null, completed = false, priority = 'medium', tags = [], due_date = null, order = null,
    extra = {} } = req.body
  if (typeof title !== 'string' || !title || title.length > 200) {
    return res.status(422).json({ detail: 'title should have 1 to 200 characters' })
  }
  const { rows } = await pool.query(
    `INSERT INTO tasks (user_id, id, title, description, completed, completed_at, priority, tags, due_date, "order",
       extra)
     VALUES ($1, $2, $3, $4, $5::boolean, CASE WHEN $5 THEN now() END, $6, $7, $8, $9, $10) RETURNING ${COLUMNS}`,
    [req.params.userId, randomUUID(), title, description, completed, priority, tags, due_date, order, extra],
  )
  res.status(201).json(toJson(req, rows[0]))
})

app.get('/api/:userId/tasks/:taskId', async (req, res) => {
  const { rows } = await pool.query(`SELECT ${COLUMNS} FROM tasks WHERE user_id = $1 AND id = $2`, [
    req.params.userId,
    req.params.taskId,
  ])
  if (!rows.length) return res.status(404).json({ detail: 'Task not found' })
  res.json(toJson(req, rows[0]))
})

app.patch('/api/:userId/tasks/:taskId/complete', async (req, res) => {
  const { rows } = await pool.query(
    `UPDATE tasks SET completed = NOT completed, completed_at = CASE WHEN completed THEN NULL ELSE now() END,
       updated_at = now(), version = version + 1
     WHERE user_id = $1 AND id = $2 RETURNING ${COLUMNS}`,
    [req.params.userId, req.params.taskId],
  )
  if (!rows.length) return res.status(404).json({ detail: 'Task not found' })
  res.json(toJson(req, rows[0]))
})

start((port, host) => app.listen(port, host))
