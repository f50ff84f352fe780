/** `latchkey roles …`: what people may do, by role. */
import type { Command } from 'commander'
import {
  assignRole,
  createRole,
  deleteRole,
  excludeRole,
  findRolesOf,
  getRole,
  grantPermission,
  includeRole,
  listRoles,
  revokePermission,
  unassignRole,
} from '../access/roles.ts'
import {
  parsePermission,
  printJson,
  printTable,
  repeated,
  UsageError,
  writePermission,
  type CommandContext,
} from './command.ts'
import { findUserByName } from './users.ts'

interface CreateOptions {
  readonly description: string
  readonly permission: string[]
  readonly include: string[]
  readonly json?: true
}

export function addRoles(program: Command, { io, actor, withDatabase }: CommandContext): void {
  const roles = program.command('roles').description('what people may do, by role')

  roles
    .command('create')
    .description('make a role')
    .argument('<role>')
    .option('--description <words>', 'what it is for', '')
    .option('--permission <type:action@resource>', 'what it allows; may be repeated', repeated, [])
    .option('--include <role>', 'a role whose permissions it allows too; may be repeated', repeated, [])
    .option('--json', 'print JSON')
    .action(async (name: string, options: CreateOptions) => {
      const permissions = options.permission.map(parsePermission)
      const { description, include: includes } = options
      const role = await withDatabase(({ db }) =>
        db.transaction().execute((trx) => createRole(trx, actor, { name, description, permissions, includes })),
      )
      if (options.json) printJson(io, role)
      else io.out(`The role ${role.name} is made, with ${role.effective_permissions.length} permissions.`)
    })

  roles
    .command('list')
    .description('list the roles, what they allow and include, and how many people they are assigned to')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: true }) => {
      const found = await withDatabase(({ db }) => listRoles(db))
      if (json) printJson(io, found)
      else
        printTable(
          io,
          ['role', 'users', 'includes', 'permissions'],
          found.map(({ name, users, includes, permissions }) => [
            name,
            String(users),
            includes.join(' '),
            permissions.map(writePermission).join(' '),
          ]),
        )
    })

  roles
    .command('delete')
    .description('remove a role from everyone who has it; their tokens end')
    .argument('<role>')
    .option('--yes', 'really')
    .action(async (name: string, { yes }: { yes?: true }) => {
      if (!yes) throw new UsageError('this takes the role from everyone who has it: confirm it with --yes')
      await withDatabase(({ db }) => db.transaction().execute((trx) => deleteRole(trx, actor, { name })))
      io.err(`The role ${name} is deleted.`)
    })

  const changes = [
    { verb: 'grant', change: grantPermission, about: 'let a role do something', none: 'allowed that already' },
    {
      verb: 'revoke',
      change: revokePermission,
      about: 'take a permission from a role; the tokens of everyone who has it end',
      none: 'did not allow that',
    },
  ] as const
  for (const { verb, change, about, none } of changes) {
    roles
      .command(verb)
      .description(about)
      .argument('<role>')
      .argument('<type:action@resource...>')
      .option('--json', 'print JSON')
      .action(async (role: string, texts: string[], { json }: { json?: true }) => {
        const permissions = texts.map(parsePermission)
        const { unchanged, after } = await withDatabase(({ db }) =>
          db.transaction().execute(async (trx) => {
            const unchanged: string[] = []
            for (const permission of permissions) {
              const isChanged = await change(trx, actor, { role, ...permission })
              if (!isChanged) unchanged.push(writePermission(permission))
            }
            return { unchanged, after: await getRole(trx, role) }
          }),
        )
        for (const permission of unchanged) io.err(`${role} ${none}: ${permission}`)
        if (json) printJson(io, after)
        else io.out(`${role} allows: ${after.permissions.map(writePermission).join(' ') || 'nothing'}`)
      })
  }

  const inclusions = [
    {
      verb: 'include',
      change: includeRole,
      about: 'let a role do all that others may do, now and later',
      none: 'included that already',
    },
    {
      verb: 'exclude',
      change: excludeRole,
      about: 'take that back; the tokens of everyone who loses by it end',
      none: 'did not include that',
    },
  ] as const
  for (const { verb, change, about, none } of inclusions) {
    roles
      .command(verb)
      .description(about)
      .argument('<role>')
      .argument('<included...>')
      .option('--json', 'print JSON')
      .action(async (role: string, names: string[], { json }: { json?: true }) => {
        const { unchanged, after } = await withDatabase(({ db }) =>
          db.transaction().execute(async (trx) => {
            const unchanged: string[] = []
            for (const included of names) {
              const isChanged = await change(trx, actor, { role, included })
              if (!isChanged) unchanged.push(included)
            }
            return { unchanged, after: await getRole(trx, role) }
          }),
        )
        for (const name of unchanged) io.err(`${role} ${none}: ${name}`)
        if (json) printJson(io, after)
        else io.out(`${role} includes: ${after.includes.join(' ') || 'nothing'}`)
      })
  }

  const assignments = [
    { verb: 'assign', change: assignRole, about: 'give a person a role', done: 'has', none: 'had' },
    {
      verb: 'unassign',
      change: unassignRole,
      about: "take a role from a person; the person's tokens end",
      done: 'no longer has',
      none: 'did not have',
    },
  ] as const
  for (const { verb, change, about, done, none } of assignments) {
    roles
      .command(verb)
      .description(about)
      .argument('<role>')
      .argument('<user>', 'an id or an email address')
      .option('--json', 'print JSON')
      .action(async (role: string, name: string, { json }: { json?: true }) => {
        const { isChanged, after } = await withDatabase(({ db }) =>
          db.transaction().execute(async (trx) => {
            const { id, email } = await findUserByName(trx, name)
            const isChanged = await change(trx, actor, { user_id: id, role })
            return { isChanged, after: { id, email, roles: await findRolesOf(trx, id) } }
          }),
        )
        io.err(`${name} ${isChanged ? done : none} the role ${role}.`)
        if (json) printJson(io, after)
      })
  }
}
