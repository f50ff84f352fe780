/** `latchkey users …`: people, whether they may sign in, and their passwords. */
import { randomBytes } from 'node:crypto'
import type { Command } from 'commander'
import { pino } from 'pino'
import { effectivePermissions } from '../access/rights.ts'
import { assignRole, findRolesOf } from '../access/roles.ts'
import type { Db } from '../database/database.ts'
import { openAttributes, type AttributeDeclaration } from '../users/attributes.ts'
import { openPasswords, type PasswordHash } from '../users/password.ts'
import {
  createUser,
  disableUser,
  enableUser,
  findUser,
  findUserByLogin,
  listUsers,
  revokeEverythingOfUser,
  setPassword,
  type User,
} from '../users/users.ts'
import { readWorkFactor } from '../users/work-factor.ts'
import {
  CommandFailed,
  parsePair,
  parseWholeNumber,
  printJson,
  printTable,
  repeated,
  UsageError,
  writePermission,
  type CommandContext,
} from './command.ts'

interface PasswordOptions {
  readonly passwordStdin?: true
  readonly generatePassword?: true
}

interface CreateOptions extends PasswordOptions {
  readonly name?: string
  readonly emailVerified?: true
  readonly attribute: readonly string[]
  readonly role: readonly string[]
  readonly json?: true
}

export function addUsers(program: Command, context: CommandContext): void {
  const { io, actor, withDatabase } = context
  const users = program.command('users').description('people, whether they may sign in, and their passwords')

  withPasswordOptions(users.command('create'))
    .description('add a person; without a password they cannot sign in by one')
    .argument('<email>')
    .option('--name <name>', 'the full name')
    .option('--email-verified', 'the address is known to be theirs')
    .option('--attribute <name=value>', 'such as department=legal or clearance=3; may be repeated', repeated, [])
    .option('--role <role>', 'may be repeated', repeated, [])
    .option('--json', 'print JSON')
    .action(async (email: string, options: CreateOptions) => {
      refuseBothPasswords(options)
      const given = Object.fromEntries(options.attribute.map(parsePair))
      const { user, password } = await withDatabase(async ({ db }) => {
        const declaration = openAttributes(context.config.userAttributesFile)
        const attributes = declaration.parse(withTypes(given, declaration))
        const chosen = await choosePassword(context, db, options, email)
        const user = await db.transaction().execute(async (trx) => {
          const created = await createUser(trx, actor, {
            email,
            name: options.name,
            emailVerified: options.emailVerified === true,
            attributes,
            passwordHash: chosen?.hash,
          })
          for (const role of options.role) await assignRole(trx, actor, { user_id: created.id, role })
          return created
        })
        return { user, password: chosen?.generated }
      })
      if (options.json) {
        printJson(io, { ...user, roles: options.role, ...(password === undefined ? {} : { password }) })
        return
      }
      io.out(user.id)
      printGenerated(context, password)
    })

  users
    .command('list')
    .description('list people in the order in which they were added')
    .option('--limit <n>', 'how many, from 1 to 200', '200')
    .option('--after <position>', 'where the list before this one ended')
    .option('--json', 'print JSON')
    .action(async ({ limit, after, json }: { limit: string; after?: string; json?: true }) => {
      const page = await withDatabase(({ db }) => listUsers(db, { limit: parseWholeNumber('--limit', limit), after }))
      if (json) printJson(io, page.users)
      else
        printTable(
          io,
          ['id', 'email', 'status', 'created'],
          page.users.map(({ id, email, account_status, created_at }) => [
            id,
            email,
            account_status,
            created_at.toISOString(),
          ]),
        )
      if (page.after !== undefined) io.err(`There are more: --after ${page.after}`)
    })

  users
    .command('disable')
    .description('shut a person out: sessions and tokens end at once')
    .argument('<user>', 'an id or an email address')
    .option('--reason <words>', 'for the audit record')
    .option('--json', 'print JSON')
    .action(async (name: string, { reason, json }: { reason?: string; json?: true }) => {
      refuseLong(reason)
      const user = await withDatabase(({ db }) =>
        db.transaction().execute(async (trx) => {
          const { id } = await findUserByName(trx, name)
          return disableUser(trx, actor, { userId: id, reason })
        }),
      )
      if (json) printJson(io, user)
      else io.err(`${user.email} is shut out; sessions and tokens have ended.`)
    })

  users
    .command('revoke')
    .description('sign a person out everywhere: sessions, grants and tokens end at once; they may sign in again')
    .argument('<user>', 'an id or an email address')
    .option('--reason <words>', 'for the audit record', 'revoked by an operator')
    .option('--consents', 'forget as well what they agreed to')
    .option('--json', 'print JSON')
    .action(async (name: string, options: { reason: string; consents?: true; json?: true }) => {
      const { reason, json } = options
      refuseLong(reason)
      const { user, ended } = await withDatabase(({ db }) =>
        db.transaction().execute(async (trx) => {
          const { id } = await findUserByName(trx, name)
          return revokeEverythingOfUser(trx, actor, { userId: id, reason, consents: options.consents === true })
        }),
      )
      if (json) printJson(io, { id: user.id, email: user.email, ended })
      else {
        const consents = options.consents === true ? `, ${ended.consents} consents forgotten` : ''
        io.err(`${user.email} is signed out: ${ended.sessions} sessions and ${ended.grants} grants ended${consents}.`)
      }
    })

  users
    .command('enable')
    .description('let a person in again')
    .argument('<user>', 'an id or an email address')
    .option('--json', 'print JSON')
    .action(async (name: string, { json }: { json?: true }) => {
      const user = await withDatabase(({ db }) =>
        db.transaction().execute(async (trx) => {
          const { id } = await findUserByName(trx, name)
          return enableUser(trx, actor, { userId: id })
        }),
      )
      if (json) printJson(io, user)
      else io.err(`${user.email} may sign in again.`)
    })

  withPasswordOptions(users.command('set-password'))
    .description('give a person another password; sessions and tokens end. Reads it from standard input')
    .argument('<user>', 'an id or an email address')
    .option('--json', 'print JSON')
    .action(async (name: string, options: PasswordOptions & { json?: true }) => {
      refuseBothPasswords(options)
      const { user, password } = await withDatabase(async ({ db }) => {
        const { id, email } = await findUserByName(db, name)
        const source = options.generatePassword ? options : ({ passwordStdin: true } as const)
        const chosen = await choosePassword(context, db, source, email)
        if (chosen === undefined) throw new UsageError('there is no password')
        const user = await db
          .transaction()
          .execute((trx) => setPassword(trx, actor, { userId: id, passwordHash: chosen.hash }))
        return { user, password: chosen.generated }
      })
      if (options.json) {
        printJson(io, { ...user, ...(password === undefined ? {} : { password }) })
        return
      }
      io.err(`${user.email} has a new password; sessions and tokens have ended.`)
      printGenerated(context, password)
    })

  users
    .command('roles')
    .description('what a person may do, and by which roles')
    .argument('<user>', 'an id or an email address')
    .option('--json', 'print JSON')
    .action(async (name: string, { json }: { json?: true }) => {
      const { user, roles, permissions } = await withDatabase(async ({ db }) => {
        const user = await findUserByName(db, name)
        return {
          user,
          roles: await findRolesOf(db, user.id),
          permissions: await effectivePermissions(db, user.id),
        }
      })
      if (json) printJson(io, { id: user.id, email: user.email, roles, permissions })
      else {
        printTable(
          io,
          ['role'],
          roles.map((role) => [role]),
        )
        io.err(`${user.email} may: ${permissions.map(writePermission).join(' ') || 'nothing'}`)
      }
    })
}

