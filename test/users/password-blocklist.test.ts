import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { BlocklistError, findPasswordProblems, openBlocklist } from '../../src/users/password-blocklist.ts'

const blocklist = openBlocklist()
const alice = { email: 'alice.liddell@wonderland.example', name: 'Alice Pleasance Liddell' }
const constraints = (plain: string, context: Parameters<typeof findPasswordProblems>[2] = {}) =>
  findPasswordProblems(plain, blocklist, context).map(({ constraint }) => constraint)

function file(content: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'latchkey-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  writeFileSync(join(folder, 'list.txt'), content)
  return join(folder, 'list.txt')
}

describe('a new password is refused', () => {
  it.each([
    ['seven characters', 'x7#Kq9z', ['min_length']],
    ['nothing at all', '', ['min_length', 'repetitive']],
    ['a short common one, for both reasons', 'dragon', ['min_length', 'common_password']],
    ['a common one', 'sunshine', ['common_password']],
    ['a common one in capitals', 'TrustNo1', ['common_password']],
    ['a common one with what everybody adds', 'Password1!', ['common_password']],
    ['a common one with a year before it', '2026dragon', ['common_password']],
    ['one character over and over', 'zzzzzzzzzzzzzzzzzzzzz', ['repetitive']],
    ['two characters over and over', '¿¡¿¡¿¡¿¡¿¡¿¡', ['repetitive']],
    ['1,025 bytes', 'é1'.repeat(342), ['max_bytes']],
    ['half a surrogate pair', 'otters \ud83d otters', ['well_formed']],
  ])('%s', (_name, plain, expected) => {
    expect(constraints(plain)).toEqual(expected)
  })

  it.each(['alice.liddell', 'LIDDELL-2026', 'Wonderland-Alice', 'liddell alice', 'alice.liddell@wonderland.example'])(
    'that is little but what everybody knows: %s',
    (plain) => {
      expect(constraints(plain, alice)).toEqual(['context_words'])
    },
  )

  it('in words that do not repeat it', () => {
    for (const plain of ['dragon', 'zzzzzzzzzz', 'liddell2026']) {
      for (const { message } of findPasswordProblems(plain, blocklist, alice)) expect(message).not.toContain(plain)
    }
  })

  it("when the operator's own list has it", () => {
    const own = openBlocklist(file('Correct Horse\r\nbattery staple\n\n'))
    expect(findPasswordProblems('correct horse', own, {}).map(({ constraint }) => constraint)).toEqual([
      'common_password',
    ])
    expect(findPasswordProblems('Battery Staple', own, {})).toHaveLength(1)
    expect(findPasswordProblems('sunshine', own, {})).toHaveLength(1)
    expect(findPasswordProblems('correct battery', own, {})).toEqual([])
  })
})

describe('a new password is accepted', () => {
  it.each([
    'seven purple otters',
    'x7#Kq9z!',
    'Ünïcödé für álle',
    '密码非常安全的句子',
    'dragon lives in my teapot',
    'a'.repeat(60) + 'bcd',
  ])('without rules about kinds of characters: %s', (plain) => {
    expect(constraints(plain)).toEqual([])
  })

  it('of up to 1,024 bytes', () => {
    expect(constraints('éa'.repeat(341) + 'b')).toEqual([])
  })

  it('that mentions its owner among enough other things', () => {
    expect(constraints('alice never liked croquet', alice)).toEqual([])
  })

  it('however long the name is', () => {
    expect(
      constraints('seven purple otters', { email: `${'x'.repeat(100_000)}@b`, name: 'y'.repeat(100_000) }),
    ).toEqual([])
  })
})

describe('the list of common passwords', () => {
  it('holds at least 3,000 that are long enough to be chosen', () => {
    expect([...blocklist].filter((entry) => entry.length >= 8).length).toBeGreaterThan(3_000)
  })

  it('is in lower case, as it is asked', () => {
    expect([...blocklist].filter((entry) => entry !== entry.toLowerCase())).toEqual([])
  })

  it('says which file it could not read', () => {
    expect(() => openBlocklist('/nowhere/list.txt')).toThrow(BlocklistError)
    expect(() => openBlocklist('/nowhere/list.txt')).toThrow('/nowhere/list.txt')
  })
})
