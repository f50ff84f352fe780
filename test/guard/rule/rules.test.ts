import { describe, expect, it } from 'vitest'
import type { Subject } from '../../../src/guard/caller.ts'
import {
  contextBuilder,
  createDelegation,
  hierarchyAllows,
  HierarchyError,
  lineageOf,
  permissionsOn,
  roleAllows,
  shareWith,
  transferOwnership,
  usableDelegation,
} from '../../../src/guard/rule/rules.ts'
import type { Delegation, DelegationRequest, HierarchySource } from '../../../src/guard/rule/rules.ts'

function user(id: string, more: Partial<Subject> = {}): Subject {
  return { type: 'user', id, roles: [], groups: [], ...more }
}

const alice = user('alice')
const bob = user('bob')
const now = new Date('2024-01-15T12:00:00Z')

describe('ownership', () => {
  it('gives a stranger nothing', () => {
    expect([...permissionsOn(bob, { owner: 'alice' })]).toEqual([])
  })

  it('gives nobody what has no owner', () => {
    for (const owner of [undefined, null, '']) expect([...permissionsOn(user(''), { owner })]).toEqual([])
  })

  it('gives a client that is called like the owner nothing', () => {
    expect([
      ...permissionsOn(user('alice', { type: 'client' }), {
        owner: 'alice',
        shares: [{ user: 'alice', permissions: ['read'] }],
      }),
    ]).toEqual([])
  })

  it('does not take the word "true" for public', () => {
    expect([...permissionsOn(bob, { owner: 'alice', public: 'true' as unknown as boolean })]).toEqual([])
  })

  it('shares nothing that stays with the owner', () => {
    const thing = {
      owner: 'alice',
      shares: [{ user: 'bob', permissions: ['read', 'delete', 'transfer', 'share', '*'] }],
    }
    expect([...permissionsOn(bob, thing)]).toEqual(['read'])
  })

  it('gives the owner everything', () => {
    expect([...permissionsOn(alice, { owner: 'alice' })].sort()).toEqual([
      'delete',
      'read',
      'share',
      'transfer',
      'write',
    ])
  })

  it('keeps read when a public thing is shared for writing', () => {
    const thing = { owner: 'alice', public: true, shares: [{ user: 'bob', permissions: ['write'] }] }
    expect([...permissionsOn(bob, thing)].sort()).toEqual(['read', 'write'])
  })

  it('is not given away by somebody else, to nobody, or to oneself', () => {
    const thing = { owner: 'alice', shares: [] }
    expect(() => transferOwnership(bob, thing, 'bob', now)).toThrow(expect.objectContaining({ code: 'not-owner' }))
    expect(() => transferOwnership(alice, thing, '', now)).toThrow(expect.objectContaining({ code: 'no-recipient' }))
    expect(() => transferOwnership(alice, thing, 'alice', now)).toThrow(expect.objectContaining({ code: 'same-owner' }))
  })

  it('is given away with an event that names everybody, and leaves the giver nothing', () => {
    const thing = { owner: 'alice', shares: [{ user: 'bob', permissions: ['read'] }] }
    const acting = user('alice', { act: { sub: 'service-desk' } })
    const change = transferOwnership(acting, thing, 'bob', now)
    expect(change.event).toEqual({
      type: 'ownership.transferred',
      by: 'alice',
      actor: 'service-desk',
      from: 'alice',
      to: 'bob',
      at: now,
    })
    expect([...permissionsOn(alice, change.thing)]).toEqual([])
    expect(permissionsOn(bob, change.thing).has('transfer')).toBe(true)
    expect(change.thing.shares).toEqual([])
  })

  it('is shared by the owner alone, and only what may be shared', () => {
    const thing = { owner: 'alice', shares: [] }
    expect(() => shareWith(bob, thing, 'carol', ['read'], now)).toThrow(expect.objectContaining({ code: 'not-owner' }))
    expect(() => shareWith(alice, thing, 'bob', ['delete'], now)).toThrow(
      expect.objectContaining({ code: 'not-shareable' }),
    )
    const shared = shareWith(alice, thing, 'bob', ['read'], now).thing
    expect([...permissionsOn(bob, shared)]).toEqual(['read'])
    expect([...permissionsOn(bob, shareWith(alice, shared, 'bob', [], now).thing)]).toEqual([])
  })
})

