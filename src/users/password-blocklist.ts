/**
 * What makes a bad password: too short, too long, common, or made of what everybody knows about its owner. There are no
 * rules about kinds of characters (NIST SP 800-63B-4 §3.1.1.2). The common ones are the list that zxcvbn-ts keeps: some
 * 49,000, of which about 18,000 are long enough to be chosen at all (OWASP ASVS 5.0 6.2.4 asks for 3,000 of those). An
 * operator can add a file, such as one of breached passwords.
 */
import { readFileSync, statSync } from 'node:fs'
import { dictionary } from '@zxcvbn-ts/language-common'

/** The shortest password, in characters (Unicode code points). */
export const minPasswordCharacters = 8
/** The longest, in bytes of UTF-8 after normalisation: long enough for any passphrase, and bounded. */
export const maxPasswordBytes = 1_024

/** Common passwords, in lower case. */
export type Blocklist = ReadonlySet<string>

/** What everybody knows about the person, and so must not be most of the password. */
export interface PasswordContext {
  readonly email?: string | undefined
  readonly name?: string | null | undefined
  /** more words, whole: the product's name, the provider's host */
  readonly words?: readonly string[] | undefined
}

/** One thing that speaks against a password. */
export interface PasswordProblem {
  /** for programs */
  readonly constraint: 'well_formed' | 'min_length' | 'max_bytes' | 'common_password' | 'repetitive' | 'context_words'
  /** for the person who chose it; says what to do, and never repeats the password */
  readonly message: string
}

/** The operator's file of more passwords cannot be used; the message says why. */
export class BlocklistError extends Error {
  override name = 'BlocklistError'
}

const maxFileBytes = 64 * 1_024 * 1_024
const minContextWordCharacters = 3

/**
 * @param file more passwords to refuse, one a line
 * @throws BlocklistError when the file cannot be read, or is larger than 64 MiB
 */
export function openBlocklist(file?: string): Blocklist {
  return new Set([...dictionary['passwords-common'], ...(file === undefined ? [] : readLines(file))])
}

/**
 * Everything that speaks against a new password; empty when it is good.
 * @param typed as the person typed it
 */
export function findPasswordProblems(typed: string, blocklist: Blocklist, context: PasswordContext): PasswordProblem[] {
  // NFC may shorten a text to a third; what is longer than that is not worth normalising.
  const plain = typed.length > maxPasswordBytes * 3 ? typed : typed.normalize('NFC')
  if (!plain.isWellFormed()) {
    return [{ constraint: 'well_formed', message: 'This password holds characters that are not valid Unicode.' }]
  }
  if (Buffer.byteLength(plain) > maxPasswordBytes) {
    return [{ constraint: 'max_bytes', message: `Choose a password of at most ${maxPasswordBytes} bytes.` }]
  }
  const problems: PasswordProblem[] = []
  const characters = Array.from(plain)
  if (characters.length < minPasswordCharacters) {
    problems.push({
      constraint: 'min_length',
      message: `Choose a password of at least ${minPasswordCharacters} characters.`,
    })
  }
  const lower = plain.toLowerCase()
  if (blocklist.has(lower) || blocklist.has(withoutDecoration(lower))) {
    problems.push({
      constraint: 'common_password',
      message:
        'This password is among those that attackers try first. Choose another, for example three unrelated words.',
    })
  } else if (new Set(characters).size <= 2) {
    problems.push({ constraint: 'repetitive', message: 'Choose a password of more than two different characters.' })
  }
  if (isMostlyContext(lower, context)) {
    problems.push({
      constraint: 'context_words',
      message: 'This password is too close to your name, your email address or the name of this service.',
    })
  }
  return problems
}

/** `Password1!` is `password` with what everybody adds: up to four digits and signs around a word. */
function withoutDecoration(lower: string): string {
  const core = lower.replaceAll(/^[^\p{L}]+|[^\p{L}]+$/gu, '')
  return lower.length - core.length <= 4 ? core : lower
}

/** Whether too little for a password is left without the words that everybody knows. */
function isMostlyContext(lower: string, context: PasswordContext): boolean {
  let rest = lower
  for (const word of contextWords(context)) rest = rest.replaceAll(word, '')
  return rest !== lower && Array.from(rest).length < minPasswordCharacters
}

/** The longest first, so that a part of a word does not hide the whole. */
function contextWords({ email, name, words }: PasswordContext): string[] {
  const wholes = [email ?? '', name ?? '', ...(words ?? [])].map((text) =>
    text.slice(0, 320).normalize('NFC').toLowerCase(),
  )
  const parts = wholes.flatMap((text) => [text, ...text.split(/[^\p{L}\p{N}]+/u)])
  return [...new Set(parts)]
    .filter((word) => Array.from(word).length >= minContextWordCharacters)
    .sort((a, b) => b.length - a.length)
}

function readLines(file: string): string[] {
  try {
    const { size } = statSync(file)
    if (size > maxFileBytes) throw new Error(`it is larger than ${maxFileBytes} bytes`)
    return readFileSync(file, 'utf8')
      .split(/\r?\n/)
      .filter((line) => line !== '')
      .map((line) => line.normalize('NFC').toLowerCase())
  } catch (error) {
    throw new BlocklistError(
      `The list of passwords ${file} cannot be read: ${error instanceof Error ? error.message : String(error)}`,
      { cause: error },
    )
  }
}
