/** What an answer says of the end of what was called. */
export interface DeprecationNotice {
  /** Upper case. */
  readonly method: string
  /** As in the document: `/v1/users/{user_id}`. */
  readonly path: string
  /** Since when it should not be used any more (RFC 9745). */
  readonly deprecatedAt: Date | undefined
  /** When it will be gone (RFC 8594). */
  readonly sunsetAt: Date | undefined
  /** What takes its place. */
  readonly successor: string | undefined
  /** Where it says how to move. */
  readonly migrationGuide: string | undefined
}

/** @returns undefined when nothing is said of an end */
export function readDeprecation(headers: Headers): Omit<DeprecationNotice, 'method' | 'path'> | undefined {
  const deprecation = headers.get('deprecation')
  const sunset = headers.get('sunset')
  if (deprecation === null && sunset === null) return undefined
  const links = new Map(
    [...(headers.get('link') ?? '').matchAll(/<([^>]*)>\s*;\s*rel="([\w-]+)"/g)].map(([, target, relation]) => [
      relation,
      target,
    ]),
  )
  // RFC 9745 §2.1: a Date of RFC 9651, which is seconds after an at sign.
  const seconds = /^@(-?\d{1,12})$/.exec(deprecation ?? '')?.[1]
  return {
    deprecatedAt: seconds === undefined ? undefined : new Date(Number(seconds) * 1000),
    sunsetAt: sunset === null || Number.isNaN(Date.parse(sunset)) ? undefined : new Date(sunset),
    successor: links.get('successor-version'),
    migrationGuide: links.get('deprecation'),
  }
}
