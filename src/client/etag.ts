/**
 * The header by which a change says what it is based on: it is refused with `PRECONDITION_FAILED` when somebody else was
 * faster.
 *
 * @param answer - of reading or changing the resource, or its `ETag`
 * @throws TypeError when it has none that a change could be based on
 * @example
 * ```ts
 * import { createClient, ifMatch } from '@latchkey/client'
 *
 * const latchkey = createClient({ baseUrl: 'https://id.example.com', auth: { apiKey: process.env['API_KEY'] ?? '' } })
 * const path = { user_id: 'usr_2Kx8mQ4vTz9LrN1cYp7WfA' }
 * const { data: user, response } = await latchkey.GET('/v1/users/{user_id}', { params: { path } })
 * await latchkey.PATCH('/v1/users/{user_id}', {
 *   params: { path, header: ifMatch(response) },
 *   body: { name: `${user.name ?? ''} (left)` },
 * })
 * ```
 */
export function ifMatch(answer: Response | string): { 'If-Match': string } {
  const tag = typeof answer === 'string' ? answer : answer.headers.get('etag')
  // RFC 9110 §13.1.1: a weak tag never matches.
  if (tag === null || !/^"[^"]*"$/.test(tag)) throw new TypeError(`No change can be based on the ETag ${String(tag)}`)
  return { 'If-Match': tag }
}
