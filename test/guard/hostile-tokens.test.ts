import { sign, constants } from 'node:crypto'
import { GuardError } from '@latchkey/guard'
import { authenticate } from '@latchkey/guard/koa'
import Koa from 'koa'
import { describe, expect, it } from 'vitest'
import {
  ABSENT,
  attackers,
  attackersEc,
  AUDIENCE,
  encode,
  goodClaims,
  goodHeader,
  guardAt,
  hmacToken,
  ISSUER,
  jwkOf,
  NOW,
  ours,
  request,
  sealed,
  token,
  withRawMember,
} from './support/forge.ts'
import { serving } from './support/plain-provider.ts'

const guard = guardAt()

/** The refusal of a token, in the words of the log; throws when the token is accepted. */
async function refusal(credential: string): Promise<GuardError> {
  try {
    await guard.authenticate(request(credential))
  } catch (error) {
    if (error instanceof GuardError) return error
    throw error
  }
  throw new Error('accepted')
}

const pem = ours.publicKey.export({ type: 'spki', format: 'pem' }).toString()
const der = ours.publicKey.export({ type: 'spki', format: 'der' })
const good = token()
const [goodHead = '', goodBody = '', goodSeal = ''] = good.split('.')
const header = JSON.stringify(goodHeader)

function replaceLastCharacter(text: string): string {
  // RSA-2048 signatures are 256 bytes: 342 characters, of which the last carries four spare bits.
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
  return text.slice(0, -1) + alphabet[alphabet.indexOf(text.at(-1) ?? '') + 1]
}

function es256(claims: string, head: object): string {
  const signed = `${encode(JSON.stringify(head))}.${encode(claims)}`
  const seal = sign('sha256', Buffer.from(signed), { key: attackersEc.privateKey, dsaEncoding: 'ieee-p1363' })
  return `${signed}.${seal.toString('base64url')}`
}

function signedAs(alg: string, digest: string, pss: boolean): string {
  const signed = `${encode(JSON.stringify({ ...goodHeader, alg }))}.${encode(JSON.stringify(goodClaims()))}`
  const padding = pss ? constants.RSA_PKCS1_PSS_PADDING : constants.RSA_PKCS1_PADDING
  const seal = sign(digest, Buffer.from(signed), { key: ours.privateKey, padding, saltLength: pss ? 32 : undefined })
  return `${signed}.${seal.toString('base64url')}`
}

const deep = `${'['.repeat(40)}${']'.repeat(40)}`

