import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { addPolicy } from '../../src/commands/policy.ts'
import { runCommand } from '../../src/commands/program.ts'
import { makeTemporaryFolder } from '../support/temporary-folder.ts'
import { latchkeyProcess } from './running.ts'
import type { Ran } from './running.ts'

/** Runs `latchkey policy …` with neither configuration nor database: asking for one fails the test. */
async function policy(...args: string[]): Promise<Ran> {
  const out: string[] = []
  const err: string[] = []
  const io = { out: (text: string) => void out.push(text), err: (text: string) => void err.push(text) }
  const unwanted = (): never => {
    throw new Error('latchkey policy needs nothing but files')
  }
  const context = {
    get config() {
      return unwanted()
    },
    io: { ...io, stdin: unwanted },
    withDatabase: unwanted,
    actor: { type: 'operator', id: 'ada' },
    now: () => new Date(),
  } as const
  const exitCode = await runCommand(['policy', ...args], context, [addPolicy])
  return { exitCode, out: out.join('\n'), err: err.join('\n') }
}

function fileOf(text: string, name = 'policies.yaml'): string {
  const path = join(makeTemporaryFolder(), name)
  writeFileSync(path, text)
  return path
}

/** A command line without spaces inside its words. */
const words = (text: TemplateStringsArray, ...values: string[]): string[] => String.raw(text, ...values).split(' ')

const MODELS = 'examples/models-koa/policies.yaml'
const SEED = 'test/policy-cases/policies-as-code.yaml'

const owners = `policies:
  - { id: owner, effect: allow, subjects: ["user:*"], actions: ["*"], resources: [model], condition: resource.owner == subject.id }
  - { id: nobody-on-sunday, effect: deny, subjects: ["*"], actions: [delete], resources: [model], condition: context.day_of_week == "sunday" }
`

describe('a command line about policies that is wrong', () => {
  it.each<[string[], RegExp]>([
    [['tset', MODELS], /unknown command 'tset'/],
    [['test'], /missing required argument 'file'/],
    [['explain', MODELS, '--action', 'read', '--resource', 'model'], /--subject/],
    [['explain', MODELS, '--subject', 'a', '--resource', 'model'], /--action/],
    [['explain', MODELS, '--subject', 'role:admin', '--action', 'a', '--resource', 'model'], /add --role/],
    [['explain', MODELS, '--subject', '{"id":', '--action', 'a', '--resource', 'm'], /--subject is a JSON object/],
    [['explain', MODELS, '--subject', 'a', '--action', 'a', '--resource', '{"id":"m"}'], /--resource needs a "type"/],
    [
      ['explain', MODELS, '--subject', 'a', '--action', 'a', '--resource', 'm', '--context', '[1]'],
      /--context is a JSON object/,
    ],
    [['import', MODELS], /--from/],
    [['import', '--from', 'oracle', MODELS], /Allowed choices are aws, gcp, azure/],
    [['import', '--from', 'gcp', '--role', 'roles/editor', MODELS], /write name=value/],
  ])('exits with 2: %j', async (args, message) => {
    expect(await policy(...args)).toEqual({ exitCode: 2, out: '', err: expect.stringMatching(message) })
  })
})

