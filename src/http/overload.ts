import type { Middleware } from 'koa'
import { Problem } from '../problems.ts'
import { onceOver, type RequestState } from './request-context.ts'

/**
 * Turns requests away at once, with 503, while so many others are being answered: whoever is served gets a quick answer,
 * instead of everybody a late one. What must always answer, such as health, stands in front of it.
 *
 * @param maxUnderWay requests of this process; one counts until its answer is sent or its caller has gone
 */
export function overload(maxUnderWay: number): Middleware<RequestState> {
  let underWay = 0
  return function overload(ctx, next) {
    if (underWay >= maxUnderWay) {
      throw new Problem('SERVICE_UNAVAILABLE', 'Too many requests are being answered at the moment.', {
        retryAfterSeconds: 1,
      })
    }
    underWay += 1
    onceOver(ctx, () => {
      underWay -= 1
    })
    return next()
  }
}
