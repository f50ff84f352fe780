/**
 * Versions of the API. The path decides: `/v1/users`. On a path without one (`/users`) a header does: `API-Version`,
 * `X-API-Version`, or `Accept: application/vnd.latchkey.v1+json`; two that disagree are refused. A version lives in
 * stages: deprecated (its answers say so), then read-only (writes are 410), then gone (410 with where to go).
 */
import type { ParameterizedContext } from 'koa'
import { Problem } from '../problems.ts'
import type { Lifecycle, Method } from './endpoint.ts'

export interface ApiVersion extends Omit<Lifecycle, 'successor'> {
  /** as in the path, without its v: `1` */
  readonly version: string
  /** from then on writes are 410 */
  readonly readOnlyAt?: Date
  /** the version that takes its place: `2` */
  readonly successor?: string
  /** whom to ask for help with moving */
  readonly support?: string
}

/** The media type by which a version can be chosen. */
export function vendorMediaType(version: string): string {
  return `application/vnd.latchkey.v${version}+json`
}

export interface ChosenVersion {
  /** the path's, or the headers', or else the first; with a refusal, the one that refuses */
  readonly version: ApiVersion
  /** in that version */
  readonly path: string
  /** VALIDATION_ERROR when two places disagree, or a header names a version that there is not */
  readonly refusal?: Problem
}

/**
 * The version that a request asks for by its path or its headers.
 *
 * @returns undefined when the path is none of the API's
 */
export function chooseVersion(
  ctx: ParameterizedContext,
  { versions, nouns }: { readonly versions: readonly ApiVersion[]; readonly nouns: ReadonlySet<string> },
): ChosenVersion | undefined {
  const inPath = /^\/v(\d{1,4})(?:\/|$)/.exec(ctx.path)?.[1]
  const [, firstNoun = ''] = /^\/([^/]*)/.exec(ctx.path) ?? []
  if (inPath === undefined && !nouns.has(firstNoun)) return undefined
  const named = [...(inPath === undefined ? [] : [{ where: 'the path', version: inPath }]), ...readHeaders(ctx)]
  const [first] = named
  const other = named.find(({ version }) => version !== first?.version)
  const found = first === undefined ? versions[0] : versions.find((one) => one.version === first.version)
  const refusal =
    first !== undefined && other !== undefined
      ? conflicting(first, other)
      : found === undefined
        ? unknownVersion(first, versions)
        : undefined
  const version = refusal === undefined || inPath !== undefined ? found : versions[0]
  if (version === undefined) return undefined
  const path = inPath === undefined ? `/v${version.version}${ctx.path}` : ctx.path
  return refusal === undefined ? { version, path } : { version, path, refusal }
}

interface NamedVersion {
  readonly where: string
  readonly version: string
}

function conflicting(first: NamedVersion, other: NamedVersion): Problem {
  return new Problem(
    'VALIDATION_ERROR',
    `The request asks for version ${first.version} in ${first.where} and for ${other.version} in ${other.where}: ask for one.`,
    { details: [{ field: other.where, constraint: 'conflict', message: `Must agree with ${first.where}` }] },
  )
}

function unknownVersion(named: NamedVersion | undefined, versions: readonly ApiVersion[]): Problem {
  const message = `Value must be one of: ${versions.map((one) => one.version).join(', ')}`
  return new Problem('VALIDATION_ERROR', `There is no version ${String(named?.version)} of this API.`, {
    details: [{ field: named?.where ?? 'API-Version', constraint: 'enum', message }],
  })
}

function readHeaders(ctx: ParameterizedContext): NamedVersion[] {
  const plain = ['API-Version', 'X-API-Version'].flatMap((where) => {
    const value = ctx.get(where).trim()
    return value === '' ? [] : [{ where, version: value.replace(/^v/i, '').slice(0, 20) }]
  })
  const accepted = /application\/vnd\.latchkey\.v(\d{1,4})\+json/i.exec(ctx.get('Accept'))?.[1]
  return accepted === undefined ? plain : [...plain, { where: 'Accept', version: accepted }]
}

/**
 * What answers of this version and endpoint say about their end, and the refusal once it has come.
 *
 * @returns the headers Deprecation (RFC 9745 §2), Sunset (RFC 8594) and Link (RFC 8288)
 * @throws Problem GONE
 */
export function checkLifecycle(
  version: ApiVersion,
  endpoint: { readonly lifecycle?: Lifecycle; readonly method: Method },
  path: string,
  now: Date,
): Readonly<Record<string, string>> {
  const own = endpoint.lifecycle
  const goneAt = earliest(own?.goneAt, version.goneAt)
  const readOnlyAt = endpoint.method === 'GET' ? undefined : version.readOnlyAt
  const guide = own?.migrationGuide ?? version.migrationGuide
  const successor =
    own?.successor ?? (version.successor === undefined ? undefined : path.replace(/^\/v\d+/, `/v${version.successor}`))
  const members = {
    ...(guide === undefined ? {} : { migration_guide: guide }),
    ...(version.support === undefined ? {} : { support: version.support }),
  }
  if (goneAt !== undefined && now >= goneAt) {
    const isVersion = goneAt === version.goneAt
    throw new Problem(
      'GONE',
      isVersion ? `API v${version.version} has been retired` : 'This operation of the API has been retired',
      { members: { shutdown_date: dateOf(goneAt), ...members }, headers: linkHeader(successor, guide) },
    )
  }
  if (readOnlyAt !== undefined && now >= readOnlyAt) {
    throw new Problem('GONE', `API v${version.version} is read-only: changes are made in the next version`, {
      members: { ...(goneAt === undefined ? {} : { shutdown_date: dateOf(goneAt) }), ...members },
      headers: linkHeader(successor, guide),
    })
  }
  const deprecatedAt = earliest(own?.deprecatedAt, version.deprecatedAt)
  if (deprecatedAt === undefined || now < deprecatedAt) return {}
  return {
    Deprecation: `@${Math.floor(deprecatedAt.getTime() / 1_000)}`,
    ...(goneAt === undefined ? {} : { Sunset: goneAt.toUTCString() }),
    ...linkHeader(successor, guide),
  }
}

function linkHeader(successor: string | undefined, guide: string | undefined): Record<string, string> {
  const links = [
    ...(successor === undefined ? [] : [`<${successor}>; rel="successor-version"`]),
    ...(guide === undefined ? [] : [`<${guide}>; rel="deprecation"; type="text/html"`]),
  ]
  return links.length === 0 ? {} : { Link: links.join(', ') }
}

function earliest(...dates: readonly (Date | undefined)[]): Date | undefined {
  return dates.filter((date) => date !== undefined).sort((a, b) => a.getTime() - b.getTime())[0]
}

function dateOf(date: Date): string {
  return date.toISOString().slice(0, 10)
}
