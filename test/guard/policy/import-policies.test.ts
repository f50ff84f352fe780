import { describe, expect, it } from 'vitest'
import type { Subject } from '../../../src/guard/caller.ts'
import { importPolicies, loadPolicies, PolicyError } from '../../../src/guard/policy/policies.ts'
import type { ImportOptions, ImportSource, PolicySet } from '../../../src/guard/policy/policies.ts'

const AWS = `{
  "Version": "2012-10-17",
  "Statement": [{
    "Effect": "Allow",
    "Principal": {"AWS": "arn:aws:iam::123456:user/alice"},
    "Action": ["s3:GetObject", "s3:PutObject"],
    "Resource": "arn:aws:s3:::ml-models/*",
    "Condition": {
      "IpAddress": {"aws:SourceIp": "10.0.0.0/8"},
      "DateGreaterThan": {"aws:CurrentTime": "2024-01-01"}
    }
  }]
}`

const GCP = `# Binding roles to identities on resources
bindings:
  - role: roles/storage.objectViewer
    members:
      - user:alice@example.com
      - serviceAccount:ml-trainer@project.iam
    resource: projects/my-project/buckets/ml-models
  
  - role: roles/ml.modelUser
    members:
      - group:ml-team@example.com
    condition:
      expression: request.time > timestamp("2024-01-01")
`

const AZURE = `# Role assignment at different scopes
assignment = {
    "roleDefinitionId": "/subscriptions/sub123/providers/Microsoft.Authorization/roleDefinitions/contributor",
    "principalId": "user-guid-123",
    "scope": "/subscriptions/sub123/resourceGroups/ml-resources"
}
# Permissions inherit down: Subscription → Resource Group → Resource
`

function imported(from: ImportSource, document: string, options?: ImportOptions): PolicySet {
  return loadPolicies(importPolicies(from, document, options).yaml)
}

function user(id: string, more: Partial<Subject> = {}): Subject {
  return { type: 'user', id, roles: [], groups: [], ...more }
}

function asks(
  set: PolicySet,
  subject: Subject,
  action: string,
  id: string,
  context: Record<string, unknown> = {},
): boolean {
  return set.decide({ subject, action, resource: { type: 'thing', id }, context }).allowed
}

describe('an import refuses by name', () => {
  const aws = (statement: Record<string, unknown>): string =>
    JSON.stringify({
      Version: '2012-10-17',
      Statement: [{ Effect: 'Allow', Principal: '*', Action: 's3:Get*', Resource: '*', ...statement }],
    })

  it.each<[ImportSource, string, string, string]>([
    ['aws', 'a field it does not know', aws({ NotAction: 's3:*' }), 'NotAction'],
    ['aws', 'another version', JSON.stringify({ Version: '2008-10-17', Statement: [] }), '2008-10-17'],
    ['aws', 'a statement for nobody', aws({ Principal: undefined }), 'without Principal'],
    ['aws', 'a service as principal', aws({ Principal: { Service: 'ec2.amazonaws.com' } }), 'Service'],
    ['aws', 'a whole account', aws({ Principal: { AWS: 'arn:aws:iam::1:root' } }), 'arn:aws:iam::1:root'],
    [
      'aws',
      'two accounts',
      aws({ Principal: { AWS: ['arn:aws:iam::1:user/a', 'arn:aws:iam::2:user/a'] } }),
      'several accounts',
    ],
    ['aws', 'a star inside an action', aws({ Action: 's3:*Object' }), 's3:*Object'],
    ['aws', 'a question mark', aws({ Resource: 'arn:aws:s3:::b/?' }), 'arn:aws:s3:::b/?'],
    ['aws', 'a variable', aws({ Resource: 'arn:aws:s3:::b/${aws:username}' }), 'aws:username'],
    ['aws', 'an operator', aws({ Condition: { StringLike: { 'aws:PrincipalTag/team': 'a*' } } }), 'StringLike'],
    ['aws', 'a key', aws({ Condition: { Bool: { 'aws:SecureTransport': 'true' } } }), 'aws:SecureTransport'],
    [
      'aws',
      'an address range that is none',
      aws({ Condition: { DateLessThan: { 'aws:CurrentTime': 'tomorrow' } } }),
      'tomorrow',
    ],
    ['gcp', 'a role it does not know', 'bindings: [{ role: roles/editor, members: ["user:a"] }]', 'roles/editor'],
    ['gcp', 'everybody on earth', 'bindings: [{ role: roles/ml.modelUser, members: [allUsers] }]', 'allUsers'],
    [
      'gcp',
      'an attribute of the request',
      'bindings: [{ role: roles/ml.modelUser, members: ["user:a"], condition: { expression: "request.auth.claims.x == 1" } }]',
      'request.auth',
    ],
    ['gcp', 'an alias', 'bindings: &b []\netag: *b', 'lias'],
    [
      'azure',
      'a role it does not know',
      '{"roleDefinitionId": "x/magician", "principalId": "p", "scope": "/s"}',
      'magician',
    ],
    [
      'azure',
      'a condition',
      '{"roleDefinitionId": "x/reader", "principalId": "p", "scope": "/s", "condition": "@Resource"}',
      'condition',
    ],
    [
      'azure',
      'a scope that is none',
      '{"roleDefinitionId": "x/reader", "principalId": "p", "scope": "everywhere"}',
      'everywhere',
    ],
    ['azure', 'a document that is none', 'print("hello")', 'not a mapping'],
  ])('%s: %s', (from, _what, document, message) => {
    expect(() => importPolicies(from, document)).toThrow(message)
  })

  it('a document that is not well formed', () => {
    for (const from of ['aws', 'gcp', 'azure'] as const)
      expect(() => importPolicies(from, '{"a": [')).toThrow(PolicyError)
  })
})

