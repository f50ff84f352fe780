/**
 * The house rules that can be read off the source: which room may import which, what only one place may do, and names
 * that say nothing. The rules are data; the first tests show that breaking each of them is found.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize, relative } from 'node:path'
import { describe, expect, it } from 'vitest'

/** What every subject stands on. */
const below = ['http', 'problems', 'database', 'signing', 'audit', 'revocation', 'config', 'log']
const subjects = [
  'users',
  'access',
  'oauth',
  'login',
  'signals',
  'operations',
  'metering',
  'management',
  'graphql',
  'demo',
]
const serving = ['server', 'lifecycle', 'workers']

/** Folder or file in src/ → the others that it may import. Everything may import @latchkey/guard, by that name. */
const rooms: Record<string, readonly string[]> = {
  main: ['commands', ...serving, ...subjects, ...below],
  commands: [...serving, ...subjects, ...below],
  server: ['lifecycle', ...subjects, ...below],
  lifecycle: ['http', 'config', 'log'],
  workers: ['config', 'log'],

  demo: ['login', 'oauth', 'users', 'access', 'metering', ...below],
  login: ['users', 'oauth', 'access', ...below],
  oauth: ['users', 'access', ...below],
  users: ['access', ...below],
  graphql: ['users', 'access', ...below],
  access: below,
  signals: below,
  operations: below,
  metering: ['access', ...below],
  management: ['oauth', 'users', 'access', 'metering', ...below],

  http: ['database', 'audit', 'problems', 'config', 'log'],
  signing: ['database', 'audit', 'revocation', 'config', 'log'],
  audit: ['database'],
  revocation: ['database'],
  database: [],
  log: ['config'],
  config: [],
  problems: [],
  guard: [],
  client: [],
}

/** A package, and the only places that may import it. */
const packages: readonly { readonly name: RegExp; readonly only: readonly string[] }[] = [
  { name: /^argon2$/, only: ['users/password.ts'] },
  { name: /^oidc-provider(\/|$)/, only: ['oauth/', 'login/'] },
]

