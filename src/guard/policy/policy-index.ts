/**
 * Which policies concern a question: those for its action and resource type, by who they are for. The first question
 * about an action and a type builds a view over all policies; every later one is a few look-ups, so that a thousand policies
 * cost what the handful that apply would cost alone.
 */
import type { Subject } from '../caller.ts'
import { matchesName } from './patterns.ts'
import type { NamePattern, ResourcePattern } from './patterns.ts'
import type { Policy } from './policy-document.ts'

/** A policy that concerns an action and a type. */
export interface Candidate {
  readonly policy: Policy
  /** The ids it is limited to; undefined for every resource of the type. */
  readonly ids: readonly NonNullable<ResourcePattern['id']>[] | undefined
}

/** Policies by who they are for. */
export interface BySubject {
  readonly anybody: Candidate[]
  readonly users: Candidate[]
  readonly clients: Candidate[]
  readonly user: Map<string, Candidate[]>
  readonly client: Map<string, Candidate[]>
  readonly role: Map<string, Candidate[]>
  readonly group: Map<string, Candidate[]>
}

export interface View {
  readonly deny: BySubject
  readonly allow: BySubject
}

// Actions and types that no policy names share one view, so a caller that invents names cannot fill the store; prefixes
// (`s3:Get*`) can be met by many names, so it is bounded as well.
const MAX_VIEWS = 4_096

/** All policies of a set, ready to be asked. */
export class PolicyIndex {
  readonly #policies: readonly Policy[]
  readonly #types = new Set<string>()
  readonly #actions = new Set<string>()
  readonly #actionPrefixes: string[] = []
  readonly #views = new Map<string, Map<string, View>>()
  #viewCount = 0

  constructor(policies: readonly Policy[]) {
    this.#policies = policies
    for (const policy of policies) {
      for (const { type } of policy.resources) if (type !== undefined) this.#types.add(type)
      for (const action of policy.actions) {
        if ('exactly' in action) this.#actions.add(action.exactly)
        else if (action.startsWith !== '') this.#actionPrefixes.push(action.startsWith)
      }
    }
  }

  /** The policies about an action on a type. */
  view(action: string, type: string): View {
    const typeKey = this.#types.has(type) ? type : ''
    const actionKey =
      this.#actions.has(action) || this.#actionPrefixes.some((prefix) => action.startsWith(prefix)) ? action : ''
    const found = this.#views.get(actionKey)?.get(typeKey)
    if (found !== undefined) return found
    if (this.#viewCount >= MAX_VIEWS) {
      this.#views.clear()
      this.#viewCount = 0
    }
    const view = this.#build(action, type)
    let ofAction = this.#views.get(actionKey)
    if (ofAction === undefined) {
      ofAction = new Map()
      this.#views.set(actionKey, ofAction)
    }
    ofAction.set(typeKey, view)
    this.#viewCount += 1
    return view
  }

  #build(action: string, type: string): View {
    const view: View = { deny: nobody(), allow: nobody() }
    for (const policy of this.#policies) {
      if (!policy.actions.some((pattern) => matchesName(pattern, action))) continue
      const matching = policy.resources.filter((pattern) => pattern.type === undefined || pattern.type === type)
      if (matching.length === 0) continue
      const ids: (NamePattern | { readonly below: string })[] = []
      for (const { id } of matching) if (id !== undefined) ids.push(id)
      const candidate: Candidate = { policy, ids: ids.length < matching.length ? undefined : ids }
      for (const list of listsFor(view[policy.effect], policy)) list.push(candidate)
    }
    return view
  }
}

function nobody(): BySubject {
  return {
    anybody: [],
    users: [],
    clients: [],
    user: new Map(),
    client: new Map(),
    role: new Map(),
    group: new Map(),
  }
}

/** The lists a policy belongs in: each once, and only the widest where one contains another. */
function listsFor(bySubject: BySubject, policy: Policy): Set<Candidate[]> {
  const lists = new Set<Candidate[]>()
  for (const subject of policy.subjects) {
    if (subject.kind === 'any') return new Set([bySubject.anybody])
    if (subject.id === undefined) lists.add(subject.kind === 'user' ? bySubject.users : bySubject.clients)
    else {
      const byId = bySubject[subject.kind]
      let list = byId.get(subject.id)
      if (list === undefined) {
        list = []
        byId.set(subject.id, list)
      }
      lists.add(list)
    }
  }
  return lists
}

const NONE: readonly string[] = []

/** Those of them that are for this subject; an id still has to be compared. */
export function candidates(bySubject: BySubject, subject: Subject): Candidate[][] {
  const lists: Candidate[][] = []
  if (bySubject.anybody.length > 0) lists.push(bySubject.anybody)
  // A service that calls for itself is no user, whatever its id: the two name spaces stay apart (RFC 9700 §4.15).
  if (subject.type === 'user') {
    if (bySubject.users.length > 0) lists.push(bySubject.users)
    addNamed(lists, bySubject.user, subject.id)
  } else if (subject.type === 'client') {
    if (bySubject.clients.length > 0) lists.push(bySubject.clients)
    addNamed(lists, bySubject.client, subject.id)
  }
  if (bySubject.role.size > 0) for (const role of subject.roles ?? NONE) addNamed(lists, bySubject.role, role)
  if (bySubject.group.size > 0) for (const group of subject.groups ?? NONE) addNamed(lists, bySubject.group, group)
  return lists
}

function addNamed(lists: Candidate[][], byName: ReadonlyMap<string, Candidate[]>, name: string): void {
  const found = byName.get(name)
  if (found !== undefined) lists.push(found)
}
