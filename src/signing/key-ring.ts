/**
 * This folder owns the keys that tokens are signed with and the other secrets of the server. They rest in the database,
 * sealed (key-encryption.ts); each process keeps them opened in memory here and in secret-ring.ts, and reads them anew
 * when the database says that they changed (reload.ts). rotation.ts moves the signing keys through their lives. Nobody
 * else touches a private key: whoever signs is handed what signs with one.
 */
import type { KeyObject } from 'node:crypto'
import { SignJWT, type JWTPayload } from 'jose'
import type { Logger } from 'pino'
import { systemActor } from '../audit/audit.ts'
import type { Config } from '../config.ts'
import type { Changes } from '../database/changes.ts'
import type { Database } from '../database/database.ts'
import type { KeyEncryption } from './key-encryption.ts'
import { openReloading } from './reload.ts'
import { countMissingKeys, makeMissingKeys } from './rotation.ts'
import { openSigningKey, prepareSigningKey, type PublicJwk, type Signer, type SigningKey } from './signing-key.ts'

export interface SignedJwt {
  readonly jwt: string
  /** of the key that signed it */
  readonly kid: string
}

export interface KeyRing {
  /**
   * The keys that are published, the one that signs first, then the next, then those that are retiring.
   * @throws Error when none can be opened
   */
  signers(): readonly Signer[]
  /** The JWK set to publish (RFC 7517 §5), in the same order. */
  publicJwks(): { keys: PublicJwk[] }
  /** The key to verify a token of ours with; undefined when no published key has this kid. */
  verificationKey(kid: string): KeyObject | undefined
  /**
   * Signs a JWT of the provider's own, with the key that signs now.
   * @param typ what it is, so that none can be taken for another (RFC 8725 §3.11): `secevent+jwt`
   * @throws Error when no key can be opened
   */
  sign(typ: string, claims: JWTPayload): Promise<SignedJwt>
  /** Calls `listener` after the published keys, or the one that signs, changed; returns what ends it. */
  onChange(listener: () => void): () => void
  /**
   * Takes up what was committed to the keys before, without waiting to hear of it: for whoever changed them, so that what
   * it answers is so in this process.
   */
  reload(): Promise<void>
  close(): Promise<void>
}

/** The notification usually takes milliseconds; this is how long a lost one can matter, in seconds. */
const pollSeconds = 20

const order = ['current', 'next', 'retiring'] as const
type PublishedState = (typeof order)[number]

/**
 * Opens the keys, and makes the first two if there are none: any number of processes that start at once make one set.
 * @throws KeyEncryptionError when a published key cannot be opened
 */
export async function openKeyRing({
  database,
  changes,
  encryption,
  config,
  log,
}: {
  database: Pick<Database, 'db'>
  changes: Changes
  encryption: KeyEncryption
  config: Pick<Config, 'rsaBits'>
  log: Logger
}): Promise<KeyRing> {
  const { db } = database
  const listeners = new Set<() => void>()
  let keys: readonly SigningKey[] = []
  let isOpen = false

  async function findPublished(): Promise<{ kid: string; state: PublishedState; sealed: Uint8Array | null }[]> {
    const rows = await db
      .selectFrom('signing_keys')
      .select(['kid', 'state', 'sealed_private_jwk as sealed'])
      .where('state', 'in', order)
      .orderBy('created_at', 'desc')
      .orderBy('kid')
      .execute()
    return order.flatMap((state) => rows.filter((row) => row.state === state).map((row) => ({ ...row, state })))
  }

  /** @returns the keys in their order, and the error of each that cannot be opened */
  async function read(): Promise<{ opened: SigningKey[]; hasCurrent: boolean; kids: string[]; errors: unknown[] }> {
    const rows = await findPublished()
    const opened: SigningKey[] = []
    const errors: unknown[] = []
    let hasCurrent = false
    for (const { kid, state, sealed } of rows) {
      try {
        // What a kid names never changes: a key that is open already is kept, and with it everything made from it.
        const known = keys.find(({ publicJwk }) => publicJwk.kid === kid)
        opened.push(known ?? (await openSigningKey(encryption, kid, sealed ?? new Uint8Array())))
        hasCurrent ||= state === 'current'
      } catch (error) {
        errors.push(error)
      }
    }
    return { opened, hasCurrent, kids: rows.map(({ kid }) => kid), errors }
  }

  async function load(): Promise<void> {
    const { opened, hasCurrent, kids, errors } = await read()
    if (!isOpen) {
      if (errors.length > 0) throw errors[0]
      if (!hasCurrent) throw new Error('No signing key is in use: start again')
      keys = opened
      return
    }
    for (const error of errors) {
      log.error({ error_message: String(error) }, 'a signing key cannot be opened: it is not used')
    }
    // Without the key that signs, go on with those that are still published; what is revoked is gone in any case.
    const fallback = keys.filter(({ publicJwk }) => kids.includes(publicJwk.kid))
    const before = kidsOf(keys)
    keys = hasCurrent ? opened : fallback
    if (kidsOf(keys) === before) return
    log.info({ kid: keys[0]?.publicJwk.kid, published: keys.length }, 'the signing keys changed')
    for (const listener of listeners) {
      try {
        listener()
      } catch (error) {
        log.error({ error_message: String(error) }, 'new signing keys could not be taken up')
      }
    }
  }

  const missing = await countMissingKeys(db)
  if (missing > 0) {
    const fresh = await Promise.all(
      Array.from({ length: missing }, () => prepareSigningKey({ encryption, rsaBits: config.rsaBits })),
    )
    await db.transaction().execute((trx) => makeMissingKeys(trx, systemActor, { fresh }))
  }
  const { reload, close } = await openReloading({ changes, topic: 'keys', everySeconds: pollSeconds, log }, load)
  isOpen = true

  return {
    signers() {
      if (keys.length === 0) throw noKey()
      return keys
    },
    publicJwks: () => ({ keys: keys.map(({ publicJwk }) => publicJwk) }),
    verificationKey: (kid) => keys.find(({ publicJwk }) => publicJwk.kid === kid)?.publicKey,
    async sign(typ, claims) {
      const [key] = keys
      if (key === undefined) throw noKey()
      const { kid, alg } = key.publicJwk
      return { kid, jwt: await new SignJWT(claims).setProtectedHeader({ typ, alg, kid }).sign(key.privateKey) }
    },
    onChange(listener) {
      listeners.add(listener)
      return () => void listeners.delete(listener)
    },
    reload,
    close,
  }
}

function noKey(): Error {
  return new Error('No signing key can be opened: see the log')
}

function kidsOf(keys: readonly SigningKey[]): string {
  return keys.map(({ publicJwk }) => publicJwk.kid).join(' ')
}
