// Serve the page from the network, and offline from the cache.
const files = async () => ['/', ...(await (await fetch('/')).text()).match(/\/assets\/[^"]+/g)]

self.addEventListener('install', (event) => {
  event.waitUntil(caches.open('page').then(async (cache) => cache.addAll(await files())))
})

self.addEventListener('fetch', (event) => {
  if (new URL(event.request.url).origin !== location.origin) return // the service's responses are never cached
  const ignore = { ignoreSearch: true, ignoreVary: true }
  const fromCache = async () => (await caches.match(event.request, ignore)) ?? Response.error()
  event.respondWith(fetch(event.request).catch(fromCache))
})