/** Every class of forged, stolen or malformed token: [what it is, the token, why it must be refused]. */
const hostile: readonly (readonly [string, string, string])[] = [
  // The algorithm is the verifier's choice, not the token's (RFC 8725 §3.1).
  ...['none', 'None', 'NONE', 'nOnE'].flatMap(
    (alg) =>
      [
        [
          `alg ${alg} with an empty signature`,
          `${encode(JSON.stringify({ ...goodHeader, alg }))}.${goodBody}.`,
          'malformed',
        ],
        [
          `alg ${alg} with a signature`,
          `${encode(JSON.stringify({ ...goodHeader, alg }))}.${goodBody}.AAAA`,
          'algorithm',
        ],
      ] as const,
  ),
  ['HS256 with our public key in PEM as the secret', hmacToken('HS256', pem), 'algorithm'],
  ['HS256 with the PEM and no last newline', hmacToken('HS256', pem.trimEnd()), 'algorithm'],
  ['HS256 with the PEM after a newline', hmacToken('HS256', `\n${pem}`), 'algorithm'],
  ['HS256 with the DER as the secret', hmacToken('HS256', der), 'algorithm'],
  ['HS384 with the PEM as the secret', hmacToken('HS384', pem), 'algorithm'],
  ['HS512 with the PEM as the secret', hmacToken('HS512', pem), 'algorithm'],
  ['HS256 with an empty secret', hmacToken('HS256', ''), 'algorithm'],
  ['a good signature of an algorithm not allowed: RS512', signedAs('RS512', 'sha512', false), 'algorithm'],
  ['a good signature of an algorithm not allowed: PS256', signedAs('PS256', 'sha256', true), 'algorithm'],
  ['RS256 in the header, PSS in the signature', signedAs('RS256', 'sha256', true), 'signature'],
  ['RS256 in the header, SHA-512 in the signature', signedAs('RS256', 'sha512', false), 'signature'],
  ['ES256 by somebody else', es256(JSON.stringify(goodClaims()), { ...goodHeader, alg: 'ES256' }), 'algorithm'],
  ...([ABSENT, null, '', 'rs256', 'RS256 ', ['RS256'], 256, {}, 'constructor', '__proto__', 'toString'] as const).map(
    (alg) => [`alg ${JSON.stringify(alg)}`, token({}, { alg }), 'algorithm'] as const,
  ),

  // Another kind of token from the same issuer, with a good signature (RFC 8725 §3.11, RFC 9068 §4).
  ...(
    [
      ABSENT,
      null,
      '',
      'JWT',
      'jwt',
      'logout+jwt',
      'dpop+jwt',
      'secevent+jwt',
      'oauth-authz-req+jwt',
      'id_token+jwt',
      'at+jwt ',
      'at+jwt;v=1',
      'text/at+jwt',
      ['at+jwt'],
      1,
    ] as const
  ).map((typ) => [`typ ${JSON.stringify(typ)}`, token({}, { typ }), 'type'] as const),
  ['an ID token', token({ aud: 'web', nonce: 'n', at_hash: 'h' }, { typ: 'JWT' }), 'type'],

  // The key is the issuer's, whatever the token says of it (RFC 8725 §3.10).
  ...(
    [
      '',
      'key-2',
      '../../../../etc/passwd',
      "' OR 1=1 --",
      '__proto__',
      'constructor',
      'toString',
      'key-1\u0000',
      'KEY-1',
    ] as const
  ).map((kid) => [`kid ${JSON.stringify(kid)}`, token({}, { kid }), 'unknown_key'] as const),
  ...([null, 1, ['key-1'], { kid: 'key-1' }, true, 'k'.repeat(2000)] as const).map(
    (kid) => [`kid ${JSON.stringify(kid).slice(0, 20)}`, token({}, { kid }), 'kid'] as const,
  ),
  ['a key of its own in the header', token({}, { jwk: jwkOf(attackers.publicKey) }, attackers.privateKey), 'header'],
  ['its own key by address', token({}, { jku: 'https://evil.example/jwks' }, attackers.privateKey), 'header'],
  ['its own certificate by address', token({}, { x5u: 'https://evil.example/c.pem' }, attackers.privateKey), 'header'],
  ['its own certificate in the header', token({}, { x5c: ['MIIB'] }, attackers.privateKey), 'signature'],
  ['jku beside a good signature', token({}, { jku: 'https://id.example.com/jwks' }), 'header'],
  ['an extension that must be understood', token({}, { crit: ['urn:x'], 'urn:x': 1 }), 'header'],
  ['crit that names a registered member', token({}, { crit: ['exp'] }), 'header'],
  ['an empty crit', token({}, { crit: [] }), 'header'],
  ['crit that is no list', token({}, { crit: 'exp' }), 'header'],
  ['an unencoded payload', token({}, { b64: false, crit: ['b64'] }), 'header'],
  ['b64 true', token({}, { b64: true }), 'header'],
  ['a compressed payload', token({}, { zip: 'DEF' }), 'header'],
  ['an encrypted one by its header', token({}, { enc: 'A256GCM' }), 'header'],
  ['alg twice', sealed(`{"alg":"none",${header.slice(1)}`, JSON.stringify(goodClaims())), 'malformed'],
  ['typ twice', sealed(`{"typ":"JWT",${header.slice(1)}`, JSON.stringify(goodClaims())), 'malformed'],
  [
    'typ twice, once escaped',
    sealed(`{"\\u0074yp":"JWT",${header.slice(1)}`, JSON.stringify(goodClaims())),
    'malformed',
  ],
  ['a header with __proto__', sealed(`{"__proto__":{},${header.slice(1)}`, JSON.stringify(goodClaims())), 'malformed'],
  ...['', '[]', 'null', '"x"', '7', '{', `\uFEFF${header}`, `${header} x`, `{"a":${deep},${header.slice(1)}`].map(
    (text) =>
      [
        `the header ${JSON.stringify(text).slice(0, 24)}`,
        sealed(text, JSON.stringify(goodClaims())),
        'malformed',
      ] as const,
  ),
  [
    'a header that is not UTF-8',
    sealed(
      Buffer.concat([Buffer.from(header.slice(0, -1)), Buffer.from([0x2c, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])]),
      JSON.stringify(goodClaims()),
    ),
    'malformed',
  ],
  ['a header of ten thousand characters', token({}, { x: 'x'.repeat(10_000) }), 'malformed'],

  // The signature.
  ["an attacker's signature", token({}, {}, attackers.privateKey), 'signature'],
  ['the signature of another token', `${goodHead}.${goodBody}.${token().split('.')[2]}`, 'signature'],
  [
    'other claims under a good signature',
    `${goodHead}.${encode(JSON.stringify({ ...goodClaims(), sub: 'admin' }))}.${goodSeal}`,
    'signature',
  ],
  [
    'another header under a good signature',
    `${encode(JSON.stringify({ ...goodHeader, x: 1 }))}.${goodBody}.${goodSeal}`,
    'signature',
  ],
  [
    'a shortened signature',
    `${goodHead}.${goodBody}.${encode(Buffer.from(goodSeal, 'base64url').subarray(0, -1))}`,
    'signature',
  ],
  [
    'a lengthened signature',
    `${goodHead}.${goodBody}.${encode(Buffer.concat([Buffer.from(goodSeal, 'base64url'), Buffer.alloc(1)]))}`,
    'signature',
  ],
  ['a signature of zeros', `${goodHead}.${goodBody}.${encode(Buffer.alloc(256))}`, 'signature'],
  ['a signature of one byte', `${goodHead}.${goodBody}.AA`, 'signature'],
  ['no signature', `${goodHead}.${goodBody}.`, 'malformed'],
  ['other spare bits in the last character', replaceLastCharacter(good), 'malformed'],

  // The form.
  ['one segment', goodHead, 'malformed'],
  ['two segments', `${goodHead}.${goodBody}`, 'malformed'],
  ['four segments', `${good}.${goodSeal}`, 'malformed'],
  [
    'five segments: an encrypted token',
    'eyJhbGciOiJQQkVTMi1IUzI1NitBMTI4S1ciLCJwMmMiOjEwMDAwMDAwMDB9.AA.AA.AA.AA',
    'malformed',
  ],
  ['an empty header', `.${goodBody}.${goodSeal}`, 'malformed'],
  ['empty claims', `${goodHead}..${goodSeal}`, 'malformed'],
  ['only dots', '..', 'malformed'],
  ['padding', `${goodHead}=.${goodBody}.${goodSeal}`, 'malformed'],
  ['padding at the end', `${good}==`, 'malformed'],
  ['plain base64', `${goodHead}.${goodBody.replace(/.$/, '+')}.${goodSeal}`, 'malformed'],
  ['a segment of impossible length', `${goodHead}.${'A'.repeat(9)}.${goodSeal}`, 'malformed'],
  ['sixteen thousand characters too many', token({ pad: 'x'.repeat(17_000) }), 'invalid_request'],

  // Claims of the right issuer, signed by it, and still not for us (RFC 9068 §4).
  ...(
    [
      ABSENT,
      null,
      '',
      `${ISSUER}/`,
      'https://ID.example.com',
      'http://id.example.com',
      `${ISSUER}.evil.example`,
      'https://evil.example',
      [ISSUER],
      { iss: ISSUER },
      1,
      true,
    ] as const
  ).map((iss) => [`iss ${JSON.stringify(iss)}`, token({ iss }), 'issuer'] as const),
  ...(
    [
      null,
      '',
      `${AUDIENCE}/`,
      AUDIENCE.toUpperCase(),
      'https://api.example.com',
      `${AUDIENCE}2`,
      'https://other.example',
      [],
      ['https://other.example'],
      [[AUDIENCE]],
      [AUDIENCE, 1],
      { aud: AUDIENCE },
      1,
      true,
    ] as const
  ).map((aud) => [`aud ${JSON.stringify(aud)}`, token({ aud }), 'audience'] as const),
  ['no aud', token({ aud: ABSENT }), 'audience'],
  ...([null, `${NOW + 600}`, true, [NOW + 600], {}, -1, 1e15] as const).map(
    (exp) => [`exp ${JSON.stringify(exp)}`, token({ exp }), 'claim_shape'] as const,
  ),
  ['no exp', token({ exp: ABSENT }), 'claim_shape'],
  ['exp 1e999, which is read as infinity', withRawMember('"exp":1e999', { exp: ABSENT }), 'claim_shape'],
  ['exp 0', token({ exp: 0 }), 'lifetime'],
  ['exp before iat', token({ iat: NOW - 10, exp: NOW - 20 }), 'lifetime'],
  ['a token for ten years', token({ exp: NOW + 315_360_000 }), 'lifetime'],
  ['an expired token', token({ iat: NOW - 1000, exp: NOW - 5 }), 'expired'],
  ['no iat', token({ iat: ABSENT }), 'claim_shape'],
  ...([null, `${NOW}`, true, -1, 1e15] as const).map(
    (iat) => [`iat ${JSON.stringify(iat)}`, token({ iat }), 'claim_shape'] as const,
  ),
  ['iat -1e999', withRawMember('"iat":-1e999', { iat: ABSENT }), 'claim_shape'],
  ['a token of the future by iat', token({ iat: NOW + 60 }), 'not_yet_valid'],
  ['a token of the future by nbf', token({ nbf: NOW + 60 }), 'not_yet_valid'],
  ...([null, `${NOW}`, true, {}] as const).map(
    (nbf) => [`nbf ${JSON.stringify(nbf)}`, token({ nbf }), 'claim_shape'] as const,
  ),
  ['nbf 1e999', withRawMember('"nbf":1e999'), 'claim_shape'],
  ['auth_time as text', token({ auth_time: `${NOW}` }), 'claim_shape'],
  ...([ABSENT, null, '', 1, true, ['alice'], { sub: 'alice' }, 's'.repeat(2000)] as const).map(
    (sub) => [`sub ${JSON.stringify(sub)?.slice(0, 20)}`, token({ sub }), 'claim_shape'] as const,
  ),
  ['no jti', token({ jti: ABSENT }), 'claim_missing'],
  ['no client_id', token({ client_id: ABSENT }), 'claim_missing'],
  ...([null, '', 1, ['x'], {}] as const).flatMap(
    (value) =>
      [
        [`jti ${JSON.stringify(value)}`, token({ jti: value }), 'claim_shape'],
        [`client_id ${JSON.stringify(value)}`, token({ client_id: value }), 'claim_shape'],
      ] as const,
  ),
  ...([null, 1, true, {}, [1], [['models:read']]] as const).map(
    (scope) => [`scope ${JSON.stringify(scope)}`, token({ scope }), 'claim_shape'] as const,
  ),
  ...([null, 1, true, {}, [1], [{ display: 'Admin' }], [null]] as const).flatMap(
    (value) =>
      [
        [`roles ${JSON.stringify(value)}`, token({ roles: value }), 'claim_shape'],
        [`groups ${JSON.stringify(value)}`, token({ groups: value }), 'claim_shape'],
      ] as const,
  ),
  ...(
    [null, 'service', 1, [], {}, { sub: 1 }, { sub: '' }, { sub: 'a', act: 'b' }, { sub: 'a', act: {} }] as const
  ).map((act) => [`act ${JSON.stringify(act)}`, token({ act }), 'claim_shape'] as const),

  // Bound to a key or a certificate, and sent as if it were not (RFC 7800, RFC 9449 §7.1).
  ['a DPoP-bound token as a plain bearer', token({ cnf: { jkt: 'x'.repeat(43) } }), 'binding'],
  ['a token bound to a client certificate', token({ cnf: { 'x5t#S256': 'x'.repeat(43) } }), 'binding'],
  ['a token bound to both', token({ cnf: { jkt: 'x'.repeat(43), 'x5t#S256': 'y' } }), 'binding'],
  ...([null, {}, [], 'jkt', { jkt: 1 }, { jkt: '' }] as const).map(
    (cnf) => [`cnf ${JSON.stringify(cnf)}`, token({ cnf }), 'binding'] as const,
  ),

  // JSON that two parsers may read in two ways (RFC 8725 §3.7).
  ['sub twice', withRawMember('"sub":"admin"'), 'malformed'],
  ['sub twice, once escaped', withRawMember('"\\u0073ub":"admin"'), 'malformed'],
  ['sub twice, after a text that ends in a backslash', withRawMember('"x":"\\\\","sub":"admin"'), 'malformed'],
  ['sub twice, after a text that ends in a quote', withRawMember('"x":"\\"","sub":"admin"'), 'malformed'],
  ['exp twice', withRawMember(`"exp":${NOW + 999_999}`), 'malformed'],
  ['a member twice inside a claim', withRawMember('"act":{"sub":"a","sub":"b"}'), 'malformed'],
  ['__proto__ among the claims', withRawMember('"__proto__":{"roles":["admin"]}'), 'malformed'],
  ['__proto__ inside a claim', withRawMember('"act":{"sub":"a","__proto__":{"sub":"b"}}'), 'malformed'],
  ['claims nested forty deep', withRawMember(`"x":${deep}`), 'malformed'],
  ['claims that are not UTF-8', sealed(header, Buffer.from('{"iss":"\xff"}', 'latin1')), 'malformed'],
  ...[
    '[]',
    'null',
    '"alice"',
    '7',
    '{',
    '{"iss":NaN}',
    "{'iss':1}",
    `\uFEFF${JSON.stringify(goodClaims())}`,
    `${JSON.stringify(goodClaims())}{}`,
  ].map((text) => [`the claims ${JSON.stringify(text).slice(0, 24)}`, sealed(header, text), 'malformed'] as const),
]

