import { openTasks } from './database.ts'
import type { Task } from './task.ts'

const api: string = import.meta.env.VITE_API ?? 'http://127.0.0.1:8000'
const user = new URLSearchParams(location.search).get('user') ?? 'alice'
const { tasks, messages, replication } = await openTasks(`${api}/api/${encodeURIComponent(user)}`)

const $ = <T extends HTMLElement>(selector: string) => document.querySelector<T>(selector)!
const form = $<HTMLFormElement>('#add')
const editor = $<HTMLDialogElement>('#edit')

// ---- Changes by the user

async function change(task: Task, fields: Partial<Task>) {
  const current = await tasks.findOne(task.id).exec()
  if (current) await current.incrementalPatch(fields)
  else await tasks.insert({ ...task, ...fields }) // it was deleted: bring it back
}

$<HTMLButtonElement>('#add button').disabled = false
form.onsubmit = async (event) => {
  event.preventDefault()
  const title = $<HTMLInputElement>('#title').value.trim()
  form.reset()
  const now = new Date().toISOString()
  await tasks.insert({
    id: crypto.randomUUID(),
    user_id: user,
    url: '',
    title,
    description: null,
    completed: false,
    completed_at: null,
    priority: 'medium',
    tags: [],
    due_date: null,
    order: null,
    extra: {},
    version: 0,
    created_at: now,
    updated_at: now,
  })
}

async function remove(id: string) {
  const task = await tasks.findOne(id).exec()
  if (!task) return // another device has deleted it
  const removed = (await task.incrementalRemove()).toMutableJSON() as Task
  $('#deleted').textContent = `Deleted “${removed.title}”.`
  $('#undo').onclick = () => {
    $('#toast').hidden = true
    return change(removed, {})
  }
  $('#toast').hidden = false
}

function edit(task: Task) {
  const values = { title: task.title, description: task.description ?? '', priority: task.priority as string }
  const inputs = Object.keys(values).map((name) => $<HTMLInputElement>(`#edit [name=${name}]`))
  for (const input of inputs) input.value = values[input.name as keyof typeof values]
  const shown = inputs.map(({ value }) => value) // a text field changes line ends
  // Not the dialog's `close` event: it comes late, when the editor may be open for another task already.
  editor.querySelector('form')!.onsubmit = async ({ submitter }) => {
    if ((submitter as HTMLButtonElement).value !== 'save') return
    const edited = inputs.filter(({ value }, index) => value !== shown[index])
    const fields = edited.map(({ name, value }) => [name, value.trim() || (name === 'description' ? null : '')])
    if (fields.length) await change(task, Object.fromEntries(fields))
  }
  editor.showModal()
}

// ---- What the page shows

const rows = new Map<string, { element: HTMLElement; show: (task: Task) => void }>()

function createRow() {
  const element = $<HTMLTemplateElement>('#row').content.firstElementChild!.cloneNode(true) as HTMLElement
  const box = element.querySelector('input')!
  const title = element.querySelector<HTMLElement>('.title')!
  const details = element.querySelector<HTMLElement>('.details')!
  const remover = element.querySelector<HTMLElement>('.delete')!
  return {
    element,
    show(task: Task) {
      element.id = task.id
      box.checked = task.completed
      box.onchange = () => change(task, { completed: box.checked })
      title.textContent = task.title
      title.onclick = () => edit(task)
      details.textContent = [`${task.priority} priority`, task.description].filter(Boolean).join(' · ')
      box.ariaLabel = `Done: ${task.title}`
      title.ariaLabel = `Edit: ${task.title}`
      remover.ariaLabel = `Delete: ${task.title}`
      remover.onclick = () => remove(task.id)
    },
  }
}

tasks.find().$.subscribe((found) => {
  const list = $('#list')
  const sorted = found.map((task) => task.toMutableJSON() as Task)
  sorted.sort((a, b) => (a.created_at < b.created_at ? 1 : -1))
  const ids = new Set(sorted.map((task) => task.id))
  for (const [id, row] of rows) {
    if (ids.has(id)) continue
    row.element.remove()
    rows.delete(id)
  }
  sorted.forEach((task, index) => {
    const row = rows.get(task.id) ?? createRow()
    rows.set(task.id, row)
    row.show(task)
    // Moving an element takes the focus from it.
    if (list.children[index] !== row.element) list.insertBefore(row.element, list.children[index] ?? null)
  })
})

messages.find().$.subscribe((found) => {
  $('#messages').replaceChildren(
    ...found.map((message) => {
      const item = document.createElement('li')
      const button = document.createElement('button')
      button.textContent = 'OK'
      button.onclick = () => message.incrementalRemove()
      item.append(message.text, ' ', button)
      return item
    }),
  )
})

replication.error$.subscribe(() => ($('#status').textContent = 'Not connected. Your changes are kept on this device.'))
replication.active$.subscribe((active) => active || ($('#status').textContent = ''))

// The service worker serves the page offline. In development, Vite serves the page.
if (import.meta.env.PROD) await navigator.serviceWorker.register('/sw.js')
