/** The issuer for tests does to a guard what a real one would do. */
import { createGuard, GuardError } from '@latchkey/guard'
import type { Guard, RevocationFeedHealth, RevocationFeedOptions } from '@latchkey/guard'
import { createTestIssuer } from '@latchkey/guard/testing'
import type { TestIssuer } from '@latchkey/guard/testing'
import { expect, it, onTestFinished } from 'vitest'

async function outcome(guard: Guard, token: string): Promise<string> {
  try {
    const request = new Request('https://service.test/', { headers: { authorization: `Bearer ${token}` } })
    return (await guard.authenticate(request)).subject.id
  } catch (error) {
    if (error instanceof GuardError) return error.reason
    throw error
  }
}

it('mints tokens that expire, at once or when time goes on', async () => {
  const idp = await createTestIssuer()
  const guard = createGuard({ ...idp.options })
  expect(await outcome(guard, await idp.mint({ expiresIn: '-10s' }))).toBe('expired')
  const token = await idp.mint({ expiresIn: '15m' })
  expect(await outcome(guard, token)).toBe('alice')
  idp.advance('16m')
  expect(await outcome(guard, token)).toBe('expired')
  expect(() => idp.advance('soon')).toThrow(TypeError)
})

it('revokes the tokens that fit, and none that are minted later', async () => {
  const idp = await createTestIssuer()
  const guard = createGuard({ ...idp.options })
  const first = await idp.mint({ claims: { sid: 's1' } })
  const second = await idp.mint({ claims: { sid: 's2' } })
  const bobs = await idp.mint({ sub: 'bob' })
  expect(await outcome(guard, first)).toBe('alice')
  await idp.revoke({ sub: 'alice', sid: 's1' })
  expect([await outcome(guard, first), await outcome(guard, second)]).toEqual(['revoked', 'alice'])
  await idp.revoke({ sub: 'alice' })
  expect([await outcome(guard, second), await outcome(guard, bobs)]).toEqual(['revoked', 'bob'])
  expect(await outcome(guard, await idp.mint())).toBe('alice')
  await expect(idp.revoke({})).rejects.toThrow(TypeError)
})

it('rotates keys, with the old one published or withdrawn', async () => {
  const idp = await createTestIssuer()
  const guard = createGuard({ ...idp.options })
  const old = await idp.mint()
  expect(await outcome(guard, old)).toBe('alice')
  idp.rotateKeys()
  expect([await outcome(guard, await idp.mint()), await outcome(guard, old)]).toEqual(['alice', 'alice'])
  idp.rotateKeys({ withdraw: true })
  expect([await outcome(guard, await idp.mint()), await outcome(guard, old)]).toEqual(['alice', 'unknown_key'])
})

it('breaks down and is mended: a guard that has its keys goes on, a new one says that it cannot know', async () => {
  const idp = await createTestIssuer()
  const guard = createGuard({ ...idp.options })
  const token = await idp.mint()
  expect(await outcome(guard, token)).toBe('alice')
  const mend = idp.outage('jwks')
  idp.advance('1h')
  expect(await outcome(guard, await idp.mint())).toBe('alice')
  const late = createGuard({ ...idp.options })
  expect(await outcome(late, await idp.mint())).toBe('keys')
  mend()
  idp.advance('2s')
  expect(await outcome(late, await idp.mint())).toBe('alice')
  const end = idp.outage('events')
  expect(await outcome(guard, await idp.mint())).toBe('alice')
  idp.advance('61s')
  expect(await outcome(guard, await idp.mint())).toBe('revocation')
  end()
  expect(await outcome(guard, await idp.mint())).toBe('alice')
})

/** A guard that has heard of all there is to hear of; closed after the test. */
async function listening(idp: TestIssuer, revocation: Partial<RevocationFeedOptions> = {}): Promise<Guard> {
  const guard = createGuard({
    ...idp.options,
    revocation: { ...idp.options.revocation, onStale: 'deny', ...revocation },
  })
  onTestFinished(() => guard.close())
  await until(() => feedOf(guard).status === 'current')
  return guard
}

const feedOf = (guard: Guard): RevocationFeedHealth => guard.health().revocation as RevocationFeedHealth

