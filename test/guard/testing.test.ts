/** The issuer for tests does to a guard what a real one would do. */
import { createGuard, GuardError } from '@latchkey/guard'
import type { Guard } from '@latchkey/guard'
import { createTestIssuer } from '@latchkey/guard/testing'
import { expect, it } from 'vitest'

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

it('makes no two tokens alike, and no network of any kind', async () => {
  const idp = await createTestIssuer({ issuer: 'https://nowhere.invalid/tenant', audience: 'models' })
  const guard = createGuard({ ...idp.options })
  expect(await outcome(guard, await idp.mint())).toBe('alice')
  expect(await idp.mint()).not.toBe(await idp.mint())
  expect(idp.keyRequests).toBe(1)
})