describe('latchkey policy test', () => {
  it('fails when an answer is not the expected one, and says which and why', async () => {
    const file = fileOf(`${owners}tests:
  - { name: a stranger reads, subject: { id: bob }, action: read, resource: { type: model, owner: alice }, expect: allow }
  - { name: the owner reads, subject: { id: alice }, action: read, resource: { type: model, owner: alice }, expect: allow }
`)
    const ran = await policy('test', MODELS, file)
    expect(ran.exitCode).toBe(1)
    expect(ran.out).toContain(`FAILED ${file}:5: a stranger reads: expected allow, got deny (no policy)`)
    expect(ran.out).toContain(`${file}: 2 policies, 1 of 2 tests passed`)
    expect(ran.out).toContain(`${MODELS}: 4 policies, 4 of 4 tests passed`)
    expect(ran.err).toContain('No test is decided by: nobody-on-sunday')
    expect(ran.err).toContain('error: 1 of 6 tests failed.')
  })

  it('fails when another policy decided than the one that was named', async () => {
    const file = fileOf(`${owners}tests:
  - { name: n, subject: { id: a }, action: delete, resource: { type: model, owner: a }, context: { day_of_week: friday }, expect: allow, policy: nobody-on-sunday }
`)
    const ran = await policy('test', file)
    expect(ran.exitCode).toBe(1)
    expect(ran.out).toContain('expected nobody-on-sunday to decide, it was owner')
  })

  it('fails when a file does not load or is not there, and tests the others all the same', async () => {
    const broken = fileOf('policies:\n  - { id: x, effect: alow, subjects: ["*"], actions: ["*"], resources: ["*"] }\n')
    const ran = await policy('test', broken, 'no-such-file.yaml', MODELS)
    expect(ran.exitCode).toBe(1)
    expect(ran.err).toContain(`${broken}:2:`)
    expect(ran.err).toContain("effect is allow or deny, not 'alow'")
    expect(ran.err).toContain('no-such-file.yaml:1:1: cannot be read')
    expect(ran.err).toContain('error: 2 of 3 files cannot be loaded.')
    expect(ran.out).toBe(`${MODELS}: 4 policies, 4 of 4 tests passed`)
  })

  it('says that a file has no tests', async () => {
    const file = fileOf(owners)
    expect(await policy('test', file)).toEqual({ exitCode: 0, out: `${file}: 2 policies, no tests`, err: '' })
  })

  it('passes the document we learned from, and prints JSON', async () => {
    const { exitCode, out } = await policy('test', SEED, '--json')
    expect(exitCode).toBe(0)
    const [report] = JSON.parse(out) as [{ policies: number; untested: string[]; results: { passed: boolean }[] }]
    expect(report).toMatchObject({ policies: 4, untested: [] })
    expect(report.results.length).toBeGreaterThan(5)
  })

  it('lets no name in a file move the cursor', async () => {
    const file = fileOf(`${owners}tests:
  - { name: "\\e[2Jgone", subject: { id: b }, action: read, resource: { type: model }, expect: allow }
`)
    const { out, err } = await policy('test', file)
    expect(out).toContain('[2Jgone')
    expect(out + err).not.toContain('\u001B')
  })

  it('works as a process, without settings', { timeout: 60_000 }, async () => {
    const ran = await latchkeyProcess(['policy', 'test', MODELS])
    expect(ran).toMatchObject({ exitCode: 0, out: `${MODELS}: 4 policies, 4 of 4 tests passed\n` })
  })
})

describe('latchkey policy explain', () => {
  const ask = (...more: string[]) => policy('explain', MODELS, '--action', 'read', ...more)

  it('refuses a file that does not load with its line', async () => {
    const file = fileOf('policies: [{ id: x }]')
    const ran = await policy('explain', file, '--subject', 'a', '--action', 'read', '--resource', 'model')
    expect(ran).toEqual({ exitCode: 1, out: '', err: expect.stringMatching(/^error: .*:1:\d+: .*needs 'effect'/) })
  })

  it('says that nothing allows it, and what each policy came to', async () => {
    const { exitCode, out } = await ask('--subject', 'bob', '--resource', '{"type":"model","owner":"alice"}')
    expect(exitCode).toBe(0)
    expect(out).toMatch(/^deny: no policy allows it$/m)
    expect(out).toMatch(/^allow +owner-may-do-everything +does-not-apply +examples\/models-koa\/policies.yaml:4/m)
    expect(out).toMatch(/^allow +shared-models-as-far-as-shared +error: No such key: shares/m)
    expect(out).not.toContain('administrators-see-everything')
  })

  it('names the policy that allows, with the roles of the subject', async () => {
    const { out } = await ask('--subject', 'bob', '--role', 'admin', '--resource', 'model:m1')
    expect(out).toMatch(/^allow: by administrators-see-everything$/m)
  })

  it('names the deny that wins, and answers as JSON', async () => {
    const question = ['--subject', 'user:alice', '--action', 'delete', '--resource', '{"type":"model","owner":"alice"}']
    const sunday = await policy('explain', fileOf(owners), ...question, '--context', '{"day_of_week":"sunday"}')
    expect(sunday.out).toMatch(/^deny: by nobody-on-sunday$/m)
    const unknown = await policy('explain', fileOf(owners), ...question, '--json')
    expect(JSON.parse(unknown.out)).toMatchObject({
      allowed: false,
      policy: 'nobody-on-sunday',
      reason: 'denied-by-policy',
      errors: [{ policy: 'nobody-on-sunday' }],
      policies: [
        { policy: 'nobody-on-sunday', outcome: 'error' },
        { policy: 'owner', outcome: 'applies' },
      ],
    })
  })

  it('reads a time as a time', async () => {
    const file = fileOf(`policies:
  - { id: new, effect: allow, subjects: ["*"], actions: [read], resources: ["*"], condition: 'context.time > timestamp("2024-01-01")' }
`)
    const question = words`explain ${file} --subject client:batch --action read --resource model --context`
    const at = (time: string) => policy(...question, JSON.stringify({ time }))
    expect((await at('2024-01-01T00:00:00Z')).out).toMatch(/^deny: /)
    expect((await at('2024-01-01T00:00:01Z')).out).toMatch(/^allow: by new/)
  })

  it('says what a list shows', async () => {
    const list = async (...args: string[]) => (await ask('--resource', 'model', '--list', ...args)).out
    expect(await list('--subject', 'bob')).toContain(
      'A list shows each model that one of these allows: owner-may-do-everything, shared-models-as-far-as-shared, public-models-are-readable.',
    )
    expect(await list('--subject', 'bob', '--role', 'admin')).toContain('A list shows every model.')
    const { out } = await policy(...words`explain ${MODELS} --subject bob --action burn --resource model --list`)
    expect(out).toContain('A list shows no model.')
  })

  describe('with an attribute map', () => {
    const attributes = {
      owner: { type: 'string', column: 'models.owner_id' },
      public: { type: 'bool', column: 'models.is_public' },
      shares: {
        type: 'rows',
        table: 'model_shares',
        on: { model_id: 'models.id' },
        attributes: {
          user: { type: 'string', column: 'user_id' },
          permission: { type: 'string', column: 'permission' },
        },
      },
    }
    const sql = (map: unknown) =>
      ask('--subject', 'bob', '--resource', 'model', '--sql', fileOf(JSON.stringify(map), 'attributes.json'))

    it('refuses one that is none, and one that lacks an attribute, by the name of the policy', async () => {
      for (const map of [{ owner: 'owner_id' }, { owner: { type: 'text', column: 'owner_id' } }, []]) {
        const ran = await sql(map)
        expect(ran).toEqual({ exitCode: 1, out: '', err: expect.stringMatching(/is no attribute map/) })
      }
      const { shares: _, ...rest } = attributes
      const ran = await sql(rest)
      expect(ran.exitCode).toBe(1)
      expect(ran.err).toContain("policy 'shared-models-as-far-as-shared'")
      expect(ran.err).toContain("the attribute map has no 'shares'")
    })

    it('prints the SQL of the list and its parameters', async () => {
      const { exitCode, out } = await sql(attributes)
      expect(exitCode).toBe(0)
      expect(out).toContain('"models"."owner_id"')
      expect(out).toMatch(/where .*exists .*"model_shares"/s)
      expect(out).toMatch(/^ {2}\$1 = "user:bob"$/m)
    })
  })
})

