import type { Middleware } from 'koa'
import { problemCatalogue } from '../problems.ts'
import type { RequestState } from './request-context.ts'

/** `GET /docs/errors`: where every error's `type` and `documentation` lead. */
export function errorReference(): Middleware<RequestState> {
  const page = render()
  return async function errorReference(ctx, next) {
    if (ctx.path !== '/docs/errors' || (ctx.method !== 'GET' && ctx.method !== 'HEAD')) {
      await next()
      return
    }
    ctx.state.endpoint = '/docs/errors'
    ctx.set('Cache-Control', 'public, max-age=300')
    ctx.type = 'text/html; charset=utf-8'
    ctx.body = page
  }
}

function render(): string {
  const entries = Object.entries(problemCatalogue).map(
    ([code, { status, title, whatToDo }]) =>
      `<dt id="${code}"><code>${code}</code> (${status})</dt>\n` +
      `<dd>${title}. ${whatToDo.replaceAll(/`([^`]+)`/g, '<code>$1</code>')}</dd>`,
  )
  return `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Errors</title></head>
<body>
<h1>Errors</h1>
<p>The OAuth endpoints answer with the errors of RFC 6749 instead.</p>
<dl>
${entries.join('\n')}
</dl>
</body>
</html>
`
}
