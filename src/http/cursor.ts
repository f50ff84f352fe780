/**
 * A cursor: where in a list a page ended, as a text that callers hand back and cannot make or change. It holds the
 * values that the last item was sorted by, under a signature over them and over what they are good for: the list, its
 * sort, its filters, and whose view of it. Any of these changed, it is as good as forged.
 *
 *   base64url( version (1 byte) ‖ HMAC-SHA-256, 16 bytes ‖ JSON array of texts )
 */
import { Problem } from '../problems.ts'
import { maxCursorLength } from './list-query.ts'

/** Signs texts with a secret that is replaced now and then. */
export interface CursorSigner {
  /** 16 bytes */
  sign(text: string): Buffer
  /** Whether any secret that is still accepted made it; in constant time. */
  verify(text: string, signature: Uint8Array): boolean
}

/** What a cursor is good for, as anything that JSON tells apart. */
export type CursorContext = readonly unknown[]

/** The values that an item is sorted by, as the database writes them. */
export type Position = readonly (string | null)[]

const version = 1
const signatureLength = 16

export function writeCursor(signer: CursorSigner, context: CursorContext, position: Position): string {
  const json = JSON.stringify(position)
  const signature = signer.sign(signedText(context, json))
  const cursor = Buffer.concat([Buffer.of(version), signature, Buffer.from(json, 'utf8')]).toString('base64url')
  if (cursor.length > maxCursorLength) throw new Error('a list is sorted by something too long for a cursor')
  return cursor
}

/** @throws Problem VALIDATION_ERROR for one that was not made for this list, sort, filters and caller */
export function readCursor(signer: CursorSigner, context: CursorContext, cursor: string): Position {
  const bytes = Buffer.from(cursor, 'base64url')
  const json = bytes.subarray(1 + signatureLength).toString('utf8')
  const signature = bytes.subarray(1, 1 + signatureLength)
  // Decoding forgives what encoding never writes: one position has one cursor.
  const isOurs =
    bytes[0] === version &&
    bytes.toString('base64url') === cursor &&
    cursor.length <= maxCursorLength &&
    signer.verify(signedText(context, json), signature)
  if (!isOurs) throw foreignCursor()
  return JSON.parse(json) as Position
}

function signedText(context: CursorContext, json: string): string {
  return JSON.stringify(['cursor', version, ...context, json])
}

function foreignCursor(): Problem {
  const message = 'Not a cursor of this list with this sort and these filters: start again without it'
  return new Problem('VALIDATION_ERROR', `cursor: ${message}`, {
    details: [{ field: 'cursor', constraint: 'unknown', message }],
  })
}
