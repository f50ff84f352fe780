import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { beforeAll, describe, expect, it } from 'vitest'
import { openManagement, type Management } from '../support/management.ts'
import { makeTemporaryFolder } from '../support/temporary-folder.ts'

const run = promisify(execFile)

describe('the sync of people', () => {
  let api: Management
  beforeAll(async () => {
    api = await openManagement('pglite')
  })

  async function sync(people: string): Promise<string[]> {
    const { client_id, client_secret = '' } = await api.newMachine(['users:read', 'users:write'])
    const { stdout } = await run(process.execPath, ['examples/manage-users/main.ts', 'staff.example', people], {
      env: { ISSUER: api.provider.issuer, CLIENT_ID: client_id, CLIENT_SECRET: client_secret },
    })
    return stdout.split('\n').filter((line) => line !== '')
  }

  it('fails where its client may not do that', async () => {
    const { client_id, client_secret = '' } = await api.newMachine(['roles:read'])
    const env = { ISSUER: api.provider.issuer, CLIENT_ID: client_id, CLIENT_SECRET: client_secret }
    const args = ['examples/manage-users/main.ts', 'staff.example', 'examples/manage-users/people.json']
    await expect(run(process.execPath, args, { env })).rejects.toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/refused a token: invalid_scope/),
    })
  })

  it('creates, corrects, shuts out, lets in again, and does nothing where nothing is to do', async () => {
    const people = 'examples/manage-users/people.json'
    expect(await sync(people)).toEqual(['created carol@staff.example', 'created dan@staff.example'])
    expect(await sync(people)).toEqual([])

    const file = join(makeTemporaryFolder(), 'people.json')
    writeFileSync(file, JSON.stringify([{ email: 'Carol@staff.example', name: 'Carol Chen-Smith' }]))
    expect(await sync(file)).toEqual(['corrected carol@staff.example', 'shut out dan@staff.example'])
    const { body } = await api.call('/v1/users?fields=email,name,is_active&sort=email')
    const staff = (body['users'] as { email: string }[]).filter(({ email }) => email.endsWith('@staff.example'))
    expect(staff).toMatchObject([
      { email: 'carol@staff.example', name: 'Carol Chen-Smith', is_active: true },
      { email: 'dan@staff.example', name: 'Dan Dlamini', is_active: false },
    ])
    expect(await api.signIn(api.user)).toBeTypeOf('string')

    const corrected = ['corrected carol@staff.example', 'corrected dan@staff.example']
    expect(await sync(people)).toEqual(corrected)
  })
})
