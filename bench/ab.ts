import { createGuard } from '@latchkey/guard'
import { createTestIssuer } from '@latchkey/guard/testing'
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
const idp = await createTestIssuer({ issuer: 'http://127.0.0.1:4999' })
const jwks = (await (await idp.fetch('http://127.0.0.1:4999/jwks', {})).json()) as { keys: Record<string, unknown>[] }
const tokens: string[] = []
for (let i = 0; i < 1000; i++) tokens.push(await idp.mint({ sub: 'user-' + i, roles: ['a', 'b'], scope: 'models:read models:write', claims: { sid: randomUUID(), grant_id: randomUUID(), token_version: 3, auth_time: 1, acr: 'urn:x', amr: ['pwd'] } }))
for (let at = 0; at < 200; at += 1) { const name = randomUUID(); for (const what of [{ jti: name }, { sid: name }, { grantId: name }, { sub: name }, { clientId: name }]) await idp.revoke(what) }
await idp.revoke({ kid: 'key-0' })
const base = { issuer: { issuer: idp.issuer, keys: jwks }, audience: idp.audience, fetch: idp.fetch, cacheEntries: 0 }
const withFeed = createGuard({ ...base, revocation: idp.options.revocation })
while (withFeed.health().revocation?.['status'] !== 'current') await sleep(5)
const without = createGuard({ ...base, revocation: { check: () => 'active', version: () => 1 } })
const req = (t: string) => { const a = [Buffer.from(`Bearer ${t}`, 'latin1').toString('latin1')]; return { method: 'GET', url: '/', header: (n: string) => (n === 'authorization' ? a : []) } }
async function cost(g: typeof without, n: number) { const r = Array.from({ length: n }, (_, i) => req(tokens[i % 1000]!)); const b = process.cpuUsage(); for (const x of r) await g.authenticate(x); const { user, system } = process.cpuUsage(b); return (user + system) / n }
const A: number[] = [], B: number[] = [], R: number[] = []
await cost(withFeed, 3000); await cost(without, 3000)
for (let i = 0; i < 60; i++) { const first = i % 2 ? withFeed : without, second = i % 2 ? without : withFeed; const x = await cost(first, 250), y = await cost(second, 250); const f = i % 2 ? x : y, w = i % 2 ? y : x; A.push(f); B.push(w); R.push(f - w) }
const med = (v: number[]) => [...v].sort((a, b) => a - b)[v.length >> 1]
console.log('feed', med(A), 'none', med(B), 'diff', med(R), Math.min(...A), Math.min(...B))
await withFeed.close()
