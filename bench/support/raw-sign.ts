/**
 * The limit: nothing but RSA-2048 signatures over what a token of this size signs, with a key that is parsed once. As a
 * program of its own; asked for a number of signatures, it answers with the processor time of one, in microseconds.
 */
import { generateKeyPairSync, randomBytes, sign } from 'node:crypto'

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2_048 })
const input = Buffer.from(randomBytes(320).toString('base64url'))

process.on('message', (count: number) => {
  const before = process.cpuUsage()
  for (let i = 0; i < count; i += 1) sign('sha256', input, privateKey)
  const { user, system } = process.cpuUsage(before)
  process.send?.((user + system) / count)
})
