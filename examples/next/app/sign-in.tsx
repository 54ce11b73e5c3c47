'use client'

import { useRouter } from 'next/navigation'
import { useState, type SubmitEvent } from 'react'
import { authClient } from '@/lib/auth-client'

export function SignIn() {
  const router = useRouter()
  const [message, setMessage] = useState('')
  const [isPending, setPending] = useState(false)

  async function submit(event: SubmitEvent<HTMLFormElement>) {
    event.preventDefault()
    const data = new FormData(event.currentTarget, event.nativeEvent.submitter)
    const email = String(data.get('email'))
    const password = String(data.get('password'))
    setPending(true)
    setMessage('')
    const { error } = await (data.get('action') === 'sign-up'
      ? authClient.signUp.email({ email, password, name: email })
      : authClient.signIn.email({ email, password }))
    setPending(false)
    if (error) setMessage(error.message ?? `Signing in failed with status ${error.status}.`)
    else router.refresh()
  }

  return (
    <main>
      <h1>Tasks</h1>
      <form className="card" onSubmit={submit}>
        <label>
          Email
          <input name="email" type="email" autoComplete="username" required />
        </label>
        <label>
          Password
          <input name="password" type="password" autoComplete="current-password" minLength={8} required />
        </label>
        <p role="alert">{message}</p>
        <div className="row">
          <button className="primary" name="action" value="sign-in" disabled={isPending}>
            Sign in
          </button>
          <button name="action" value="sign-up" disabled={isPending}>
            Create account
          </button>
        </div>
      </form>
    </main>
  )
}