describe('a token that is not good here', () => {
  it.each(hostile)('is refused: %s', async (_what, credential, reason) => {
    const error = await refusal(`Bearer ${credential}`)
    expect([400, 401]).toContain(error.status)
    expect(error.reason).toBe(reason)
  })

  it('tells its sender nothing but expiry and revocation', async () => {
    for (const [, credential] of hostile) {
      const { status, detail, headers } = await refusal(`Bearer ${credential}`)
      if (status !== 401) continue
      expect(['The access token is not valid here.', 'The access token expired.']).toContain(detail)
      expect(headers['WWW-Authenticate']).toMatch(/error="invalid_token"/)
    }
  })

  it('is refused again when it comes again: nothing bad is remembered as good', async () => {
    for (const [, credential] of hostile) {
      const first = await refusal(`Bearer ${credential}`)
      const second = await refusal(`Bearer ${credential}`)
      expect(second.reason).toBe(first.reason)
    }
  })
})

describe('a good token with one character changed', () => {
  it('is refused, whichever character it is', async () => {
    for (let at = 0; at < good.length; at += 1) {
      for (const other of ['A', '_', '.']) {
        if (good[at] === other) continue
        const changed = good.slice(0, at) + other + good.slice(at + 1)
        const { status } = await refusal(`Bearer ${changed}`)
        expect(status).toBe(401)
      }
      const { status } = await refusal(`Bearer ${good.slice(0, at)}${good.slice(at + 1)}`)
      expect([400, 401]).toContain(status)
    }
  })
})

