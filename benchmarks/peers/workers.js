// Start WORKERS processes that share the port, with Node's cluster module.
import cluster from 'node:cluster'

export function start(listen) {
  const workers = Number(process.env.WORKERS ?? 1)
  if (workers > 1 && cluster.isPrimary) {
    for (let n = 0; n < workers; n++) cluster.fork()
  } else {
    listen(Number(process.env.PORT), '127.0.0.1')
  }
}
