/**
 * A cursor: where in a list a page ended, as a text that callers hand back and cannot make or change. It holds the
 * values that the last item was sorted by, under a signature over them and over what they are good for: the list, its
 * sort, its filters, and whose view of it. Any of these changed, it is as good as forged.
 *
 *   base64url( version (1 byte) ‖ HMAC-SHA-256, 16 bytes ‖ JSON array of texts )
 */
import { Problem } from '../problems.ts'

/** Signs texts with a secret that is replaced now and then. */
export interface CursorSigner {
  /** 16 bytes */
  sign(text: string): Buffer
  /** Whether any secret that is still accepted made it; in constant time. */
  verify(text: string, signature: Uint8Array): boolean
}

/** What a cursor is good for. */
export type CursorContext = readonly (string | number | boolean | null | readonly unknown[])[]

export function writeCursor(
  _signer: CursorSigner,
  _context: CursorContext,
  _position: readonly (string | null)[],
): string {
  throw new Problem('SERVER_ERROR')
}

/** @throws Problem VALIDATION_ERROR */
export function readCursor(_signer: CursorSigner, _context: CursorContext, _cursor: string): (string | null)[] {
  throw new Problem('SERVER_ERROR')
}