describe('every hostile token, sent to a service over HTTP', () => {
  it('is answered 400 or 401, never 5xx', async () => {
    const app = new Koa()
    const failures: unknown[] = []
    app.on('error', (error: unknown) => failures.push(error))
    app.use(authenticate(guard))
    app.use((ctx) => {
      ctx.body = 'let in'
    })
    const service = await serving(app.callback())
    for (const [what, credential] of hostile) {
      const response = await fetch(service.origin, { headers: { authorization: `Bearer ${credential}` } })
      // A header that is too large never gets as far as the guard: Node answers 431 by itself.
      const expected = credential.length > 16_000 ? [431] : [400, 401]
      if (!expected.includes(response.status)) failures.push([what, response.status])
      await response.arrayBuffer()
    }
    service.close()
    expect(failures).toEqual([])
  })
})

describe('an Authorization header that is no token', () => {
  it.each([
    ['the scheme alone', 'Bearer', 'invalid_request'],
    ['the scheme and a space', 'Bearer ', 'invalid_request'],
    ['two tokens', `Bearer ${good} ${good}`, 'invalid_request'],
    ['two headers that a proxy joined', `Bearer ${good}, Bearer ${good}`, 'invalid_request'],
    ['a quoted token', `Bearer "${good}"`, 'malformed'],
    ['letters of no token', 'Bearer ünicode', 'malformed'],
    ['a colon after the scheme', `Bearer:${good}`, 'missing_credentials'],
    ['another scheme', `Token ${good}`, 'missing_credentials'],
    ['a password', `Basic ${Buffer.from('alice:secret').toString('base64')}`, 'missing_credentials'],
    ['a token without a scheme', good, 'missing_credentials'],
  ])('is refused: %s', async (_what, header, reason) => {
    const error = await refusal(header)
    expect(error.reason).toBe(reason)
  })
})