describe('the document of AWS', () => {
  const set = imported('aws', AWS)
  const context = { ip: '10.1.2.3', time: new Date('2024-06-01T00:00:00Z') }
  const object = 'arn:aws:s3:::ml-models/v1/weights'

  it.each([
    ['another user', user('bob'), 's3:GetObject', object, context],
    ['another action', user('alice'), 's3:DeleteObject', object, context],
    ['another bucket', user('alice'), 's3:GetObject', 'arn:aws:s3:::ml-models-2/x', context],
    ['another network', user('alice'), 's3:GetObject', object, { ...context, ip: '192.0.2.1' }],
    ['an unknown network', user('alice'), 's3:GetObject', object, { time: context.time }],
    ['an earlier time', user('alice'), 's3:GetObject', object, { ...context, time: new Date('2023-12-31T23:59:59Z') }],
    ['a client of that name', user('alice', { type: 'client' }), 's3:GetObject', object, context],
  ])('refuses %s', (_what, subject, action, id, facts) => {
    expect(asks(set, subject, action, id, facts)).toBe(false)
  })

  it('allows what it says', () => {
    expect(asks(set, user('alice'), 's3:GetObject', object, context)).toBe(true)
    expect(asks(set, user('alice'), 's3:PutObject', object, context)).toBe(true)
  })

  it('becomes a deny where it says Deny, which wins', () => {
    const statement = (effect: string, action: string): unknown => ({
      Effect: effect,
      Principal: '*',
      Action: action,
      Resource: '*',
    })
    const both = imported(
      'aws',
      JSON.stringify({
        Version: '2012-10-17',
        Statement: [statement('Allow', 's3:*'), statement('Deny', 's3:Delete*')],
      }),
    )
    expect([asks(both, user('a'), 's3:DeleteObject', 'x'), asks(both, user('a'), 's3:GetObject', 'x')]).toEqual([
      false,
      true,
    ])
  })
})

describe('the document of Google Cloud', () => {
  const set = imported('gcp', GCP)
  const bucket = 'projects/my-project/buckets/ml-models'
  const team = user('dana', { groups: ['ml-team@example.com'] })
  const now = { time: new Date('2024-06-01T00:00:00Z') }

  it.each([
    ['writing by a viewer', user('alice@example.com'), 'storage.objects.create', bucket, now],
    ['a bucket whose name begins alike', user('alice@example.com'), 'storage.objects.get', `${bucket}-2`, now],
    ['a user called like the service account', user('ml-trainer@project.iam'), 'storage.objects.get', bucket, now],
    ['the team before its time', team, 'ml.models.predict', 'm', { time: new Date('2024-01-01T00:00:00Z') }],
    ['the team at an unknown time', team, 'ml.models.predict', 'm', {}],
    ['the team doing more', team, 'ml.models.delete', 'm', now],
  ])('refuses %s', (_what, subject, action, id, facts) => {
    expect(asks(set, subject, action, id, facts)).toBe(false)
  })

  it('allows what it says', () => {
    expect(asks(set, user('alice@example.com'), 'storage.objects.get', `${bucket}/objects/a`)).toBe(true)
    expect(asks(set, user('ml-trainer@project.iam', { type: 'client' }), 'storage.objects.list', bucket)).toBe(true)
    expect(asks(set, team, 'ml.models.predict', 'm', now)).toBe(true)
  })

  it('takes a role it is told', () => {
    const own = imported('gcp', 'bindings: [{ role: roles/editor, members: ["user:a"] }]', {
      roles: { 'roles/editor': ['edit'] },
    })
    expect([asks(own, user('a'), 'edit', 'x'), asks(own, user('a'), 'drop', 'x')]).toEqual([true, false])
  })
})

describe('the document of Azure', () => {
  const set = imported('azure', AZURE)
  const group = '/subscriptions/sub123/resourceGroups/ml-resources'
  const contributor = user('user-guid-123')

  it.each([
    ['another user', user('user-guid-124'), 'Microsoft.Compute/virtualMachines/read', group],
    ['a group whose name begins alike', contributor, 'Microsoft.Compute/virtualMachines/read', `${group}-2`],
    ['the subscription above', contributor, 'Microsoft.Compute/virtualMachines/read', '/subscriptions/sub123'],
    ['giving rights to others', contributor, 'Microsoft.Authorization/roleAssignments/write', group],
    ['taking rights from others', contributor, 'Microsoft.Authorization/roleAssignments/Delete', group],
  ])('refuses %s', (_what, subject, action, id) => {
    expect(asks(set, subject, action, id)).toBe(false)
  })

  it('allows what lies at its scope and below', () => {
    expect(asks(set, contributor, 'Microsoft.Compute/virtualMachines/write', group)).toBe(true)
    expect(
      asks(
        set,
        contributor,
        'Microsoft.Compute/virtualMachines/delete',
        `${group}/providers/Microsoft.Compute/virtualMachines/vm1`,
      ),
    ).toBe(true)
    expect(asks(set, contributor, 'Microsoft.Authorization/roleAssignments/read', group)).toBe(true)
  })
})
