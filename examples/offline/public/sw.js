// Serve the page from the network, and offline from the cache. The service's responses are never cached.
const files = async () => ['/', ...(await (await fetch('/')).text()).match(/\/assets\/[^"]+/g)]

self.addEventListener('install', (event) => {
  event.waitUntil(caches.open('page').then(async (cache) => cache.addAll(await files())))
})

async function load(request, path) {
  const cache = await caches.open('page')
  const response = await fetch(request).catch(() => null)
  if (!response) return (await cache.match(path, { ignoreVary: true })) ?? Response.error()
  if (response.ok) await cache.put(path, response.clone()) // a new build has other files than those of the installation
  return response
}

self.addEventListener('fetch', (event) => {
  const { origin, pathname } = new URL(event.request.url)
  const isFile = pathname === '/' || pathname.startsWith('/assets/')
  if (origin === location.origin && isFile) event.respondWith(load(event.request, pathname))
})
