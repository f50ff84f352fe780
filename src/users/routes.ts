/** `/v1/users`: people. Their roles are access/routes.ts's, their sessions and grants oauth/session-routes.ts's. */
import { isDeepStrictEqual } from 'node:util'
import { sql, type SqlBool } from 'kysely'
import { z } from 'zod'
import { userParams } from '../access/routes.ts'
import type { CursorSigner } from '../http/cursor.ts'
import {
  endpoint,
  holdersOf,
  holdersOrSelf,
  reply,
  type Caller,
  type Endpoint,
  type RefusedBody,
} from '../http/endpoint.ts'
import { filter, listOf } from '../http/list-query.ts'
import { pageBody, someOf } from '../http/page-body.ts'
import { readPage } from '../http/pagination.ts'
import { booleanParameter, textParameter, timestampParameter } from '../http/query-parameters.ts'
import { fittingMembers, invalidFields, Problem, type FieldError } from '../problems.ts'
import type { AttributeDeclaration } from './attributes.ts'
import type { Passwords } from './password.ts'
import {
  createUser,
  deleteUser,
  findUser,
  getUser,
  normalizeLogin,
  setPassword,
  updateUser,
  userColumns,
  userDocumentSchema,
  type User,
  type UserDocument,
} from './users.ts'

export interface UserRoutesParts {
  readonly passwords: Passwords
  readonly attributes: AttributeDeclaration
  readonly cursors: CursorSigner
  /**
   * Whether this is the password of whoever signs in under that address; counted as every other attempt is.
   * @throws Problem RATE_LIMIT_EXCEEDED after too many wrong ones
   */
  readonly provePassword: (attempt: {
    readonly login: string
    readonly password: string
    readonly network: string
    readonly requestId: string | undefined
  }) => Promise<boolean>
}

const example = {
  user_id: 'usr_2Kx8mQ4vTz9LrN1cYp7WfA',
  email: 'alice@example.com',
  email_verified: true,
  name: 'Alice Example',
  is_active: true,
  profile: { given_name: 'Alice', family_name: 'Example', locale: 'en-GB' },
  attributes: { department: 'engineering', seniority: 5 },
  password_changed_at: '2026-01-15T10:30:00.000Z',
  created_at: '2026-01-15T10:30:00.000Z',
  updated_at: '2026-01-20T10:00:00.000Z',
}

/** A person as the API shows one. */
export const userBody = z
  .object({
    user_id: z.string(),
    email: z.string(),
    email_verified: z.boolean(),
    name: z.string().nullable(),
    is_active: z.boolean().meta({ description: 'Whether this person may sign in' }),
    profile: z.record(z.string(), z.unknown()).meta({ description: 'Standard claims of OpenID Connect Core §5.1' }),
    attributes: z.record(z.string(), z.unknown()).meta({ description: 'What this deployment declares about people' }),
    password_changed_at: z.iso.datetime().nullable(),
    created_at: z.iso.datetime(),
    updated_at: z.iso.datetime(),
  })
  .meta({ id: 'User', example })

export function describeUser(user: User): z.input<typeof userBody> {
  return {
    user_id: user.id,
    email: user.email,
    email_verified: user.email_verified,
    name: user.name,
    is_active: user.account_status === 'active',
    profile: user.profile,
    attributes: user.attributes,
    password_changed_at: user.password_changed_at?.toISOString() ?? null,
    created_at: user.created_at.toISOString(),
    updated_at: user.updated_at.toISOString(),
  }
}

const fields = Object.keys(userBody.shape) as [keyof typeof userBody.shape, ...(keyof typeof userBody.shape)[]]

const userList = listOf({
  name: 'users',
  sort: {
    created_at: { column: sql.ref('users.created_at'), type: 'timestamp' },
    updated_at: { column: sql.ref('users.updated_at'), type: 'timestamp' },
    email: { column: sql.ref('users.email_normalized'), type: 'text' },
    name: { column: sql.ref('users.name'), type: 'text', nullable: true },
  },
  defaultSort: 'created_at',
  tieBreak: { name: 'user_id', column: sql.ref('users.id'), type: 'text' },
  filters: {
    is_active: filter(
      booleanParameter('Only people who may sign in, or only those who may not'),
      (isActive) => sql<SqlBool>`users.account_status = ${isActive ? 'active' : 'disabled'}`,
    ),
    email: filter(
      textParameter(254, {
        description: 'The person with this address, in any spelling',
        example: 'alice@example.com',
      }),
      (email) => sql<SqlBool>`users.email_normalized = ${normalizeLogin(email)}`,
    ),
    email_verified: filter(
      booleanParameter('Only verified addresses, or only others'),
      (isVerified) => sql<SqlBool>`users.email_verified = ${isVerified}`,
    ),
    role: filter(
      textParameter(64, { description: 'Only people to whom this role is assigned', example: 'administrator' }),
      (role) => sql<SqlBool>`EXISTS (SELECT 1 FROM user_roles r WHERE r.user_id = users.id AND r.role = ${role})`,
    ),
    created_after: filter(
      timestampParameter('Only people who were created at this moment or later'),
      (at) => sql<SqlBool>`users.created_at >= ${at}::timestamptz`,
    ),
    created_before: filter(
      timestampParameter('Only people who were created before this moment'),
      (at) => sql<SqlBool>`users.created_at < ${at}::timestamptz`,
    ),
  },
  fields,
})

