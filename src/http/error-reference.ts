import type { Middleware } from 'koa'
import { problemCatalogue } from '../problems.ts'
import type { RequestState } from './request-context.ts'
import { setPageHeaders } from './security-headers.ts'

/** One entry of the catalogue, as the page shows it. */
export interface ShownError {
  readonly code: string
  readonly status: number
  readonly title: string
  readonly whatToDo: string
}

/**
 * `GET /docs/errors`: where every error's `type` and `documentation` lead.
 *
 * @param render makes the whole document, each error under its code as the fragment
 */
export function errorReference(render: (errors: readonly ShownError[]) => string): Middleware<RequestState> {
  const page = render(
    Object.entries(problemCatalogue).map(([code, { status, title, whatToDo }]) => ({
      code,
      status,
      title,
      // The catalogue marks names as Markdown does.
      whatToDo: whatToDo.replaceAll('`', ''),
    })),
  )
  return function errorReference(ctx, next) {
    if (ctx.path !== '/docs/errors' || (ctx.method !== 'GET' && ctx.method !== 'HEAD')) return next()
    ctx.state.endpoint = '/docs/errors'
    setPageHeaders(ctx)
    ctx.set('Cache-Control', 'public, max-age=300')
    ctx.type = 'text/html; charset=utf-8'
    ctx.body = page
    return undefined
  }
}
