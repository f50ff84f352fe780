/**
 * Policies of AWS, Google Cloud and Azure, read into ours. Three documents, three dialects of the same idea: a
 * statement is a policy, a binding is a policy, a role assignment is a policy. What cannot be said in our policies, or
 * is said in a way this does not know, is refused by name: an import that leaves something out would be a hole or an
 * outage.
 */
import { isMap, parseDocument, stringify } from 'yaml'
import { policySet } from './policy-set.ts'
import { PolicyError } from './policy-error.ts'

export type ImportSource = 'aws' | 'gcp' | 'azure'

/** A policy as it is written in a policy file. */
export interface PolicySource {
  readonly id: string
  readonly description?: string
  readonly effect: 'allow' | 'deny'
  readonly subjects: readonly string[]
  readonly actions: readonly string[]
  readonly resources: readonly string[]
  readonly condition?: string
}

export interface ImportOptions {
  /**
   * Roles of Google Cloud or Azure that are not known here, by the name the document uses, with the actions they allow.
   */
  readonly roles?: Readonly<Record<string, readonly string[]>>
}

/** Imported policies: as data, and as the text of a policy file that has been loaded once to be sure. */
export interface ImportedPolicies {
  readonly policies: readonly PolicySource[]
  readonly yaml: string
}

/**
 * Reads a cloud provider's policy document.
 *
 * The resource's id in a decision is the provider's own name for it (`arn:aws:s3:::ml-models/a`,
 * `projects/my-project/buckets/ml-models`, `/subscriptions/…`), its type whatever the service likes.
 *
 * @param from - whose document it is
 * @param document - JSON or YAML; for Azure also the assignment as Python writes it, `assignment = {…}`
 * @throws PolicyError naming what cannot be imported
 *
 * @example
 * ```ts
 * import { importPolicies } from '@latchkey/guard'
 *
 * const document = 'bindings: [{ role: roles/storage.objectViewer, members: ["user:alice@example.com"] }]'
 * const { yaml } = importPolicies('gcp', document)
 * console.log(yaml)
 * ```
 */
export function importPolicies(from: ImportSource, document: string, options: ImportOptions = {}): ImportedPolicies {
  const content = parse(document, from)
  const policies = { aws: fromAws, gcp: fromGcp, azure: fromAzure }[from](content, options.roles ?? {})
  const yaml = stringify({ policies })
  // What was made is a policy file like any other, or it is not handed out.
  policySet(yaml, `imported from ${from}`)
  return { policies, yaml }
}

type Fields = Readonly<Record<string, unknown>>

function refuse(why: string): never {
  throw new PolicyError(`cannot be imported: ${why}`)
}