const password = z
  .string()
  .min(1)
  .max(1_024)
  .meta({ description: 'Write-only. 8 characters at least; common ones are refused' })

const createBody = userDocumentSchema
  .omit({ is_active: true })
  .extend({ password: password.optional() })
  .meta({
    id: 'CreateUser',
    example: { email: 'carol@example.com', password: 'a long enough phrase', name: 'Carol Chen' },
  })
const replaceBody = userDocumentSchema.meta({
  id: 'ReplaceUser',
  description: 'Members that are left out are emptied, but for `is_active`, which then stays.',
  example: { email: 'carol.new@example.com', name: 'Carol Chen', is_active: false },
})
const mergePatch = {
  id: 'PatchUser',
  example: { email: 'carol.new@example.com', profile: { nickname: 'Caz', middle_name: null } },
}
const passwordBody = z
  .strictObject({
    password,
    current_password: z
      .string()
      .max(1_024)
      .optional()
      .meta({ description: 'Needed from people who change their own password' }),
  })
  .meta({ id: 'SetPassword', example: { password: 'a long enough phrase' } })

const tag = 'Users'
const read = holdersOrSelf('users:read', 'self:read', 'user_id')
const write = holdersOrSelf('users:write', 'self:write', 'user_id')

export function userRoutes({ passwords, attributes, cursors, provePassword }: UserRoutesParts): readonly Endpoint[] {
  function findWrongPassword(plain: string | undefined, email: string | undefined): FieldError[] {
    const problems = plain === undefined ? [] : passwords.check(plain, { email })
    return problems.map(({ constraint, message }) => ({ field: 'password', constraint, message }))
  }

  async function findWrongAttributes({ body }: RefusedBody): Promise<readonly FieldError[]> {
    const { attributes: given } = fittingMembers(userDocumentSchema, body)
    const checked = given === undefined ? undefined : attributes.check(given)
    return checked === undefined || checked.success ? [] : checked.details
  }

  return [
    endpoint({
      method: 'GET',
      path: '/v1/users',
      name: 'listUsers',
      summary: 'People, in pages',
      tag,
      access: holdersOf('users:read'),
      query: userList.query,
      responses: { 200: pageBody('users', userBody, 'user_id', '/v1/users') },
      async handle({ db, query, path }) {
        const base = db.selectFrom('users').select(userColumns)
        const { items, pagination } = await readPage(db, userList, base, query, { signer: cursors, path })
        const users = items.map((user) => userList.pickFields(describeUser(user), query.fields))
        return reply(200, { users, pagination })
      },
    }),
    endpoint({
      method: 'POST',
      path: '/v1/users',
      name: 'createUser',
      summary: 'Create a person',
      tag,
      access: holdersOf('users:write'),
      body: createBody,
      async alsoWrong(refused) {
        const { password, email } = fittingMembers(createBody, refused.body)
        return [...findWrongPassword(password, email), ...(await findWrongAttributes(refused))]
      },
      responses: { 201: userBody },
      problems: ['CONFLICT'],
      async handle({ body, write }) {
        const { password, attributes: given, email_verified: emailVerified, ...rest } = body
        const checked = attributes.check(given)
        const wrong = [...(checked.success ? [] : checked.details), ...findWrongPassword(password, body.email)]
        if (!checked.success || wrong.length > 0) throw invalidFields(wrong)
        const passwordHash = password === undefined ? undefined : await passwords.hash(password)
        return write(async (trx, actor) => {
          const user = await createUser(trx, actor, { ...rest, emailVerified, attributes: checked.data, passwordHash })
          return {
            status: 201,
            body: describeUser(user),
            version: user.row_version,
            headers: { Location: `/v1/users/${user.id}` },
          }
        })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/users/{user_id}',
      name: 'getUser',
      summary: 'One person',
      tag,
      access: read,
      params: userParams,
      query: z.strictObject({ fields: userList.query.shape.fields }),
      responses: { 200: someOf(userBody, 'user_id') },
      async handle({ db, params, query }) {
        const user = await getUser(db, params.user_id)
        return reply(200, userList.pickFields(describeUser(user), query.fields), { version: user.row_version })
      },
    }),
    endpoint({
      method: 'PUT',
      path: '/v1/users/{user_id}',
      name: 'replaceUser',
      summary: 'Replace what is known about a person',
      description: 'Roles and status stay as they are. A replacement that has been made already answers 200 again.',
      tag,
      access: write,
      params: userParams,
      body: replaceBody,
      alsoWrong: findWrongAttributes,
      isVersioned: true,
      responses: { 200: userBody },
      problems: ['CONFLICT'],
      async handle({ params, body, caller, expectedVersions, write }) {
        return write(async (trx, actor) => {
          const user = await updateUser(trx, actor, {
            userId: params.user_id,
            expectedVersions,
            isReplacement: true,
            to: (before) => onlyOwn(caller, before, { ...body, is_active: body.is_active ?? before.is_active }),
            parseAttributes: (given) => attributes.parse(given),
          })
          return reply(200, describeUser(user), { version: user.row_version })
        })
      },
    }),
    endpoint({
      method: 'PATCH',
      path: '/v1/users/{user_id}',
      name: 'updateUser',
      summary: 'Change something about a person, or whether they may sign in',
      description:
        '`is_active: false` shuts a person out and ends everything they began. People may change their own `name` and `profile`.',
      tag,
      access: write,
      params: userParams,
      body: userDocumentSchema,
      alsoWrong: findWrongAttributes,
      mergePatch,
      isVersioned: true,
      responses: { 200: userBody },
      problems: ['CONFLICT'],
      async handle({ params, caller, patched, patches, expectedVersions, write }) {
        return write(async (trx, actor) => {
          const user = await updateUser(trx, actor, {
            userId: params.user_id,
            expectedVersions,
            to: (before) => {
              const after = onlyOwn(caller, before, patched(before))
              // An address that nobody has verified is not verified because its predecessor was.
              const isUnverified = after.email !== before.email && !patches('email_verified')
              return isUnverified ? { ...after, email_verified: false } : after
            },
            parseAttributes: (given) => attributes.parse(given),
          })
          return reply(200, describeUser(user), { version: user.row_version })
        })
      },
    }),
    endpoint({
      method: 'DELETE',
      path: '/v1/users/{user_id}',
      name: 'deleteUser',
      summary: 'Remove a person and everything kept about them',
      description: 'The audit record stays: it says who they were, and what was done.',
      tag,
      access: holdersOf('users:write'),
      params: userParams,
      isVersioned: true,
      responses: { 204: null },
      problems: ['CONFLICT'],
      async handle({ params, expectedVersions, write }) {
        return write(async (trx, actor) => {
          await deleteUser(trx, actor, { userId: params.user_id, expectedVersions })
          return reply(204, undefined)
        })
      },
    }),
    endpoint({
      method: 'PUT',
      path: '/v1/users/{user_id}/password',
      name: 'setPassword',
      summary: 'Give a person another password',
      description: 'It ends everything that the old one began: sessions, refresh tokens, access tokens.',
      tag,
      access: write,
      params: userParams,
      body: passwordBody,
      async alsoWrong({ body, params, db }) {
        const user = await findUser(db, params['user_id'] ?? '')
        return findWrongPassword(fittingMembers(passwordBody, body).password, user?.email)
      },
      responses: { 204: null },
      async handle({ db, params, body, caller, write }) {
        const { email } = await getUser(db, params.user_id)
        // A token that somebody left lying about must not become a password.
        if (caller.userId === params.user_id) {
          const { network, actor } = caller
          const attempt = { login: email, password: body.current_password ?? '', network, requestId: actor.requestId }
          if (!(await provePassword(attempt))) throw wrongPassword()
        }
        const wrong = findWrongPassword(body.password, email)
        if (wrong.length > 0) throw invalidFields(wrong)
        const passwordHash = await passwords.hash(body.password)
        return write(async (trx, actor) => {
          await setPassword(trx, actor, { userId: params.user_id, passwordHash })
          return reply(204, undefined)
        })
      },
    }),
  ]
}

/** What people may change about themselves; the rest says what they may do, or that somebody checked it. */
const own: readonly (keyof UserDocument)[] = ['name', 'profile']

function onlyOwn(caller: Caller, before: UserDocument, after: UserDocument): UserDocument {
  if (caller.scopes.has('users:write')) return after
  const beyond = (Object.keys(before) as (keyof UserDocument)[]).filter(
    (name) => !own.includes(name) && !isDeepStrictEqual(before[name], after[name]),
  )
  const verified = before.profile.phone_number_verified !== after.profile.phone_number_verified
  const names = verified ? [...beyond, 'profile.phone_number_verified'] : beyond
  if (names.length === 0) return after
  throw new Problem('AUTHORIZATION_ERROR', `Only somebody with users:write may change ${names.join(', ')}.`, {
    details: names.map((field) => ({ field, constraint: 'forbidden', message: 'Not yours to change' })),
  })
}

function wrongPassword(): Problem {
  return new Problem('AUTHORIZATION_ERROR', 'The current password is not right.', {
    details: [{ field: 'current_password', constraint: 'matches', message: 'Must be your current password' }],
  })
}