describe('a table of roles', () => {
  const table = {
    viewer: { models: ['read'] },
    admin: { models: ['read', 'write'], '*': ['audit'] },
    root: { '*': ['*'] },
  }

  it('knows no role that nobody defined, whatever its name', () => {
    for (const role of ['editor', 'constructor', '__proto__', 'toString', '']) {
      expect(roleAllows(table, [role], 'models', 'read')).toBe(false)
    }
    expect(roleAllows(table, ['viewer'], 'constructor', 'read')).toBe(false)
  })

  it('refuses an action and a type the role does not have', () => {
    expect(roleAllows(table, ['viewer'], 'models', 'write')).toBe(false)
    expect(roleAllows(table, ['viewer'], 'data', 'read')).toBe(false)
  })

  it('allows what any one of the roles has', () => {
    expect(roleAllows(table, ['viewer', 'admin'], 'models', 'write')).toBe(true)
    expect(roleAllows(table, ['admin'], 'anything', 'audit')).toBe(true)
    expect(roleAllows(table, ['root'], 'anything', 'anything')).toBe(true)
  })
})

describe('a hierarchy', () => {
  function source(parents: Record<string, string>, grants: Record<string, string[]>): HierarchySource {
    return {
      parentOf: (id) => parents[id],
      permissionsAt: (id, who) => (who === 'alice' ? (grants[id] ?? []) : []),
    }
  }
  const parents = { version: 'model', model: 'project', project: 'organization' }

  it('refuses when nothing is granted anywhere', async () => {
    expect(await hierarchyAllows(source(parents, {}), alice, 'version', 'read')).toBe(false)
  })

  it('ends at a hierarchy that runs in a circle, with an error', async () => {
    const circle = source({ a: 'b', b: 'c', c: 'a' }, { a: ['read'] })
    await expect(hierarchyAllows(circle, alice, 'a', 'read')).rejects.toThrow(HierarchyError)
    await expect(lineageOf('x', (id) => id)).rejects.toThrow(expect.objectContaining({ code: 'cycle' }))
  })

  it('ends at a hierarchy without end', async () => {
    await expect(lineageOf('0', (id) => String(Number(id) + 1))).rejects.toThrow(
      expect.objectContaining({ code: 'too-deep' }),
    )
  })

  it('lets a deny win wherever it stands', async () => {
    expect(
      await hierarchyAllows(
        source(parents, { project: ['read', 'write'], model: ['deny:write'] }),
        alice,
        'version',
        'write',
      ),
    ).toBe(false)
    expect(
      await hierarchyAllows(
        source(parents, { organization: ['deny:write'], version: ['write'] }),
        alice,
        'version',
        'write',
      ),
    ).toBe(false)
    expect(
      await hierarchyAllows(source(parents, { organization: ['*'], model: ['deny:*'] }), alice, 'version', 'read'),
    ).toBe(false)
  })

  it('does not let an action pass that is a word of its own language', async () => {
    expect(await hierarchyAllows(source(parents, { version: ['deny:read', '*'] }), alice, 'version', 'deny:read')).toBe(
      false,
    )
    expect(await hierarchyAllows(source(parents, { version: ['*'] }), alice, 'version', '*')).toBe(false)
  })

  it('lets what is granted above hold below', async () => {
    const granted = source(parents, { project: ['read', 'write'], model: ['deny:write'] })
    expect(await hierarchyAllows(granted, alice, 'version', 'read')).toBe(true)
    expect(await hierarchyAllows(granted, alice, 'organization', 'read')).toBe(false)
    expect(await hierarchyAllows(granted, bob, 'version', 'read')).toBe(false)
  })
})

