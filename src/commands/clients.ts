/** `latchkey clients …`: the applications that ask for tokens. */
import { Option, type Command } from 'commander'
import {
  clientTypeOf,
  clientTypes,
  createClient,
  defaultSecretOverlapSeconds,
  deleteClient,
  disableClient,
  enableClient,
  getClient,
  listClients,
  revokeClientSecret,
  revokeEverythingOfClient,
  rotateClientSecret,
  setClientPermissions,
  type Client,
  type ClientType,
} from '../oauth/clients.ts'
import {
  parsePermission,
  parseWholeNumber,
  printJson,
  printTable,
  repeated,
  UsageError,
  writePermission,
  type CommandContext,
} from './command.ts'

interface CreateOptions {
  readonly type: ClientType
  readonly id?: string
  readonly redirectUri: readonly string[]
  readonly postLogoutRedirectUri: readonly string[]
  readonly backchannelLogoutUri?: string
  readonly permission: readonly string[]
  readonly defaultResource?: string
  readonly grant: readonly string[]
  readonly jwksUri?: string
  readonly jwksStdin?: true
  readonly clientUri?: string
  readonly firstParty?: true
  readonly requirePar?: true
  readonly dpop?: true
  readonly json?: true
}

export function addClients(program: Command, { io, actor, withDatabase }: CommandContext): void {
  const clients = program.command('clients').description('the applications that ask for tokens')

  clients
    .command('create')
    .description('register an application; its secret, if it has one, is shown this once')
    .argument('<name>', 'as people read it on the consent page')
    .addOption(
      new Option('--type <type>', 'web has a server, spa runs in the browser, native on a device, machine for itself')
        .choices(clientTypes)
        .makeOptionMandatory(),
    )
    .option('--id <id>', 'the client_id (default: a random one)')
    .option('--redirect-uri <uri>', 'where people are sent back to, exactly; may be repeated', repeated, [])
    .option('--post-logout-redirect-uri <uri>', 'the same after signing out; may be repeated', repeated, [])
    .option('--backchannel-logout-uri <uri>', 'is told when somebody signs out')
    .option('--permission <type:action@resource>', 'what it may ask for; may be repeated', repeated, [])
    .option('--default-resource <uri>', 'the API that is meant when a request names none')
    .option('--grant <grant_type>', 'instead of those that go with the type; may be repeated', repeated, [])
    .option('--jwks-uri <uri>', 'proves who it is by a key that is published there (private_key_jwt), not by a secret')
    .option('--jwks-stdin', 'the same, with the public keys as a JWK Set on standard input')
    .option('--client-uri <uri>', "the application's home page")
    .option('--first-party', 'is ours: people are not asked for consent')
    .option('--require-par', 'must push its authorization requests (RFC 9126)')
    .option('--dpop', 'gets tokens bound to its key only (RFC 9449)')
    .option('--json', 'print JSON')
    .action(async (name: string, options: CreateOptions) => {
      const permissions = options.permission.map(parsePermission)
      const { client, secret } = await withDatabase(async ({ db }) => {
        const jwks = options.jwksStdin ? parseJwks(await io.stdin()) : undefined
        const usesKeys = jwks !== undefined || options.jwksUri !== undefined
        return db.transaction().execute((trx) =>
          createClient(trx, actor, {
            name,
            type: options.type,
            id: options.id,
            redirect_uris: [...options.redirectUri],
            post_logout_redirect_uris: [...options.postLogoutRedirectUri],
            backchannel_logout_uri: options.backchannelLogoutUri,
            permissions,
            default_resource: options.defaultResource,
            // What is no grant type at all, the schema says.
            grant_types: options.grant.length === 0 ? undefined : (options.grant as 'authorization_code'[]),
            token_endpoint_auth_method: usesKeys ? 'private_key_jwt' : undefined,
            jwks_uri: options.jwksUri,
            jwks,
            client_uri: options.clientUri,
            first_party: options.firstParty === true,
            require_pushed_authorization_requests: options.requirePar === true,
            dpop_bound_access_tokens: options.dpop === true,
          }),
        )
      })
      if (options.json) {
        printJson(io, { ...client, ...(secret === undefined ? {} : { client_secret: secret }) })
        return
      }
      io.out(`client_id      ${client.id}`)
      if (secret !== undefined) {
        io.out(`client_secret  ${secret}`)
        io.err('The secret is shown this once: only its hash is kept.')
      }
    })

  clients
    .command('list')
    .description('list the applications, the oldest first')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: true }) => {
      const found = await withDatabase(({ db }) => listClients(db))
      if (json) printJson(io, found)
      else
        printTable(
          io,
          ['client_id', 'name', 'type', 'status'],
          found.map((client) => [client.id, client.name, clientTypeOf(client), client.status]),
        )
    })

  clients
    .command('show')
    .description('print everything about an application but its secrets')
    .argument('<client_id>')
    .option('--json', 'print JSON')
    .action(async (id: string, { json }: { json?: true }) => {
      const client = await withDatabase(({ db }) => getClient(db, id))
      if (json) printJson(io, client)
      else
        printTable(
          io,
          ['field', 'value'],
          describeClient(client).map(([name, value]) => [name, value]),
        )
    })

  for (const { verb, change, about, done } of [
    {
      verb: 'disable',
      change: disableClient,
      about: 'refuse an application everywhere; its tokens end at once',
      done: 'is refused from now on; its tokens have ended.',
    },
    { verb: 'enable', change: enableClient, about: 'let an application in again', done: 'may ask for tokens again.' },
  ]) {
    clients
      .command(verb)
      .description(about)
      .argument('<client_id>')
      .option('--json', 'print JSON')
      .action(async (id: string, { json }: { json?: true }) => {
        const client = await withDatabase(({ db }) => db.transaction().execute((trx) => change(trx, actor, { id })))
        if (json) printJson(io, client)
        else io.err(`${client.id} ${done}`)
      })
  }

  clients
    .command('revoke')
    .description('end everything that an application was given, at once; it may ask again')
    .argument('<client_id>')
    .option('--reason <words>', 'for the audit record', 'revoked by an operator')
    .option('--json', 'print JSON')
    .action(async (id: string, { reason, json }: { reason: string; json?: true }) => {
      if (reason.length > 200) throw new UsageError('--reason must be 200 characters at most')
      const { client, families } = await withDatabase(({ db }) =>
        db.transaction().execute((trx) => revokeEverythingOfClient(trx, actor, { id, reason })),
      )
      if (json) printJson(io, { client_id: client.id, ended: { grants: families } })
      else io.err(`All tokens of ${client.id} have ended, and ${families} grants.`)
    })

  clients
    .command('delete')
    .description('remove an application; its tokens end at once, and its id is free again')
    .argument('<client_id>')
    .option('--yes', 'really')
    .option('--json', 'print JSON')
    .action(async (id: string, { yes, json }: { yes?: true; json?: true }) => {
      if (!yes) throw new UsageError('this removes its secrets and what people agreed to: confirm it with --yes')
      await withDatabase(({ db }) => db.transaction().execute((trx) => deleteClient(trx, actor, { id })))
      if (json) printJson(io, { client_id: id, deleted: true })
      else io.err(`${id} is removed; its tokens have ended.`)
    })

  clients
    .command('rotate-secret')
    .description('make a new secret, shown this once; the present one is accepted a while longer')
    .argument('<client_id>')
    .option('--overlap <seconds>', 'how much longer; 0: no longer', String(defaultSecretOverlapSeconds))
    .option('--json', 'print JSON')
    .action(async (id: string, { overlap, json }: { overlap: string; json?: true }) => {
      const overlap_seconds = parseWholeNumber('--overlap', overlap)
      const { client, secret } = await withDatabase(({ db }) =>
        db.transaction().execute((trx) => rotateClientSecret(trx, actor, { id, overlap_seconds })),
      )
      if (json) {
        printJson(io, { client_id: client.id, client_secret: secret, secrets: client.secrets })
        return
      }
      io.out(secret)
      const old = client.secrets.find(({ expires_at }) => expires_at !== null)
      io.err(
        old === undefined
          ? 'The secret before it is no longer accepted.'
          : `The secret before it is accepted until ${old.expires_at?.toISOString()}.`,
      )
    })

  clients
    .command('revoke-secret')
    .description('stop accepting one secret at once, for it may be known to others; access tokens end too')
    .argument('<client_id>')
    .argument('<secret_id>', 'as `clients show` prints it')
    .option('--json', 'print JSON')
    .action(async (id: string, secret_id: string, { json }: { json?: true }) => {
      const client = await withDatabase(({ db }) =>
        db.transaction().execute((trx) => revokeClientSecret(trx, actor, { id, secret_id })),
      )
      if (json) printJson(io, client)
      else io.err(`${secret_id} is no longer accepted; access tokens have ended.`)
    })

  clients
    .command('set-permissions')
    .description('replace all that an application may ask for; when it loses something, its access tokens end')
    .argument('<client_id>')
    .argument('[type:action@resource...]')
    .option('--json', 'print JSON')
    .action(async (id: string, texts: string[], { json }: { json?: true }) => {
      const permissions = texts.map(parsePermission)
      const client = await withDatabase(({ db }) =>
        db.transaction().execute((trx) => setClientPermissions(trx, actor, { id, permissions })),
      )
      if (json) printJson(io, client)
      else io.out(`${client.id} may ask for: ${client.permissions.map(writePermission).join(' ') || 'nothing'}`)
    })
}

/** What it holds is judged with the rest of the client. */
function parseJwks(text: string): { keys: Record<string, unknown>[] } {
  try {
    return JSON.parse(text) as { keys: Record<string, unknown>[] }
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error
    throw new UsageError('standard input is not JSON: --jwks-stdin wants a JWK Set, {"keys":[…]}')
  }
}

function describeClient(client: Client): [name: string, value: string][] {
  const { permissions, secrets, id, ...rest } = client
  return [
    ['client_id', id],
    ['type', clientTypeOf(client)],
    ...Object.entries(rest)
      .filter(([, value]) => value !== null && !(Array.isArray(value) && value.length === 0))
      .map(([name, value]): [string, string] => [name, oneLine(value)]),
    ['permissions', permissions.map(writePermission).join(' ') || '-'],
    ...secrets.map((secret): [string, string] => [
      'secret',
      `${secret.id}, made ${secret.created_at.toISOString()}${
        secret.expires_at === null ? '' : `, accepted until ${secret.expires_at.toISOString()}`
      }`,
    ]),
  ]
}

function oneLine(value: unknown): string {
  if (value instanceof Date) return value.toISOString()
  if (Array.isArray(value)) return value.join(' ')
  return typeof value === 'string' ? value : JSON.stringify(value)
}