/** Something in the text, and the only places that may hold it. */
const phrases: readonly { readonly what: string; readonly text: RegExp; readonly only: readonly string[] }[] = [
  {
    what: 'reads the environment',
    text: /\bprocess\s*(\?\.|\.)\s*env\b|\bprocess\s*\[|\benv\b[^{}]*\}\s*=\s*process\b|['"](node:)?process['"]/,
    only: ['config.ts'],
  },
  {
    what: 'touches private keys',
    text: /\b(createPrivateKey|generateKeyPair(Sync)?|importPKCS8|exportPKCS8|sealed_private_jwk)\b/,
    // The guard's own are thrown away with the test that made them; it imports nothing by which to reach ours.
    only: ['signing/', 'database/tables.ts', 'guard/testing.ts'],
  },
  {
    what: 'imports by a name that is not written out',
    text: /\bimport\(\s*[^'\s]|\bcreateRequire\b|\brequire\(/,
    only: [],
  },
]

const emptyWord = /^(utils?|helpers?|common|shared|managers?|base|misc|lib|types|services?)$/
const emptyClass = /\bclass\s+(\w*(Util|Utils|Helper|Common|Shared|Manager|Base|Misc|Service))\b/g

interface Source {
  /** below src/, with slashes */
  readonly path: string
  readonly text: string
}

function findViolations({ path, text: withComments }: Source): string[] {
  const text = withoutComments(withComments)
  return [
    ...findWrongImports(path, text),
    ...phrases
      .filter(({ text: phrase, only }) => phrase.test(text) && !isIn(path, only))
      .map(({ what }) => `${path} ${what}`),
    ...findEmptyNames(path),
    ...[...text.matchAll(emptyClass)].map(([, name]) => `${path} has a class ${name}`),
  ]
}

function findWrongImports(path: string, text: string): string[] {
  const from = roomOf(path)
  const allowed = rooms[from]
  if (allowed === undefined) return [`${path} is in a room of which nobody has said what it may import`]
  return findImports(text).flatMap((specifier) => {
    if (!specifier.startsWith('.')) {
      const rule = packages.find(({ name }) => name.test(specifier))
      if (rule !== undefined && !isIn(path, rule.only)) return [`${path} imports ${specifier}`]
      const isOurs = (from === 'guard' || from === 'client') && specifier.startsWith('@latchkey/')
      // The client's tokens and retries are the guard's calls to other services.
      const isAllowed = from === 'client' && specifier === '@latchkey/guard/outbound'
      return isOurs && !isAllowed ? [`${path} imports ${specifier}`] : []
    }
    const target = normalize(join(dirname(path), specifier))
    const to = roomOf(target)
    return to === from || allowed.includes(to) ? [] : [`${path} imports ${target}`]
  })
}

/** Those of types too: what a file must know of another counts, not what is left of it at run time. */
function findImports(text: string): string[] {
  return [...text.matchAll(/\b(?:from|import)\s*\(?\s*(['"])([^'"\n]+)\1/g)].map(([, , specifier = '']) => specifier)
}

/** Outside src/ a service is what it says: one that the guard protects, in an example or a test. */
function findEmptyNamesOutside(path: string): string[] {
  return findEmptyNames(path.replaceAll(/\bservices?\b/g, 'api'))
}

function findEmptyNames(path: string): string[] {
  return path.split('/').flatMap((name) => {
    const words = name.split(/[-.]/)
    const stem = name.split('.')[0] ?? ''
    if (words.some((word) => emptyWord.test(word))) return [`${path} has a name that says nothing: ${name}`]
    return /^_?[a-z0-9]+(-[a-z0-9]+)*$/.test(stem) || /^[A-Z]+$/.test(stem) ? [] : [`${path} is not in kebab-case`]
  })
}

function roomOf(path: string): string {
  return (path.split('/')[0] ?? '').replace(/\.[a-z]+$/, '')
}

function isIn(path: string, places: readonly string[]): boolean {
  return places.some((place) => (place.endsWith('/') ? path.startsWith(place) : path === place))
}

function withoutComments(text: string): string {
  return text.replaceAll(/\/\*[^]*?\*\/|(?<=^|\s)\/\/.*$/gm, '')
}

const root = join(import.meta.dirname, '..')

function listFiles(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(root, join(entry.parentPath, entry.name)))
    .filter((path) => !/(^|\/)(node_modules|dist|\.[^/]*)(\/|$)/.test(path))
}

describe('the rules of the house', () => {
  const broken: [string, Source, string][] = [
    [
      'an import from below to above',
      { path: 'http/body.ts', text: "import { findUser } from '../users/users.ts'" },
      'http/body.ts imports users/users.ts',
    ],
    [
      'an import of types from below to above',
      { path: 'users/users.ts', text: "import type { Client } from '../oauth/clients.ts'" },
      'users/users.ts imports oauth/clients.ts',
    ],
    [
      'an import that is made late',
      { path: 'server.ts', text: "const { main } = await import('./main.ts')" },
      'server.ts imports main.ts',
    ],
    [
      'an export of another room’s',
      { path: 'database/database.ts', text: "export * from '../audit/audit.ts'" },
      'database/database.ts imports audit/audit.ts',
    ],
    [
      'an import for its effect alone',
      { path: 'audit/audit.ts', text: 'import "../users/users.ts"' },
      'audit/audit.ts imports users/users.ts',
    ],
    [
      'an import over several lines',
      { path: 'access/roles.ts', text: "import {\n  createUser,\n} from\n  '../users/users.ts'" },
      'access/roles.ts imports users/users.ts',
    ],
    [
      'anything of ours in the guard',
      { path: 'guard/koa/guard.ts', text: "import { Problem } from '../../problems.ts'" },
      'guard/koa/guard.ts imports problems.ts',
    ],
    [
      'anything of the server in the client',
      { path: 'client/api-error.ts', text: "import type { ProblemBody } from '../problems.ts'" },
      'client/api-error.ts imports problems.ts',
    ],
    [
      'more of the guard in the client than its calls to other services',
      { path: 'client/client.ts', text: "import { createGuard } from '@latchkey/guard'" },
      'client/client.ts imports @latchkey/guard',
    ],
    [
      'a second room that imports oidc-provider',
      { path: 'http/cors.ts', text: "import { errors } from 'oidc-provider'" },
      'http/cors.ts imports oidc-provider',
    ],
    [
      'a second file that imports argon2',
      { path: 'users/users.ts', text: "import argon2 from 'argon2'" },
      'users/users.ts imports argon2',
    ],
    [
      'a second reader of the environment',
      { path: 'oauth/provider.ts', text: 'const port = process.env.PORT' },
      'oauth/provider.ts reads the environment',
    ],
    [
      'a reader of the environment in disguise',
      { path: 'oauth/provider.ts', text: 'const { env, argv } = process' },
      'oauth/provider.ts reads the environment',
    ],
    [
      'private keys outside signing/',
      { path: 'oauth/provider.ts', text: 'const key = createPrivateKey(pem)' },
      'oauth/provider.ts touches private keys',
    ],
    [
      'an import that cannot be read off',
      { path: 'oauth/provider.ts', text: 'await import(name)' },
      'oauth/provider.ts imports by a name that is not written out',
    ],
    [
      'a room that is not on the list',
      { path: 'plugins/plugin.ts', text: '' },
      'plugins/plugin.ts is in a room of which nobody has said what it may import',
    ],
    [
      'a file whose name says nothing',
      { path: 'oauth/token-utils.ts', text: '' },
      'oauth/token-utils.ts has a name that says nothing: token-utils.ts',
    ],
    [
      'a folder whose name says nothing',
      { path: 'http/shared/body.ts', text: '' },
      'http/shared/body.ts has a name that says nothing: shared',
    ],
    [
      'a name that is not in kebab-case',
      { path: 'oauth/keyRing.ts', text: '' },
      'oauth/keyRing.ts is not in kebab-case',
    ],
    [
      'a class whose name says nothing',
      { path: 'oauth/provider.ts', text: 'export class TokenManager {}' },
      'oauth/provider.ts has a class TokenManager',
    ],
  ]
  it.each(broken)('find %s', (_what, source, violation) => {
    expect(findViolations(source)).toEqual([violation])
  })

  it('leave alone what is right, and what is only spoken of', () => {
    const text = `
      /* Not like import '../oauth/clients.ts', which reads process.env. */
      import type { Trx } from '../database/database.ts' // not from '../login/routes.ts'
      import { allow } from '@latchkey/guard'
      import { hash } from './password.ts'
      const database = class SigningDatabase {}`
    expect(findViolations({ path: 'users/users.ts', text })).toEqual([])
  })
})

describe('the house', () => {
  it('keeps them in every source file', () => {
    const sources = listFiles('src').filter((path) => /\.(ts|mts|js|mjs)$/.test(path) && path !== 'src/latchkey.mjs')
    expect(sources.length).toBeGreaterThan(20)
    const violations = sources.flatMap((path) =>
      findViolations({ path: relative('src', path), text: readFileSync(join(root, path), 'utf8') }),
    )
    expect(violations).toEqual([])
  })

  it('has no name that says nothing outside src/ either', () => {
    const folders = readdirSync(root).filter((name) => /^(test|views|migrations|bench|examples|docs)$/.test(name))
    expect(folders).toContain('test')
    expect(folders.flatMap(listFiles).flatMap(findEmptyNamesOutside)).toEqual([])
  })
})