describe('a delegation', () => {
  const request: DelegationRequest = {
    id: 'd1',
    to: 'bob',
    resource: 'model-1',
    permissions: ['read'],
    expiresAt: new Date('2024-01-16T12:00:00Z'),
  }
  const mayRead = (who: string, resource: string, action: string): boolean =>
    who === 'alice' && resource === 'model-1' && action === 'read'
  const delegation: Delegation = { ...request, from: 'alice', createdAt: now }

  it.each([
    ['of more than one has', alice, { permissions: ['read', 'write'] }, 'not-yours'],
    ['of everything', alice, { permissions: ['*'] }, 'not-yours'],
    ['by somebody who has nothing', bob, { to: 'carol' }, 'not-yours'],
    ['of nothing', alice, { permissions: [] }, 'no-permissions'],
    ['to oneself', alice, { to: 'alice' }, 'to-yourself'],
    ['for no time', alice, { expiresAt: now }, 'no-time'],
    ['until a date that is none', alice, { expiresAt: new Date('never') }, 'no-time'],
    ['for ever', alice, { expiresAt: new Date('2099-01-01') }, 'too-long'],
    ['by a client', user('alice', { type: 'client' }), {}, 'not-a-user'],
    ['by who acts for somebody else', user('alice', { act: { sub: 'desk' } }), {}, 'acting'],
  ] as const)('is not made %s', async (_what, delegator, change, code) => {
    await expect(createDelegation(delegator, { ...request, ...change }, mayRead, now)).rejects.toThrow(
      expect.objectContaining({ code }),
    )
  })

  it('is worth nothing once the delegator has lost the right', async () => {
    expect(await usableDelegation([delegation], bob, 'model-1', 'read', () => false, now)).toBeUndefined()
  })

  it.each([
    ['to somebody else', user('carol'), 'model-1', 'read', now, {}],
    ['to a client of that name', user('bob', { type: 'client' }), 'model-1', 'read', now, {}],
    ['for another resource', bob, 'model-2', 'read', now, {}],
    ['for another action', bob, 'model-1', 'write', now, {}],
    ['after it expired', bob, 'model-1', 'read', request.expiresAt, {}],
    ['before it was made', bob, 'model-1', 'read', new Date(0), {}],
    ['after it was revoked', bob, 'model-1', 'read', now, { revokedAt: now }],
  ] as const)('is of no use %s', async (_what, subject, resource, action, at, change) => {
    const all = (): boolean => true
    expect(await usableDelegation([{ ...delegation, ...change }], subject, resource, action, all, at)).toBeUndefined()
  })

  it('is made and used, and names itself for the audit', async () => {
    const made = await createDelegation(alice, request, mayRead, now)
    expect(await usableDelegation([made], bob, 'model-1', 'read', mayRead, now)).toEqual(made)
    expect(made).toMatchObject({ from: 'alice', to: 'bob', createdAt: now })
  })
})

describe('the context of a request', () => {
  it('refuses a zone and a range that are none', () => {
    expect(() => contextBuilder({ timeZone: 'Mars/Olympus' })).toThrow(RangeError)
    expect(() => contextBuilder({ networks: { home: ['10.0.0.0/33'] } })).toThrow(RangeError)
    expect(() => contextBuilder({ networks: { home: ['home'] } })).toThrow(RangeError)
  })

  it('leaves out an address that is none, so that a policy about it fails safe', () => {
    const context = contextBuilder({ now: () => now })({ ip: '10.0.0.1, 10.0.0.2' })
    expect(Object.keys(context)).not.toContain('ip')
    expect(Object.keys(context)).not.toContain('network')
  })

  it.each([
    ['2024-01-15T07:59:00Z', 8, '08:59', 'weekday', 'monday'],
    ['2024-01-15T08:00:00Z', 9, '09:00', 'weekday', 'monday'],
    ['2024-01-15T16:59:00Z', 17, '17:59', 'weekday', 'monday'],
    ['2024-01-15T17:00:00Z', 18, '18:00', 'weekday', 'monday'],
    ['2024-01-19T23:30:00Z', 0, '00:30', 'weekend', 'saturday'],
    ['2024-07-15T07:00:00Z', 9, '09:00', 'weekday', 'monday'],
  ])('tells the time of day in its own zone: %s', (at, hour, clock, day, weekday) => {
    const context = contextBuilder({ now: () => new Date(at), timeZone: 'Europe/Berlin' })({})
    expect(context).toMatchObject({ time: new Date(at), hour, clock, day, day_of_week: weekday })
  })

  it('follows its clock to the second, forwards and back', () => {
    let at = ''
    const contextOf = contextBuilder({ now: () => new Date(at), timeZone: 'Europe/Berlin' })
    const clocks = ['2024-01-15T16:59:59.999Z', '2024-01-15T17:00:00.000Z', '2024-01-15T17:00:00.500Z'].map(
      (moment) => {
        at = moment
        const { time, clock, hour } = contextOf({})
        return [time.toISOString() === moment, clock, hour]
      },
    )
    expect(clocks).toEqual([
      [true, '17:59', 17],
      [true, '18:00', 18],
      [true, '18:00', 18],
    ])
    at = '2024-01-13T08:00:00.000Z'
    expect(contextOf({})).toMatchObject({ clock: '09:00', day: 'weekend', day_of_week: 'saturday' })
  })

  it.each([
    ['10.0.1.5', 'corporate'],
    ['::ffff:10.0.1.5', 'corporate'],
    ['2001:db8::1', 'corporate'],
    ['192.0.2.1', 'other'],
    ['10.9.0.1', 'lab'],
  ])('names the network of %s', (ip, network) => {
    const contextOf = contextBuilder({
      now: () => now,
      networks: { lab: ['10.9.0.0/16'], corporate: ['10.0.0.0/8', '2001:db8::/32'] },
    })
    expect(contextOf({ ip, requestType: 'api' })).toMatchObject({ ip, network, request_type: 'api' })
  })
})
