/**
 * Which policies concern a question: those for its action and resource type, by who they are for. The first question
 * about an action and a type builds a view over all policies; every later one is a few look-ups, so that a thousand
 * policies cost what the handful that apply would cost alone.
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

/** Policies for the same people. */
export interface Candidates {
  readonly deny: Candidate[]
  readonly allow: Candidate[]
}

/** The policies about an action on a type, by who they are for. */
interface View {
  readonly anybody: Candidates
  readonly users: Candidates
  readonly clients: Candidates
  readonly user: Map<string, Candidates>
  readonly client: Map<string, Candidates>
  readonly role: Map<string, Candidates>
  readonly group: Map<string, Candidates>
}

// Actions and types that no policy names share one view, so a caller that invents names cannot fill the store; prefixes
// (`s3:Get*`) can be met by many names, so it is bounded as well.
const MAX_VIEWS = 4_096
const NO_NAMES: readonly string[] = []

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

  /** What concerns an action on a type by this subject; an id still has to be compared. Never an empty entry. */
  find(action: string, type: string, subject: Subject): readonly Candidates[] {
    const view = this.#views.get(action)?.get(type) ?? this.#view(action, type)
    const found: Candidates[] = []
    add(found, view.anybody)
    // A service that calls for itself is no user, whatever its id: the two name spaces stay apart (RFC 9700 §4.15).
    if (subject.type === 'user') {
      add(found, view.users)
      if (view.user.size > 0) add(found, view.user.get(subject.id))
    } else if (subject.type === 'client') {
      add(found, view.clients)
      if (view.client.size > 0) add(found, view.client.get(subject.id))
    }
    if (view.role.size > 0) for (const role of subject.roles ?? NO_NAMES) add(found, view.role.get(role))
    if (view.group.size > 0) for (const group of subject.groups ?? NO_NAMES) add(found, view.group.get(group))
    return found
  }

  #view(action: string, type: string): View {
    const typeKey = this.#types.has(type) ? type : ''
    const named = this.#actions.has(action) || this.#actionPrefixes.some((prefix) => action.startsWith(prefix))
    const actionKey = named ? action : ''
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
    const view: View = {
      anybody: none(),
      users: none(),
      clients: none(),
      user: new Map(),
      client: new Map(),
      role: new Map(),
      group: new Map(),
    }
    for (const policy of this.#policies) {
      if (!policy.actions.some((pattern) => matchesName(pattern, action))) continue
      const matching = policy.resources.filter((pattern) => pattern.type === undefined || pattern.type === type)
      if (matching.length === 0) continue
      const ids: (NamePattern | { readonly below: string })[] = []
      for (const { id } of matching) if (id !== undefined) ids.push(id)
      const candidate: Candidate = { policy, ids: ids.length < matching.length ? undefined : ids }
      for (const candidates of placesFor(view, policy)) candidates[policy.effect].push(candidate)
    }
    return view
  }
}

function none(): Candidates {
  return { deny: [], allow: [] }
}

/** Where a policy belongs: each place once, and only the widest where one contains another. */
function placesFor(view: View, policy: Policy): Set<Candidates> {
  const places = new Set<Candidates>()
  for (const subject of policy.subjects) {
    if (subject.kind === 'any') return new Set([view.anybody])
    if (subject.id === undefined) places.add(subject.kind === 'user' ? view.users : view.clients)
    else {
      const byId = view[subject.kind]
      let place = byId.get(subject.id)
      if (place === undefined) {
        place = none()
        byId.set(subject.id, place)
      }
      places.add(place)
    }
  }
  return places
}

function add(found: Candidates[], candidates: Candidates | undefined): void {
  if (candidates !== undefined && candidates.deny.length + candidates.allow.length > 0) found.push(candidates)
}
