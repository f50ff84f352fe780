/** `latchkey resources …`: the APIs that access tokens are for. */
import type { Command } from 'commander'
import { createResource, deleteResource, listResources, updateResource, type Resource } from '../oauth/resources.ts'
import {
  parsePair,
  parseWholeNumber,
  printJson,
  printTable,
  repeated,
  UsageError,
  type CommandContext,
  type CommandIo,
} from './command.ts'

interface ResourceOptions {
  readonly name?: string
  readonly lifetime?: string
  readonly permission: readonly string[]
  readonly attributeClaim: readonly string[]
  readonly json?: true
}

export function addResources(program: Command, { io, actor, withDatabase }: CommandContext): void {
  const resources = program.command('resources').description('the APIs that access tokens are for')

  withResourceOptions(resources.command('create'))
    .description('register an API: the audience of its tokens, and its permissions')
    .argument('<uri>', 'the resource indicator, and `aud` of its tokens: https://api.example.com')
    .action(async (id: string, options: ResourceOptions) => {
      const given = resourceInput(options)
      const created = await withDatabase(({ db }) =>
        db.transaction().execute((trx) => createResource(trx, actor, { id, ...given })),
      )
      if (options.json) printJson(io, created)
      else io.out(`${created.id} is registered, with ${created.permissions.length} permissions.`)
    })

  resources
    .command('list')
    .description('list the APIs and their permissions')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: true }) => {
      const found = await withDatabase(({ db }) => listResources(db))
      if (json) printJson(io, found)
      else printResources(io, found)
    })

  withResourceOptions(resources.command('update'))
    .description('change what is given; permissions, when given, replace all, and those left out end with their tokens')
    .argument('<uri>')
    .action(async (id: string, options: ResourceOptions) => {
      const given = resourceInput(options)
      const updated = await withDatabase(({ db }) =>
        db.transaction().execute((trx) => updateResource(trx, actor, { id, ...given })),
      )
      if (options.json) printJson(io, updated)
      else printResources(io, [updated])
    })

  resources
    .command('delete')
    .description('remove an API, its permissions from every role and client, and the tokens of those clients')
    .argument('<uri>')
    .option('--yes', 'really')
    .action(async (id: string, { yes }: { yes?: true }) => {
      if (!yes) throw new UsageError('this takes the permissions from every role and client: confirm it with --yes')
      await withDatabase(({ db }) => db.transaction().execute((trx) => deleteResource(trx, actor, { id })))
      io.err(`${id} is deleted.`)
    })
}

function withResourceOptions(command: Command): Command {
  return command
    .option('--name <name>', 'as people read it')
    .option('--lifetime <seconds>', 'how long its access tokens live (default: 900)')
    .option(
      '--permission <type:action=words>',
      'a permission, and what it allows in words; may be repeated',
      repeated,
      [],
    )
    .option(
      '--attribute-claim <claim=attribute>',
      "puts a person's attribute into the tokens; may be repeated",
      repeated,
      [],
    )
    .option('--json', 'print JSON')
}

function resourceInput({ name, lifetime, permission, attributeClaim }: ResourceOptions) {
  return {
    ...(name === undefined ? {} : { name }),
    ...(lifetime === undefined ? {} : { access_token_lifetime_seconds: parseWholeNumber('--lifetime', lifetime) }),
    ...(permission.length === 0
      ? {}
      : {
          permissions: permission.map((text) => {
            const [permission, description] = text.includes('=') ? parsePair(text) : [text, '']
            return { permission, description }
          }),
        }),
    ...(attributeClaim.length === 0 ? {} : { attribute_claims: Object.fromEntries(attributeClaim.map(parsePair)) }),
  }
}

function printResources(io: CommandIo, resources: readonly Resource[]): void {
  printTable(
    io,
    ['resource', 'name', 'token lifetime', 'permissions'],
    resources.map(({ id, name, access_token_lifetime_seconds, permissions }) => [
      id,
      name,
      `${access_token_lifetime_seconds} s`,
      permissions.map(({ permission }) => permission).join(' '),
    ]),
  )
}