async function until(isSo: () => boolean): Promise<void> {
  const end = performance.now() + 10_000
  while (!isSo()) {
    if (performance.now() > end) throw new Error('waited in vain')
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

it.each(['session-revoked', 'credential-change', 'token-claims-change'] as const)(
  'tells of a user by %s, with a version or without one',
  async (event) => {
    const idp = await createTestIssuer()
    const guard = await listening(idp)
    const mint = (version: number): Promise<string> => idp.mint({ claims: { token_version: version } })
    const [lower, same] = [await mint(6), await mint(7)]
    await idp.revoke({ sub: 'alice' }, { event, tokenVersion: 7 })
    expect([await outcome(guard, lower), await outcome(guard, same)]).toEqual(['revoked', 'alice'])
    expect(await asked(idp, [lower, same])).toEqual([false, true])
    await idp.revoke({ sub: 'alice' }, { event, tokenVersion: false })
    expect(await outcome(guard, same)).toBe('revoked')
    expect(await outcome(guard, await idp.mint())).toBe('alice')
  },
)

it('tells of a client with a version, which is that of its own tokens', async () => {
  const idp = await createTestIssuer()
  const guard = await listening(idp)
  const own = (version: number): Promise<string> =>
    idp.mint({ sub: 'batch', clientId: 'batch', claims: { token_version: version } })
  const tokens = [await own(1), await own(2), await idp.mint({ clientId: 'batch' })]
  await idp.revoke({ clientId: 'batch' }, { tokenVersion: 2 })
  expect(await Promise.all(tokens.map((token) => outcome(guard, token)))).toEqual(['revoked', 'batch', 'revoked'])
  expect(await asked(idp, tokens)).toEqual([false, true, false])
  expect(await outcome(guard, await idp.mint({ sub: 'batch', clientId: 'batch' }))).toBe('batch')
  await expect(idp.revoke({ jti: 'x' }, { tokenVersion: 2 })).rejects.toThrow(TypeError)
  await expect(idp.revoke({ clientId: 'x' }, { event: 'credential-change' })).rejects.toThrow(TypeError)
})

it('stops telling of what has run out', async () => {
  const idp = await createTestIssuer()
  await idp.revoke({ jti: 'a' }, { expiresIn: '10m' })
  await idp.revoke({ jti: 'b' })
  expect(feedOf(await listening(idp)).entries).toBe(2)
  idp.advance('11m')
  expect(feedOf(await listening(idp)).entries).toBe(1)
})

it.each(['paused', 'disabled'] as const)('says that streams are %s, and guards open others', async (status) => {
  const idp = await createTestIssuer()
  const guard = await listening(idp)
  const { streamId } = feedOf(guard)
  const token = await idp.mint()
  idp.setStreams(status)
  await idp.revoke({ sub: 'alice' })
  await until(() => ![streamId, undefined].includes(feedOf(guard).streamId) && feedOf(guard).caughtUp)
  expect(await outcome(guard, token)).toBe('revoked')
})

it('keeps what a paused stream was not told, and tells it when it is enabled', async () => {
  const idp = await createTestIssuer()
  const guard = await listening(idp)
  const { streamId } = feedOf(guard)
  const token = await idp.mint()
  idp.setStreams('paused', { silently: true })
  await idp.revoke({ sub: 'alice' })
  expect(await outcome(guard, token)).toBe('alice')
  idp.setStreams('enabled', { silently: true })
  await until(() => feedOf(guard).entries === 1)
  expect(await outcome(guard, token)).toBe('revoked')
  expect(feedOf(guard).streamId).toBe(streamId)
})

it('loses streams, serves old keys, and verifies nothing, when told to', async () => {
  const idp = await createTestIssuer()
  const guard = await listening(idp)
  const { streamId } = feedOf(guard)
  idp.loseStreams()
  await until(() => ![streamId, undefined].includes(feedOf(guard).streamId) && feedOf(guard).caughtUp)
  const publish = idp.outage('stale-jwks')
  idp.rotateKeys()
  expect(await outcome(guard, await idp.mint())).toBe('unknown_key')
  publish()
  expect(await outcome(guard, await idp.mint())).toBe('alice')
  idp.outage('verification')
  const late = createGuard({ ...idp.options, revocation: { ...idp.options.revocation, onStale: 'deny' } })
  onTestFinished(() => late.close())
  expect(await outcome(late, await idp.mint())).toBe('revocation')
  expect(feedOf(late).lastError).toContain('verification')
})

/** What introspection says of tokens. */
async function asked(idp: TestIssuer, tokens: readonly string[]): Promise<boolean[]> {
  const { clientId, clientSecret } = idp.options.revocation
  const authorization = `Basic ${Buffer.from(`${clientId}:${clientSecret}`).toString('base64')}`
  const answers = tokens.map(async (token) => {
    const init = { method: 'POST', headers: { authorization }, body: new URLSearchParams({ token }).toString() }
    const response = await idp.fetch(`${idp.issuer}/introspect`, init)
    return ((await response.json()) as { active: boolean }).active
  })
  return Promise.all(answers)
}

it('makes no two tokens alike, and no network of any kind', async () => {
  const idp = await createTestIssuer({ issuer: 'https://nowhere.invalid/tenant', audience: 'models' })
  const guard = createGuard({ ...idp.options })
  expect(await outcome(guard, await idp.mint())).toBe('alice')
  expect(await idp.mint()).not.toBe(await idp.mint())
  expect(idp.keyRequests).toBe(1)
})
