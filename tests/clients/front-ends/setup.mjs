// The user of a check, and a `fetch` whose tokens and failures the check decides.
export const user = process.env.USER_ID
export const tasksURL = `${process.env.SERVICE}/api/${encodeURIComponent(user)}/tasks`

export const state = { requests: 0, tokenRequests: 0, tokenStatus: 401 }
export const tokens = [] // the next tokens of the issuer; without one it responds with tokenStatus
export const faults = [] // what happens to the next requests instead

export const realFetch = globalThis.fetch
globalThis.fetch = async (input, init) => {
  if (input === '/api/auth/token') {
    state.tokenRequests += 1
    const token = process.env.SERVICE_HAS_TOKENS ? tokens.shift() : 'unused'
    return Response.json({ token }, { status: token ? 200 : state.tokenStatus })
  }
  state.requests += 1
  return faults.length ? faults.shift()(input, init) : realFetch(input, init)
}

export async function createTask(title, fields = {}) {
  const body = JSON.stringify({ title, ...fields })
  const response = await realFetch(tasksURL, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body })
  if (!response.ok) throw new Error(await response.text())
  return response.json()
}

export async function listTasks(query = '') {
  return (await realFetch(tasksURL + query)).json()
}
