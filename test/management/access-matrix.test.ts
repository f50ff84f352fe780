/**
 * Who may do what, as docs/access-matrix.md says it: every operation by everybody, over HTTP, with something fresh for
 * each. The table and the code cannot differ.
 */
import { readFileSync } from 'node:fs'
import { beforeAll, describe, expect, it } from 'vitest'
import { openTargets, type SignedIn } from '../support/api-targets.ts'
import { eachDatabase } from '../support/databases.ts'
import { allScopes, openManagement, type Person } from '../support/management.ts'
import { operationsOf, readCommittedDocument, type Operation } from '../openapi/document.ts'
import { complete, sendRequest, successOf, type Request, type World } from './scenarios.ts'

const page = readFileSync('docs/access-matrix.md', 'utf8')
const operations = operationsOf(readCommittedDocument())

/** The callers, in the order of the table's columns. */
const callers = [
  'nobody',
  'a person, about what is theirs',
  "a person, about somebody else's",
  'support',
  'administrator',
  'a machine without the scope',
  'a machine with it',
  "that machine's API key",
] as const
type Caller = (typeof callers)[number]

interface Row {
  readonly operation: string
  readonly scope: string
  readonly statuses: readonly number[]
}

const lines = page.split('\n').filter((line) => line.startsWith('|'))
const cellsOf = (line: string) =>
  line
    .slice(1, -1)
    .split('|')
    .map((cell) => cell.trim())
const rows = lines
  .filter((line) => /^\| `[A-Z]+ \//.test(line))
  .map((line): Row => {
    const [operation = '', scope = '', ...statuses] = cellsOf(line)
    return {
      operation: operation.replaceAll('`', ''),
      scope: scope.replaceAll('`', ''),
      statuses: statuses.map(Number),
    }
  })

describe('the table', () => {
  it('has a row for each operation, in the order of the document, and no other', () => {
    expect(rows.map(({ operation }) => operation)).toEqual(operations.map(({ method, path }) => `${method} ${path}`))
  })

  it('has a column for each caller, and a status in every cell', () => {
    expect(cellsOf(lines[0] ?? '')).toEqual(['operation', 'scope', ...callers])
    for (const { operation, statuses } of rows) {
      expect([operation, statuses.length, statuses.every((status) => status >= 200 && status < 500)]).toEqual([
        operation,
        callers.length,
        true,
      ])
    }
  })

  it('names the scope that the document asks for', () => {
    expect(rows.map(({ scope }) => scope)).toEqual(operations.map((operation) => scopeOf(operation)))
  })

  it('lets nobody in who is not known, and the administrator everywhere', () => {
    for (const { operation, statuses } of rows) {
      expect([operation, statuses[0], (statuses[4] ?? 0) < 300]).toEqual([operation, 401, true])
    }
  })
})