describe('a good token', () => {
  it.each([
    ['as it is', token()],
    ['for several services', token({ aud: ['https://other.example', AUDIENCE] })],
    ['with the long form of its type', token({}, { typ: 'application/at+jwt' })],
    ['with its type in capitals', token({}, { typ: 'AT+JWT' })],
    ['without a key id, where there is one key', token({}, { kid: ABSENT })],
    ['with a certificate thumbprint nobody asked for', token({}, { x5t: 'abc' })],
    ['within the clock tolerance after its end', token({ iat: NOW - 900, exp: NOW - 4 })],
    ['within the clock tolerance before its beginning', token({ iat: NOW + 4, nbf: NOW + 4 })],
    ['with fractions of seconds', token({ iat: NOW - 10.5, exp: NOW + 100.25 })],
    ['with accents and emoji', token({ name: 'Zoë 🗝' })],
    ['with quotes, colons and braces in its texts', token({ name: 'a":{"b', motto: 'c:\\', note: '\\":[{,' })],
    ['with no scope and no role', token({ scope: ABSENT, roles: ABSENT })],
    ['with roles as SCIM writes them', token({ roles: [{ value: 'developer', display: 'Developer' }] })],
  ])('is accepted: %s', async (_what, credential) => {
    const auth = await guard.authenticate(request(`Bearer ${credential}`))
    expect(auth.subject).toMatchObject({ type: 'user', id: 'alice', issuer: ISSUER })
  })

  it('is accepted whatever the case of the scheme (RFC 9110 §11.1)', async () => {
    await expect(guard.authenticate(request(`bEARER ${good}`))).resolves.toBeDefined()
  })
})
