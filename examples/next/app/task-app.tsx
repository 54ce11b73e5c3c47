'use client'

import { focusManager, MutationCache, QueryClient, QueryClientProvider } from '@tanstack/react-query'
import { useRouter } from 'next/navigation'
import { useEffect, useState } from 'react'
import { ApiError, claims, createTasksApi } from '@/lib/api'
import { authClient } from '@/lib/auth-client'
import { TaskList } from './task-list'

declare module '@tanstack/react-query' {
  interface Register {
    defaultError: ApiError
  }
}

export function TaskApp({ user }: { user: { id: string; email: string } }) {
  const router = useRouter()
  const [message, setMessage] = useState('')
  const [api] = useState(() => createTasksApi(user.id, getToken))
  const [queryClient] = useState(createQueryClient)

  // Another tab can have ended the session, or started one of another user.
  useEffect(
    () =>
      focusManager.subscribe(async isFocused => {
        if (!isFocused) return
        const { data, error } = await authClient.getSession()
        if (!error && data?.user.id !== user.id) router.refresh()
      }),
    [router, user.id],
  )

  async function getToken() {
    const { data, error } = await authClient.token()
    if (data && claims(data.token).sub === user.id) return data.token
    if (error && error.status !== 401) throw new ApiError(error.status, 'The sign-in cannot be checked at the moment.')
    router.refresh() // shows the sign-in form, or the tasks of the other user
    throw new ApiError(401, 'Your session has ended.')
  }

  function createQueryClient() {
    const client: QueryClient = new QueryClient({
      defaultOptions: { queries: { retry: (failures, error) => failures < 3 && error.isTemporary } },
      mutationCache: new MutationCache({
        onMutate: () => setMessage(''),
        onError: error => {
          setMessage(error.status === 412 ? 'This task was changed elsewhere. Your change was not saved.' : error.message)
          return client.invalidateQueries() // the list shows what the service has
        },
      }),
    })
    return client
  }

  async function signOut() {
    const { error } = await authClient.signOut()
    if (error) setMessage('Signing out failed.')
    else router.refresh()
  }

  return (
    <QueryClientProvider client={queryClient}>
      <header className="row">
        <h1>Tasks</h1>
        <span>{user.email}</span>
        <button onClick={signOut}>Sign out</button>
      </header>
      <main>
        <p role="alert">{message}</p>
        <TaskList api={api} />
      </main>
    </QueryClientProvider>
  )
}