function refuseLong(reason: string | undefined): void {
  if (reason !== undefined && reason.length > 200) throw new UsageError('--reason must be 200 characters at most')
}

/** @throws CommandFailed when there is nobody with that id or address */
export async function findUserByName(db: Db, name: string): Promise<User> {
  const user = name.startsWith('usr_') ? await findUser(db, name) : await findUserByLogin(db, name)
  if (user === undefined) throw new CommandFailed(`There is no user ${name}.`)
  return user
}

function withPasswordOptions(command: Command): Command {
  return command
    .option('--password-stdin', 'read the password from standard input')
    .option('--generate-password', 'make a random password, and print it this once')
}

function refuseBothPasswords({ passwordStdin, generatePassword }: PasswordOptions): void {
  if (passwordStdin && generatePassword) {
    throw new UsageError('--password-stdin and --generate-password exclude each other')
  }
}

/** @returns undefined when none was asked for */
async function choosePassword(
  { config, io }: CommandContext,
  db: Db,
  { passwordStdin, generatePassword }: PasswordOptions,
  email: string,
): Promise<{ hash: PasswordHash; generated: string | undefined } | undefined> {
  if (!passwordStdin && !generatePassword) return undefined
  const generated = generatePassword ? randomBytes(18).toString('base64url') : undefined
  const plain = generated ?? (await io.stdin()).replace(/\r?\n$/, '')
  const passwords = openPasswords({
    config,
    workFactor: await readWorkFactor(db, config),
    log: pino({ level: 'silent' }),
  })
  const problems = passwords.check(plain, { words: [email] })
  if (problems.length > 0) throw new CommandFailed(problems.map(({ message }) => message).join('\n'))
  return { hash: await passwords.hash(plain), generated }
}

function printGenerated({ io }: CommandContext, password: string | undefined): void {
  if (password === undefined) return
  io.err('The password, which is shown this once:')
  io.out(password)
}

/** `clearance=3` is a number where the deployment declares a number. */
function withTypes(given: Record<string, string>, { schema }: AttributeDeclaration): Record<string, unknown> {
  const { properties } = schema as { properties?: Record<string, { type?: unknown }> }
  return Object.fromEntries(
    Object.entries(given).map(([name, text]) => {
      const type = properties?.[name]?.type
      if ((type === 'integer' || type === 'number') && /^-?\d+(\.\d+)?$/.test(text)) return [name, Number(text)]
      if (type === 'boolean' && /^(true|false)$/.test(text)) return [name, text === 'true']
      return [name, text]
    }),
  )
}
