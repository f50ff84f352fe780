/** `latchkey keys …`: the signing keys, the other secrets, and the key that they rest under. */
import type { Command } from 'commander'
import { pino } from 'pino'
import { openKeyEncryption, reseal, type KeyEncryption } from '../signing/key-encryption.ts'
import {
  countMissingKeys,
  findSigningKeys,
  makeMissingKeys,
  revokeKey,
  rotateKeys,
  SigningKeyNotReady,
  UnknownSigningKey,
} from '../signing/rotation.ts'
import { rotateSecret, secretPurposes } from '../signing/secret-ring.ts'
import { prepareSigningKey } from '../signing/signing-key.ts'
import { CommandFailed, printJson, printTable, UsageError, type CommandContext } from './command.ts'

export function addKeys(program: Command, context: CommandContext): void {
  const keys = program.command('keys').description('signing keys, and the other secrets of the server')
  addList(keys, context)
  addRotate(keys, context)
  addRevoke(keys, context)
  addReseal(keys, context)
  addRotateSecret(keys, context)
}

function addList(keys: Command, context: CommandContext): void {
  const { io } = context
  keys
    .command('list')
    .description('list the signing keys, the newest first')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: true }) => {
      const found = await context.withDatabase(({ db }) => findSigningKeys(db))
      if (json) {
        printJson(
          io,
          found.map((key) => ({
            kid: key.kid,
            state: key.state,
            algorithm: key.algorithm,
            created_at: key.createdAt,
            current_since: key.currentSince ?? null,
            published_until: key.publishedUntil ?? null,
            sealed_under: key.sealedUnder ?? null,
          })),
        )
        return
      }
      printTable(
        io,
        ['kid', 'state', 'created', 'signs since', 'published until', 'sealed under'],
        found.map((key) => [
          key.kid,
          key.state,
          key.createdAt.toISOString(),
          key.currentSince?.toISOString() ?? '-',
          key.publishedUntil?.toISOString() ?? '-',
          key.sealedUnder ?? '-',
        ]),
      )
    })
}

function addRotate(keys: Command, context: CommandContext): void {
  const { io, actor } = context
  keys
    .command('rotate')
    .description('let the next signing key sign, and make another that waits')
    .option('--now', 'even when the next key has not been published for long enough')
    .option('--json', 'print JSON')
    .action(async ({ now, json }: { now?: true; json?: true }) => {
      const { rsaBits, keyPublishAheadSeconds: publishAheadSeconds } = context.config
      const rotated = await context
        .withDatabase(async ({ db }) => {
          const encryption = open(context)
          const missing = await prepare(encryption, rsaBits, await countMissingKeys(db))
          if (missing.length > 0) {
            await db.transaction().execute((trx) => makeMissingKeys(trx, actor, { fresh: missing }))
          }
          const fresh = await prepareSigningKey({ encryption, rsaBits })
          return db
            .transaction()
            .execute((trx) => rotateKeys(trx, actor, { fresh, publishAheadSeconds, now: now === true }))
        })
        .catch((error: unknown) => {
          if (!(error instanceof SigningKeyNotReady)) throw error
          throw new CommandFailed(`${error.message}, or rotate at once with --now`, { cause: error })
        })
      if (rotated.isEarly) {
        io.err(
          `${rotated.current} had been published for less than ${publishAheadSeconds} seconds: services that keep a copy of the JWKS must fetch it anew before they accept new tokens.`,
        )
      }
      if (json) {
        printJson(io, {
          current: rotated.current,
          next: rotated.next,
          retiring: rotated.retiring ?? null,
          early: rotated.isEarly,
        })
        return
      }
      io.out(`${rotated.current} signs from now on`)
      io.out(`${rotated.next} is published and will be next`)
      if (rotated.retiring !== undefined) io.out(`${rotated.retiring} stays published until its last token is dead`)
    })
}

function addRevoke(keys: Command, context: CommandContext): void {
  const { io, actor } = context
  keys
    .command('revoke')
    .description('for a key that somebody else may have: unpublish and erase it, and refuse every token it signed')
    .argument('<kid>')
    .option('--reason <text>', 'for the audit record', 'revoked by an operator')
    .option('--json', 'print JSON')
    .action(async (kid: string, { reason, json }: { reason: string; json?: true }) => {
      if (reason.length > 200) throw new UsageError('--reason must be 200 characters at most')
      const revoked = await context
        .withDatabase(async ({ db }) => {
          const fresh = await prepareSigningKey({ encryption: open(context), rsaBits: context.config.rsaBits })
          return db.transaction().execute((trx) => revokeKey(trx, actor, { kid, reason, fresh }))
        })
        .catch((error: unknown) => {
          if (!(error instanceof UnknownSigningKey)) throw error
          throw new CommandFailed(error.message, { cause: error })
        })
      if (json) {
        printJson(io, { kid, changed: revoked.isChanged, promoted: revoked.promoted ?? null })
        return
      }
      io.out(revoked.isChanged ? `${kid} is revoked` : `${kid} was revoked before`)
      if (revoked.promoted !== undefined) io.out(`${revoked.promoted} signs from now on`)
    })
}

function addReseal(keys: Command, context: CommandContext): void {
  const { io, actor } = context
  keys
    .command('reseal')
    .description('seal everything anew under the first key of LATCHKEY_KEY_ENCRYPTION_KEY, to replace the others')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: true }) => {
      const { keyId, resealed, unchanged } = await context.withDatabase(async ({ db }) => {
        const encryption = open(context)
        const counts = await db.transaction().execute((trx) => reseal(trx, actor, { encryption }))
        return { keyId: encryption.keyId, ...counts }
      })
      if (json) printJson(io, { key_id: keyId, resealed, unchanged })
      else io.out(`${resealed} rows sealed anew under '${keyId}'; ${unchanged} were already`)
    })
}

function addRotateSecret(keys: Command, context: CommandContext): void {
  const { io, actor } = context
  keys
    .command('rotate-secret')
    .description('replace one of the other secrets')
    .argument('<purpose>', secretPurposes.join(', '))
    .option('--accept-old-for <seconds>', 'how long the old one still counts; 0: no longer', '86400')
    .option('--json', 'print JSON')
    .action(async (purposeText: string, { acceptOldFor, json }: { acceptOldFor: string; json?: true }) => {
      const purpose = secretPurposes.find((candidate) => candidate === purposeText)
      if (purpose === undefined) throw new UsageError(`<purpose> must be one of ${secretPurposes.join(', ')}`)
      if (!/^\d{1,8}$/.test(acceptOldFor)) throw new UsageError('--accept-old-for must be a whole number of seconds')
      const acceptOldForSeconds = Number(acceptOldFor)
      const id = await context.withDatabase(async ({ db }) => {
        const encryption = open(context)
        return db.transaction().execute((trx) => rotateSecret(trx, actor, { purpose, acceptOldForSeconds, encryption }))
      })
      if (json) printJson(io, { id, purpose, accept_old_for_seconds: acceptOldForSeconds })
      else io.out(`the secret for ${purpose} is replaced by ${id}`)
    })
}

function open({ config }: CommandContext): KeyEncryption {
  return openKeyEncryption({ config, log: pino({ level: 'silent' }) })
}

async function prepare(encryption: KeyEncryption, rsaBits: number, count: number) {
  return Promise.all(Array.from({ length: count }, () => prepareSigningKey({ encryption, rsaBits })))
}