describe('latchkey policy import', () => {
  const documents = 'test/commands/cloud-documents'

  it('refuses by name what cannot be expressed, and prints nothing', async () => {
    const refusing: ['aws' | 'gcp' | 'azure', string, RegExp][] = [
      ['aws', '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","NotAction":"s3:*"}]}', /NotAction/],
      ['gcp', 'bindings: [{ role: roles/editor, members: ["user:a"] }]', /the role roles\/editor/],
      ['azure', '{"roleDefinitionId":"x/reader","principalId":"p","scope":"/s","condition":"c"}', /condition/],
    ]
    for (const [from, document, message] of refusing) {
      const file = fileOf(document, 'document')
      const ran = await policy('import', '--from', from, file)
      expect(ran).toEqual({ exitCode: 1, out: '', err: expect.stringMatching(message) })
      expect(ran.err).toContain(`error: ${file}: cannot be imported: `)
    }
    expect(await policy('import', '--from', 'aws', 'no-such-file')).toMatchObject({ exitCode: 1, out: '' })
  })

  it.each([
    ['aws', 'aws.txt', '10.1.2.3', 'user:alice', 's3:GetObject', 'object:arn:aws:s3:::ml-models/v1'],
    [
      'gcp',
      'gcp.yaml',
      '192.0.2.1',
      'client:ml-trainer@project.iam',
      'storage.objects.get',
      'bucket:projects/my-project/buckets/ml-models',
    ],
    [
      'azure',
      'azure.txt',
      '192.0.2.1',
      'user:user-guid-123',
      'Microsoft.Compute/virtualMachines/write',
      'vm:/subscriptions/sub123/resourceGroups/ml-resources/vm1',
    ],
  ] as const)('makes a policy file of the document of %s', async (from, document, ip, subject, action, resource) => {
    const { exitCode, out } = await policy('import', '--from', from, `${documents}/${document}`)
    expect(exitCode).toBe(0)
    const file = fileOf(out)
    const context = JSON.stringify({ ip, time: '2024-06-01T00:00:00Z' })
    const ask = async (who: string) =>
      (
        await policy(
          'explain',
          file,
          '--subject',
          who,
          '--action',
          action,
          '--resource',
          resource,
          '--context',
          context,
        )
      ).out
    expect(await ask(subject)).toMatch(/^allow: /)
    expect(await ask('user:mallory')).toMatch(/^deny: /)
  })

  it('takes a role that it is told', async () => {
    const file = fileOf('bindings: [{ role: roles/editor, members: ["user:a"] }]', 'bindings.yaml')
    const { out } = await policy('import', '--from', 'gcp', '--role', 'roles/editor=edit,publish', file)
    expect(out).toMatch(/actions:\n\s+- edit\n\s+- publish/)
  })
})
