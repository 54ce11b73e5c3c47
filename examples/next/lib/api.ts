// The client of the Tasks service: typed requests, the token, errors and pages. It needs neither React nor Better Auth.
import createClient from 'openapi-fetch'
import type { components, paths } from './openapi'

export type Task = components['schemas']['Task']
export type TaskChanges = components['schemas']['TaskPatch']
export type TaskPage = { tasks: Task[]; next: string | undefined }
export type TasksApi = ReturnType<typeof createTasksApi>

const PAGE_SIZE = 50
const TIMEOUT = 15_000

/** An error whose message is a sentence for the user. The status is 0 if there was no response. */
export class ApiError extends Error {
  constructor(readonly status: number, message: string, options?: ErrorOptions) {
    super(message, options)
  }

  get isTemporary() {
    return this.status === 0 || this.status >= 500
  }
}

/** Return the requests for the tasks of one user. `getToken` requests a new token, and throws an ApiError if it cannot. */
export function createTasksApi(user_id: string, getToken: () => Promise<string>) {
  let token = ''
  let newToken: Promise<string> | undefined

  async function refreshToken() {
    // Concurrent requests share one new token.
    newToken ??= getToken().finally(() => (newToken = undefined))
    token = await newToken
  }

  async function send(request: Request) {
    const copy = request.clone() // a body can be sent only once
    if (!token || expiresSoon(token)) await refreshToken()
    const response = await fetchWithToken(request, token)
    if (response.status !== 401) return response
    await refreshToken()
    return fetchWithToken(copy, token)
  }

  // Without a baseUrl, the requests go to the origin of the page, and the rewrite in next.config.ts passes them on.
  const client = createClient<paths>({ fetch: send })
  const taskPath = (task_id: string) => ({ user_id, task_id })
  const ifMatch = (task: Task) => ({ 'if-match': `"${task.version}"` })

  return {
    /** Return the first page of the list, or the one at the URL `next` of the page before it. */
    async list(next?: string): Promise<TaskPage> {
      const [tasks, { headers }] = await unwrap(
        client.GET('/api/{user_id}/tasks', {
          params: { path: { user_id }, query: { limit: PAGE_SIZE } },
          fetch: request => send(next ? new Request(next) : request),
        }),
      )
      return { tasks, next: /<([^>]*)>; rel="next"/.exec(headers.get('Link') ?? '')?.[1] }
    },

    /** Create a task. A repeated call with the same id and title creates no second task. */
    async create(id: string, title: string) {
      const params = { path: taskPath(id), header: { 'if-none-match': '*' } }
      return (await unwrap(client.PUT('/api/{user_id}/tasks/{task_id}', { params, body: { title } })))[0]
    },

    /** Change a task, unless it has been changed elsewhere since it was read: then the status of the error is 412. */
    async update(task: Task, changes: TaskChanges) {
      const params = { path: taskPath(task.id), header: ifMatch(task) }
      return (await unwrap(client.PATCH('/api/{user_id}/tasks/{task_id}', { params, body: changes })))[0]
    },

    /** Delete a task, unless it has been changed elsewhere since it was read: then the status of the error is 412. */
    async remove(task: Task) {
      const params = { path: taskPath(task.id), header: ifMatch(task) }
      await unwrap(client.DELETE('/api/{user_id}/tasks/{task_id}', { params }))
    },
  }
}

function fetchWithToken(request: Request, token: string) {
  request.headers.set('Authorization', `Bearer ${token}`)
  return fetch(request, { signal: AbortSignal.timeout(TIMEOUT) })
}

/** Return the claims of a token, unchecked. */
export function claims(token: string): { sub: string; exp: number } {
  return JSON.parse(atob(token.split('.')[1]!.replaceAll('-', '+').replaceAll('_', '/')))
}

/** Return whether a token expires within 30 seconds. */
function expiresSoon(token: string) {
  return claims(token).exp * 1000 < Date.now() + 30_000
}

/** Return the body and the response, or throw an ApiError with the detail of the problem (RFC 9457). */
async function unwrap<T>(result: Promise<{ data?: T; error?: unknown; response: Response }>): Promise<[T, Response]> {
  // A connection can also fail while the body is read.
  const { data, error, response } = await result.catch(cause => {
    throw cause instanceof ApiError ? cause : new ApiError(0, 'The service cannot be reached.', { cause })
  })
  if (data !== undefined) return [data, response]
  const isProblem = error instanceof Object && 'detail' in error
  throw new ApiError(response.status, isProblem ? String(error.detail) : `The service failed with status ${response.status}.`)
}