eachDatabase((_open, engine) => {
  let world: World
  /** scope → a machine with every other one, one with it alone, and an API key of that */
  const without = new Map<string, string>()
  let somebody: Somebody
  const holding = new Map<string, { readonly token: string; readonly apiKey: string }>()

  beforeAll(async () => {
    const api = await openManagement(engine)
    const targets = openTargets(api)
    const tagOf = async (path: string) => (await api.call(path)).headers.get('etag') ?? ''
    world = { api, targets, tagOf }
    somebody = await makeSomebody(world)
    for (const scope of new Set(operations.map(scopeOf))) {
      without.set(scope, (await api.newMachine(allScopes.filter((other) => other !== scope))).token)
      const machine = await api.newMachine([scope])
      holding.set(scope, { token: machine.token, apiKey: (await targets.apiKey(machine.client_id)).key })
    }
  })

  it.each(rows)('$operation', async ({ operation: name, statuses }) => {
    const operation = operations.find(({ method, path }) => `${method} ${path}` === name)
    if (operation === undefined) throw new Error(`there is no ${name}`)
    const answered: number[] = []
    // What is only read or refused stays as it is, so that others can ask for it too.
    const kept = await requestAbout(world, operation)
    for (const [i, caller] of callers.entries()) {
      const isKept = operation.method === 'GET' || (statuses[i] ?? 0) >= 400
      const request =
        caller === 'a person, about what is theirs'
          ? await requestAboutOwn(operation, kept, isKept)
          : isKept
            ? kept
            : await requestAbout(world, operation)
      answered.push(
        (await sendRequest(world, operation, { ...request, ...credentialsOf(caller, operation, request) })).status,
      )
    }
    expect(Object.fromEntries(callers.map((caller, i) => [caller, answered[i]]))).toEqual(
      Object.fromEntries(callers.map((caller, i) => [caller, statuses[i]])),
    )
  })

  it('a person needs the scope for their own too: to see is not to change, nor the other way round', async () => {
    const own = operations.flatMap((operation) => {
      const scope = ownScopeOf(operation)
      return scope === undefined ? [] : [{ operation, scope }]
    })
    expect(new Set(own.map(({ scope }) => scope))).toEqual(new Set(['self:read', 'self:write']))
    const seeing = await world.api.signIn(somebody.person, ['self:read'])
    const changing = await world.api.signIn(somebody.person, ['self:write'])
    for (const { operation, scope } of own) {
      expect([operation.id, scope]).toEqual([operation.id, operation.method === 'GET' ? 'self:read' : 'self:write'])
      const request = await requestAboutOwn(operation, await requestAbout(world, operation), true)
      const token = scope === 'self:read' ? changing : seeing
      const { status, headers } = await sendRequest(world, operation, { ...request, token })
      expect([operation.id, status]).toEqual([operation.id, 403])
      expect(headers.get('www-authenticate')).toContain(scope)
    }
  })

  /** About what is the caller's own: somebody fresh, unless nothing becomes of it. */
  async function requestAboutOwn(operation: Operation, request: Request, isKept: boolean): Promise<Request> {
    const { person, session_id, grant_id } = isKept ? somebody : await makeSomebody(world)
    const mine: Readonly<Record<string, string>> = { user_id: person.id, session_id, grant_id }
    const parameters = Object.fromEntries(
      Object.entries(request.parameters ?? {}).map(([name, value]) => [name, mine[name] ?? value]),
    )
    const bodies: Readonly<Record<string, unknown>> = {
      replaceUser: { email: person.email, email_verified: true, name: 'My own name' },
      setPassword: { password: 'quite another phrase', current_password: person.password },
    }
    return { ...request, parameters, token: person.token, body: bodies[operation.id] ?? request.body }
  }

  function credentialsOf(caller: Caller, operation: Operation, request: Request): Pick<Request, 'token' | 'headers'> {
    const { api } = world
    const scope = scopeOf(operation)
    switch (caller) {
      case 'nobody':
        return { token: null }
      case 'a person, about what is theirs':
        return { token: request.token ?? null }
      case "a person, about somebody else's":
        return { token: api.user.token }
      case 'support':
        return { token: api.support.token }
      case 'administrator':
        return { token: api.administrator.token }
      case 'a machine without the scope':
        return { token: without.get(scope) ?? null }
      case 'a machine with it':
        return { token: holding.get(scope)?.token ?? null }
      default: // that machine's API key
        return { token: null, headers: { ...request.headers, 'x-api-key': holding.get(scope)?.apiKey ?? '' } }
    }
  }
})

/** A valid request about something fresh. */
async function requestAbout(world: World, operation: Operation): Promise<Request> {
  return complete(world, operation, await successOf(operation.id).make(world))
}

interface Somebody extends SignedIn {
  readonly person: Person
}

/** Who is signed in twice: what ends the second session leaves the person's token alive. */
async function makeSomebody({ targets }: World): Promise<Somebody> {
  const person = await targets.person()
  return { person, ...(await targets.signIn(person)) }
}

/** The first way to call it is by a scope for anybody's; a second, by one for one's own. */
function scopeOf({ security = [] }: Operation): string {
  return security[0]?.['oauth2']?.[0] ?? ''
}

function ownScopeOf({ security = [] }: Operation): string | undefined {
  return security.map(({ oauth2 }) => oauth2?.[0]).find((scope) => scope?.startsWith('self:') === true)
}
