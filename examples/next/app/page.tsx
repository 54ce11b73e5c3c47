import { headers } from 'next/headers'
import { auth } from '@/lib/auth.mjs'
import { SignIn } from './sign-in'
import { TaskApp } from './task-app'

export default async function Page() {
  const session = await auth.api.getSession({ headers: await headers() })
  // The key gives each user a component, and with it a token and a cache, of their own.
  return session ? <TaskApp key={session.user.id} user={session.user} /> : <SignIn />
}
