'use client'

import { useInfiniteQuery, useMutation, useQueryClient, type InfiniteData } from '@tanstack/react-query'
import { useEffect, useRef, useState, type SubmitEvent } from 'react'
import { flushSync } from 'react-dom'
import type { Task, TaskChanges, TaskPage, TasksApi } from '@/lib/api'

const queryKey = ['tasks']

/** Return a function that changes the tasks of each page in the cache. */
function useChangeList() {
  const queryClient = useQueryClient()
  return async (change: (tasks: Task[], page: number) => Task[]) => {
    const { fetchStatus, isInvalidated } = queryClient.getQueryState(queryKey)!
    await queryClient.cancelQueries({ queryKey }) // a response from before the change must not replace it
    queryClient.setQueryData<InfiniteData<TaskPage>>(
      queryKey,
      list => list && { ...list, pages: list.pages.map((page, i) => ({ ...page, tasks: change(page.tasks, i) })) },
    )
    // The cancelled request is made again.
    if (fetchStatus !== 'idle' || isInvalidated) void queryClient.invalidateQueries({ queryKey })
  }
}

export function TaskList({ api }: { api: TasksApi }) {
  const list = useInfiniteQuery({
    queryKey,
    queryFn: ({ pageParam }) => api.list(pageParam),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: page => page.next,
  })
  const tasks = list.data?.pages.flatMap(page => page.tasks)

  if (!tasks) return list.error ? <ListError list={list} /> : <p role="status">Loading…</p>
  return (
    <>
      <NewTask api={api} tasks={tasks} />
      {tasks.length === 0 && <p role="status">There are no tasks yet.</p>}
      <ul aria-label="Tasks">
        {tasks.map(task => (
          <TaskRow key={task.id} api={api} task={task} />
        ))}
      </ul>
      {list.error ? <ListError list={list} /> : list.hasNextPage && <NextPage list={list} />}
    </>
  )
}

type List = { error: Error | null; isFetching: boolean; refetch: () => void; fetchNextPage: () => void }

function ListError({ list }: { list: List }) {
  return (
    <p role="alert">
      {list.error?.message} <button onClick={() => list.refetch()}>Try again</button>
    </p>
  )
}

/** A button that clicks itself when it is scrolled into view. */
function NextPage({ list: { isFetching, fetchNextPage } }: { list: List }) {
  const button = useRef<HTMLButtonElement>(null)
  useEffect(() => {
    if (isFetching) return
    const observer = new IntersectionObserver(([entry]) => entry?.isIntersecting && fetchNextPage())
    observer.observe(button.current!)
    return () => observer.disconnect()
  }, [isFetching, fetchNextPage])
  return (
    <button ref={button} disabled={isFetching} onClick={() => fetchNextPage()}>
      Show more
    </button>
  )
}

function NewTask({ api, tasks }: { api: TasksApi; tasks: Task[] }) {
  const form = useRef<HTMLFormElement>(null)
  const ids = useRef(new Map<string, string>()) // title -> id of the tasks whose creation is not confirmed
  const changeList = useChangeList()
  const create = useMutation({
    // The id belongs to the title until there is a response, so neither a retry nor a second click creates a second task.
    mutationFn: (title: string) => {
      const id = ids.current.get(title) ?? crypto.randomUUID()
      ids.current.set(title, id)
      return api.create(id, title)
    },
    retry: (failures, error) => failures < 3 && error.isTemporary,
    onSuccess: (created, title) => {
      ids.current.delete(title)
      return changeList((tasks, page) => [...(page ? [] : [created]), ...tasks.filter(task => task.id !== created.id)])
    },
    onError: (error, title) => error.isTemporary || ids.current.delete(title),
  })

  const inputTitle = () => String(new FormData(form.current!).get('title'))

  // A task in the list has been created, even if each response was lost. Its title in the form is then not a new task.
  useEffect(() => {
    if (create.isPending) return // the attempts of a create share the id
    for (const [title, id] of ids.current) {
      if (!tasks.some(task => task.id === id)) continue
      ids.current.delete(title)
      if (inputTitle() === title) form.current!.reset()
    }
  }, [create.isPending, tasks])

  function submit(event: SubmitEvent<HTMLFormElement>) {
    event.preventDefault()
    create.mutate(inputTitle(), { onSuccess: () => form.current!.reset() })
  }

  return (
    <form ref={form} className="card row" onSubmit={submit}>
      <label>
        New task
        <input name="title" maxLength={200} autoComplete="off" required />
      </label>
      <button className="primary" disabled={create.isPending}>
        {create.isPending ? 'Adding…' : 'Add'}
      </button>
    </form>
  )
}

function TaskRow({ api, task }: { api: TasksApi; task: Task }) {
  // The task as it was when the form was opened, and the title in the form. After a conflict, the form shows the current
  // title too, and saves over the current task.
  const [edited, setEdited] = useState<{ base?: Task; title: string }>()
  const editButton = useRef<HTMLButtonElement>(null)
  const changeList = useChangeList()
  const update = useMutation({
    mutationFn: ({ base, changes }: { base: Task; changes: TaskChanges }) => api.update(base, changes),
    onSuccess: saved => changeList(tasks => tasks.map(other => (other.id === saved.id ? saved : other))),
    onError: ({ status }, { base, changes: { title } }) => {
      if (title !== undefined) setEdited({ base: status === 412 ? undefined : base, title }) // the input is not lost
    },
  })
  const remove = useMutation({
    mutationFn: () => api.remove(task),
    onSuccess: () => changeList(tasks => tasks.filter(other => other.id !== task.id)),
  })

  function close() {
    flushSync(() => setEdited(undefined))
    editButton.current!.focus() // a keyboard user stays in this row
  }

  function save(event: SubmitEvent<HTMLFormElement>) {
    event.preventDefault()
    const title = String(new FormData(event.currentTarget).get('title'))
    update.mutate({ base: edited!.base ?? task, changes: { title } })
    close()
  }

  if (edited) {
    return (
      <li className="card">
        <form className="row" onSubmit={save}>
          <label>
            {edited.base ? 'Title' : `Title, now “${task.title}”`}
            <input name="title" defaultValue={edited.title} maxLength={200} autoComplete="off" autoFocus required />
          </label>
          <button className="primary">Save</button>
          <button type="button" onClick={close}>
            Cancel
          </button>
        </form>
      </li>
    )
  }

  // The row shows a change before there is a response. If the change fails, the row shows the cached task again.
  if (remove.isPending) return null
  const isPending = update.isPending // until then, the next change would be made from an old version
  const { title, completed } = isPending ? { ...task, ...update.variables.changes } : task
  return (
    <li className="card row" aria-busy={isPending}>
      <label className="task">
        <input
          type="checkbox"
          checked={completed}
          onChange={() => isPending || update.mutate({ base: task, changes: { completed: !completed } })}
        />
        <span>{title}</span>
      </label>
      <button ref={editButton} aria-label={`Edit ${title}`} onClick={() => isPending || setEdited({ base: task, title })}>
        Edit
      </button>
      <button aria-label={`Delete ${title}`} onClick={() => isPending || remove.mutate()}>
        Delete
      </button>
    </li>
  )
}
