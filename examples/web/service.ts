/** The smallest service without a framework: a Web `Request` in, a `Response` out. */
import { requireScopes } from '@latchkey/guard'
import type { Guard } from '@latchkey/guard'
import { protect } from '@latchkey/guard/web'

export function createService(guard: Guard): (request: Request) => Promise<Response> {
  return protect(guard, (request, auth) => {
    if (new URL(request.url).pathname !== '/hello') return new Response('not found', { status: 404 })
    requireScopes(auth, 'models:read')
    return Response.json({ hello: auth.subject.id })
  })
}