function parse(text: string, from: ImportSource): Fields {
  if (text.length > 1024 * 1024) refuse('more than 1,048,576 characters')
  // `assignment = {` as in Azure's examples: what follows the sign is the document.
  const plain = from === 'azure' ? text.replace(/^[A-Za-z_]\w*\s*=\s*(?=\{)/m, '') : text
  const document = parseDocument(plain, { uniqueKeys: true, logLevel: 'error' })
  const [problem] = document.errors
  if (problem !== undefined) refuse(problem.message.split('\n')[0] ?? 'not YAML')
  if (!isMap(document.contents)) refuse('the document is not a mapping')
  return document.toJS({ maxAliasCount: 0 }) as Fields
}

function known(what: string, value: unknown, fields: readonly string[]): Fields {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return refuse(`${what} is not a mapping`)
  for (const name of Object.keys(value))
    if (!fields.includes(name)) refuse(`${what} has ${name}, which is not understood`)
  return value as Fields
}

function text(what: string, value: unknown): string {
  return typeof value === 'string' && value !== '' ? value : refuse(`${what} is not a text`)
}

function texts(what: string, value: unknown): string[] {
  const items: unknown[] = Array.isArray(value) ? value : [value]
  if (items.length === 0) refuse(`${what} is empty`)
  return items.map((item) => text(what, item))
}

function list(what: string, value: unknown): unknown[] {
  return Array.isArray(value) ? value : refuse(`${what} is not a list`)
}

/** A text as a CEL literal. */
function quoted(value: string): string {
  return JSON.stringify(value)
}

// --- AWS IAM ----------------------------------------------------------------------------------------------------------

function fromAws(document: Fields): PolicySource[] {
  const { Version, Statement } = known('the document', document, ['Version', 'Id', 'Statement'])
  if (Version !== '2012-10-17') refuse(`Version ${String(Version)}; 2012-10-17 is understood`)
  const statements = Array.isArray(Statement) ? Statement : [Statement]
  const accounts = new Set<string>()
  return statements.map((statement: unknown, index): PolicySource => {
    const fields = known(`statement ${index + 1}`, statement, [
      'Sid',
      'Effect',
      'Principal',
      'Action',
      'Resource',
      'Condition',
    ])
    const { Sid, Effect, Principal, Action, Resource, Condition } = fields
    if (Effect !== 'Allow' && Effect !== 'Deny') refuse(`Effect ${String(Effect)}`)
    return {
      id: Sid === undefined ? `aws-statement-${index + 1}` : text('Sid', Sid),
      effect: Effect === 'Allow' ? 'allow' : 'deny',
      subjects: awsPrincipals(Principal, accounts),
      actions: texts('Action', Action).map(awsPattern),
      resources: texts('Resource', Resource).map((arn) => (arn === '*' ? '*' : `*:${awsPattern(arn)}`)),
      ...(Condition === undefined ? {} : { condition: awsCondition(Condition) }),
    }
  })
}

function awsPattern(pattern: string): string {
  if (pattern.includes('?') || /\*(?=.)/.test(pattern) || pattern.includes('${')) {
    refuse(`the pattern ${pattern}: only a star at the end is understood`)
  }
  return pattern
}

function awsPrincipals(principal: unknown, accounts: Set<string>): string[] {
  if (principal === undefined) refuse('a statement without Principal, which is for whom it is attached to')
  if (principal === '*') return ['*']
  const { AWS } = known('Principal', principal, ['AWS'])
  return texts('Principal.AWS', AWS).map((arn) => {
    if (arn === '*') return '*'
    const [, account = '', kind = '', name = ''] = /^arn:aws:iam::(\d+):(user|role)\/(.+)$/.exec(arn) ?? []
    if (name === '') return refuse(`the principal ${arn}; users and roles of one account are understood`)
    accounts.add(account)
    // Two accounts may each have an alice, and the short name would make them one.
    if (accounts.size > 1) refuse(`principals of several accounts (${[...accounts].join(', ')})`)
    return `${kind}:${name}`
  })
}

const AWS_DATES: Readonly<Record<string, string>> = {
  DateEquals: '==',
  DateNotEquals: '!=',
  DateLessThan: '<',
  DateLessThanEquals: '<=',
  DateGreaterThan: '>',
  DateGreaterThanEquals: '>=',
}

function awsCondition(condition: unknown): string {
  const parts: string[] = []
  for (const [operator, keys] of Object.entries(condition as Fields)) {
    for (const [key, value] of Object.entries(known(operator, keys, Object.keys(keys as Fields)))) {
      // Several values of one key are alternatives; several keys and operators must all hold.
      const alternatives = texts(key, value).map((one) => awsTest(operator, key, one))
      const negative = operator.startsWith('Not') || operator.includes('NotEquals')
      const joined = alternatives.join(negative ? ' && ' : ' || ')
      parts.push(alternatives.length > 1 ? `(${joined})` : joined)
    }
  }
  return parts.join(' && ')
}

function awsTest(operator: string, key: string, value: string): string {
  if (key === 'aws:SourceIp' && (operator === 'IpAddress' || operator === 'NotIpAddress')) {
    const test = `cidr(${quoted(value)}).containsIP(context.ip)`
    return operator === 'IpAddress' ? test : `!${test}`
  }
  const date = Object.hasOwn(AWS_DATES, operator) ? AWS_DATES[operator] : undefined
  if (key === 'aws:CurrentTime' && date !== undefined) return `context.time ${date} timestamp(${quoted(value)})`
  if (operator === 'StringEquals' || operator === 'StringNotEquals') {
    const [, owner = '', tag = ''] = /^aws:(Principal|Resource)Tag\/([A-Za-z_]\w*)$/.exec(key) ?? []
    if (tag !== '') {
      return `${owner === 'Principal' ? 'subject' : 'resource'}.${tag} ${operator === 'StringEquals' ? '==' : '!='} ${quoted(value)}`
    }
  }
  return refuse(`the condition ${operator} on ${key}`)
}

// --- Google Cloud IAM -------------------------------------------------------------------------------------------------

/** Roles the documents we learned from use, with the permissions Google documents for them. */
const GCP_ROLES: Readonly<Record<string, readonly string[]>> = {
  'roles/storage.objectViewer': ['storage.objects.get', 'storage.objects.list'],
  'roles/storage.objectCreator': ['storage.objects.create'],
  'roles/ml.modelUser': [
    'ml.models.get',
    'ml.models.predict',
    'ml.versions.get',
    'ml.versions.list',
    'ml.versions.predict',
  ],
}

function fromGcp(document: Fields, roles: Readonly<Record<string, readonly string[]>>): PolicySource[] {
  const { bindings } = known('the document', document, ['bindings', 'etag', 'version'])
  return list('bindings', bindings).map((binding, index): PolicySource => {
    const fields = known(`binding ${index + 1}`, binding, ['role', 'members', 'resource', 'condition'])
    const role = text('role', fields['role'])
    return {
      id: `gcp-binding-${index + 1}`,
      description: role,
      effect: 'allow',
      subjects: texts('members', fields['members']).map(gcpMember),
      actions: [
        ...(actionsOf(role, roles) ??
          actionsOf(role, GCP_ROLES) ??
          refuse(`the role ${role}: say which actions it allows`)),
      ],
      // A binding without a resource stands on the resource whose document this is: all that is decided with it.
      resources: [fields['resource'] === undefined ? '*' : gcpResource(text('resource', fields['resource']))],
      ...(fields['condition'] === undefined ? {} : { condition: gcpCondition(fields['condition']) }),
    }
  })
}

function actionsOf(role: string, roles: Readonly<Record<string, readonly string[]>>): readonly string[] | undefined {
  return Object.hasOwn(roles, role) ? roles[role] : undefined
}

function gcpMember(member: string): string {
  const [, kind = '', name = ''] = /^(user|serviceAccount|group):(.+)$/.exec(member) ?? []
  if (kind === 'serviceAccount') return `client:${name}`
  if (kind !== '') return `${kind}:${name}`
  if (member === 'allAuthenticatedUsers') return '*'
  return refuse(`the member ${member}`)
}

/** A bucket and all in it: permissions are inherited downwards. */
function gcpResource(name: string): string {
  if (name.includes('*')) refuse(`a star in the resource ${name}`)
  return `*:${name}/**`
}

function gcpCondition(condition: unknown): string {
  const { expression } = known('condition', condition, ['expression', 'title', 'description'])
  const source = text('expression', expression)
  if (/\brequest\.(?!time\b)/.test(source) || /\bresource\.(?!name\b|type\b)/.test(source)) {
    refuse(`the condition ${source}: request.time, resource.name and resource.type are understood`)
  }
  return source.replaceAll(/\brequest\.time\b/g, 'context.time').replaceAll(/\bresource\.name\b/g, 'resource.id')
}

// --- Azure RBAC -------------------------------------------------------------------------------------------------------

interface AzureRole {
  readonly actions: readonly string[]
  readonly condition?: string
}

/** Azure's three fundamental roles. Contributor is everything but what its `NotActions` take away again. */
const AZURE_ROLES: Readonly<Record<string, AzureRole>> = {
  owner: { actions: ['*'] },
  reader: { actions: ['*'], condition: 'action.endsWith("/read")' },
  contributor: {
    actions: ['*'],
    condition: [
      '!(action.startsWith("Microsoft.Authorization/") && (action.endsWith("/Write") || action.endsWith("/write")))',
      '!(action.startsWith("Microsoft.Authorization/") && (action.endsWith("/Delete") || action.endsWith("/delete")))',
      '!action.startsWith("Microsoft.Authorization/elevateAccess/")',
      '!action.startsWith("Microsoft.Blueprint/blueprintAssignments/")',
      '!action.startsWith("Microsoft.Compute/galleries/share/")',
      '!action.startsWith("Microsoft.Purview/consents/")',
      '!action.startsWith("Microsoft.Resources/deploymentStacks/manageDenySetting/")',
      '!action.startsWith("Microsoft.Subscription/")',
    ].join(' && '),
  },
}

function fromAzure(document: Fields, roles: Readonly<Record<string, readonly string[]>>): PolicySource[] {
  const assignments = document['assignments'] === undefined ? [document] : list('assignments', document['assignments'])
  return assignments.map((assignment, index): PolicySource => {
    const fields = known(`assignment ${index + 1}`, assignment, [
      'roleDefinitionId',
      'principalId',
      'principalType',
      'scope',
    ])
    const definition = text('roleDefinitionId', fields['roleDefinitionId'])
    const name = definition.slice(definition.lastIndexOf('/') + 1)
    const own = actionsOf(definition, roles) ?? actionsOf(name, roles)
    const role =
      own === undefined ? (Object.hasOwn(AZURE_ROLES, name) ? AZURE_ROLES[name] : undefined) : { actions: own }
    if (role === undefined) return refuse(`the role ${name}: say which actions it allows`)
    const scope = text('scope', fields['scope'])
    if (!scope.startsWith('/') || scope.includes('*')) refuse(`the scope ${scope}`)
    return {
      id: `azure-assignment-${index + 1}`,
      description: name,
      effect: 'allow',
      subjects: [azurePrincipal(text('principalId', fields['principalId']), fields['principalType'])],
      actions: [...role.actions],
      // Permissions inherit down: subscription, resource group, resource.
      resources: [scope === '/' ? '*' : `${scope.replace(/\/$/, '')}/**`],
      ...(role.condition === undefined ? {} : { condition: role.condition }),
    }
  })
}

function azurePrincipal(id: string, type: unknown): string {
  if (type === undefined || type === 'User') return `user:${id}`
  if (type === 'ServicePrincipal') return `client:${id}`
  if (type === 'Group') return `group:${id}`
  return refuse(`the principalType ${JSON.stringify(type)}`)
}
