/**
 * One operation of the API, declared once: method, path, who may call it, what it takes, what it answers, and what it
 * does. From the declaration come the route, the parsed request, the checked answer, the access check (api.ts) and the
 * operation in the OpenAPI document (openapi.ts). Nothing of these can be forgotten, since the types demand them.
 *
 * A handler prepares (hashing, parsing), and calls `write` once with what changes the database: there the transaction,
 * the idempotency key's answer, the audit's actor and the check of the answer are attached.
 */
import type { z } from 'zod'
import type { Actor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import type { FieldError, ProblemCode } from '../problems.ts'
import type { ExpectedVersions } from './etag.ts'

export type Method = 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'

/** Who calls, as the access rules and the record see it. */
export interface Caller {
  readonly type: 'user' | 'client'
  /** the `sub` of the token */
  readonly id: string
  /** the person, when it is one */
  readonly userId: string | undefined
  readonly clientId: string
  readonly scopes: ReadonlySet<string>
  /** as a limit counts it: an IPv4 address, or the /64 of an IPv6 address */
  readonly network: string
  readonly actor: Actor
}

/** Whose a thing is: the name of the path's parameter that says it, or a look-up. */
export type OwnerOf = string | ((params: Readonly<Record<string, string>>, db: Db) => Promise<string | undefined>)

/** Who may call an endpoint: holders of `scope`; and of `self.scope`, about what is their own, listed at `self.listedAt`. */
export interface Access {
  readonly scope: string
  readonly self?: { readonly scope: string; readonly owner: OwnerOf; readonly listedAt?: string }
}

/** Holders of this scope, for anybody's things. */
export function holdersOf(scope: string): Access {
  return { scope }
}

/**
 * Holders of `scope`, and people with `selfScope` for what is their own.
 *
 * @param owner a parameter of the path: somebody else's is then refused with 403 before anything is looked up; or a
 *   look-up: somebody else's is then 404, as if it were not there
 * @param listedAt where people find what is their own, for that 404: `/v1/users/me/sessions`
 */
export function holdersOrSelf(scope: string, selfScope: string, owner: OwnerOf, listedAt?: string): Access {
  return { scope, self: { scope: selfScope, owner, ...(listedAt === undefined ? {} : { listedAt }) } }
}

/** Statuses that an endpoint succeeds with, each with the schema of its body; null: none. */
export type Responses = Readonly<Record<number, z.ZodType | null>>

/** What a handler answers. */
export type ReplyOf<R extends Responses> = {
  [S in keyof R & number]: {
    readonly status: S
    readonly body: R[S] extends z.ZodType ? z.input<R[S]> : undefined
  } & ReplyMembers
}[keyof R & number]

export interface EndpointRequest<P, Q, B, R extends Responses> {
  readonly params: P
  readonly query: Q
  readonly body: B
  readonly caller: Caller
  /** For reading. What changes goes through `write`. */
  readonly db: Db
  /** If-Match: the versions that the caller has seen; undefined: any */
  readonly expectedVersions: ExpectedVersions
  /** If-Match was sent: there must be something to change */
  readonly mustExist: boolean
  /** `If-None-Match: *` was sent: create, never replace */
  readonly mustNotExist: boolean
  /** of the request, without its query: what links begin with */
  readonly path: string
  /** aborted when the deadline passes or the caller leaves */
  readonly signal: AbortSignal
  /**
   * What the patch makes of the present document, checked as a whole.
   * @throws Problem VALIDATION_ERROR, or CONFLICT for an operation that does not fit the document
   */
  readonly patched: (current: object) => B
  /** Whether the patch says what this member shall be, even if it says what is so already. */
  readonly patches: (member: string) => boolean
  /** Runs the change in one transaction, and has its answer checked and kept there. To be called once. */
  readonly write: <T extends ReplyOf<R>>(change: (trx: Trx, actor: Actor) => Promise<T>) => Promise<T>
}

/** Since when, and until when. */
export interface Lifecycle {
  /** the version of the document that introduced it: `1.1.0` */
  readonly since?: string
  /** from then on answers carry Deprecation (RFC 9745) and Sunset (RFC 8594) */
  readonly deprecatedAt?: Date
  /** from then on the answer is 410 */
  readonly goneAt?: Date
  /** the path of what takes its place */
  readonly successor?: string
  /** an address that says how to move */
  readonly migrationGuide?: string
}

/** The body of a request that is refused. */
export interface RefusedBody {
  /** as it was sent, or as a patch would make it */
  readonly body: Readonly<Record<string, unknown>>
  /** of the path */
  readonly params: Readonly<Record<string, string>>
  readonly db: Db
}

export interface Declaration<P extends z.ZodObject, Q extends z.ZodObject, B extends z.ZodType, R extends Responses> {
  readonly method: Method
  /** as OpenAPI writes it: `/v1/users/{user_id}` */
  readonly path: string
  /** `listUsers`: what the operation is called in generated code */
  readonly name: string
  readonly summary: string
  readonly description?: string
  /** the heading it stands under */
  readonly tag: string
  readonly access: Access
  readonly params?: P
  readonly query?: Q
  /** For PATCH it is the whole document as it may be after the patch. */
  readonly body?: B
  /** for PATCH: what the body of a merge patch is called in the document, and one of it; the rest follows from `body` */
  readonly mergePatch?: { readonly id: string; readonly example: object }
  /**
   * What else is wrong with the body of a request that a schema refuses, so that all of it is said at once: what the
   * handler would refuse of those members that can be judged without the others.
   */
  readonly alsoWrong?: (refused: RefusedBody) => Promise<readonly FieldError[]>
  readonly responses: R
  /** refusals of its own, besides those that its parts imply */
  readonly problems?: readonly ProblemCode[]
  /**
   * What stands at this path has a version, and the handler looks at the `expectedVersions` of its request. Elsewhere a
   * change that names versions is refused: nothing there is in any of them.
   */
  readonly isVersioned?: boolean
  /** a change must say what it is based on (428 without If-Match) */
  readonly requiresMatch?: boolean
  /** of the answer; `private, no-cache` for GET and `no-store` for everything else when left out */
  readonly cacheControl?: string
  /** in seconds; never longer than the server's own */
  readonly deadlineSeconds?: number
  readonly maxBodyBytes?: number
  readonly lifecycle?: Lifecycle
  handle(request: EndpointRequest<z.output<P>, z.output<Q>, z.output<B>, R>): Promise<ReplyOf<R>>
}

/** A declaration whose own types nobody needs any more. */
export interface Endpoint extends Omit<Declaration<z.ZodObject, z.ZodObject, z.ZodType, Responses>, 'handle'> {
  handle(request: ErasedRequest): Promise<ErasedReply>
}

export type ErasedReply = {
  readonly status: number
  readonly body: unknown
} & ReplyMembers

export interface ErasedRequest extends Omit<EndpointRequest<unknown, unknown, unknown, Responses>, 'write'> {
  readonly write: (change: (trx: Trx, actor: Actor) => Promise<ErasedReply>) => Promise<ErasedReply>
}

/**
 * An answer, with its status as a literal.
 *
 * @param more the row's `version`, and headers
 */
export function reply<const S extends number, B>(
  status: S,
  body: B,
  more?: ReplyMembers,
): { readonly status: S; readonly body: B } & ReplyMembers {
  return { status, body, ...more }
}

/** What an answer may have beside its status and body. */
export interface ReplyMembers {
  readonly headers?: Readonly<Record<string, string>>
  /** the row's version: what If-Match is held against, and part of the ETag */
  readonly version?: number
}

/**
 * @example
 * endpoint({
 *   method: 'GET',
 *   path: '/v1/roles/{name}',
 *   name: 'getRole',
 *   summary: 'One role',
 *   tag: 'Roles',
 *   access: holdersOf('roles:read'),
 *   params: z.object({ name: roleName }),
 *   responses: { 200: roleBody },
 *   async handle({ db, params }) {
 *     const role = await getRole(db, params.name)
 *     return reply(200, describeRole(role), { version: role.row_version })
 *   },
 * })
 */
export function endpoint<P extends z.ZodObject, Q extends z.ZodObject, B extends z.ZodType, const R extends Responses>(
  declaration: Declaration<P, Q, B, R>,
): Endpoint {
  return declaration as unknown as Endpoint
}
