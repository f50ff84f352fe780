/**
 * Every HTML page, as one typed function each. A page's data goes in, a whole document comes out; who may see it, its
 * status and its headers are the caller's (routes.ts, the error pages, the demo).
 *
 * The words and the markup are the eta templates in views/. An operator replaces one by putting a file of the same name
 * into LATCHKEY_VIEWS_DIR. All are read and compiled once, when the server starts, so that a template with a syntax
 * error stops the start instead of a sign-in, and rendering touches no file.
 *
 * Three rules hold in every template, an operator's too: what is printed is escaped; a name that the page does not have
 * is an error, never the word "undefined"; and `it.url()` gives back only http, https and relative addresses, because
 * escaping does not stop `javascript:`. The pages carry no script and no inline style, so the Content-Security-Policy
 * needs neither.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Eta } from 'eta/core'

/** What a person may do with one permission, in the words of the resource's owner. */
export interface ShownScope {
  readonly scope: string
  readonly description: string
}

/** The permissions of one resource; the OpenID Connect scopes are a group of their own ("Your profile"). */
export interface ShownScopes {
  readonly resourceName: string
  readonly scopes: readonly ShownScope[]
}

/** A demo account, shown in development only. */
export interface DemoUser {
  readonly email: string
  readonly password: string
}

/** Why the sign-in form is shown again. `refused` never says which of the two fields was wrong. */
export type LoginProblem =
  | { readonly kind: 'refused' }
  | { readonly kind: 'throttled'; readonly retryAfterSeconds: number }
  | { readonly kind: 'busy'; readonly retryAfterSeconds: number }
  | { readonly kind: 'expired' }

/** Posts `login`, `password` and `csrf_token` to `action`; the cancel button posts the same form to `cancelAction`. */
export interface LoginPage {
  readonly action: string
  readonly cancelAction?: string
  readonly csrfToken: string
  readonly clientName: string
  readonly clientUri?: string
  /** what the login field holds at first, '' for nothing */
  readonly login: string
  readonly problem?: LoginProblem
  readonly demo?: readonly DemoUser[]
}

/** Posts `decision` (`allow` or `deny`) and `csrf_token` to `action`. */
export interface ConsentPage {
  readonly action: string
  readonly csrfToken: string
  readonly clientName: string
  readonly clientUri?: string
  readonly logoUri?: string
  readonly policyUri?: string
  readonly tosUri?: string
  readonly userEmail: string
  readonly granted: readonly ShownScopes[]
  /** What it will not be able to do; `scope` where there is one. Descriptions begin with a verb: "delete models". */
  readonly notGranted: readonly { readonly scope?: string; readonly description: string }[]
  /** Whether it may go on while the person is away (a refresh token). */
  readonly lasting: boolean
  /** The longest that it lasts, in days, where it is known. */
  readonly lastingDays?: number
  /** Where the browser goes after the decision: the host of the validated redirect URI. */
  readonly redirectHost: string
}

export interface ErrorPage {
  readonly status: number
  readonly title: string
  readonly detail: string
  readonly requestId: string
  readonly suggestion?: string
  /** where to go back to */
  readonly clientUri?: string
}

export interface SignedOutPage {
  /** With a name: signed out of this application alone. Without: signed out here. */
  readonly clientName?: string
  readonly clientUri?: string
}

/** Posts `xsrf`, and `logout=yes` when the person signs out here too, to `action` (oidc-provider's names). */
export interface LogoutPage {
  readonly action: string
  readonly xsrf: string
  readonly clientName?: string
}

export interface ConnectedApplication {
  readonly clientId: string
  readonly clientName: string
  readonly clientUri?: string
  readonly firstParty: boolean
  readonly grantedAt: Date
  readonly lastUsedAt?: Date
  readonly scopes: readonly ShownScopes[]
  /** Posts `csrf_token` and `client_id` here to withdraw. */
  readonly withdrawAction: string
}

export interface ApplicationsPage {
  readonly userEmail: string
  readonly csrfToken: string
  readonly applications: readonly ConnectedApplication[]
  /** what has just happened, as one sentence */
  readonly notice?: string
  /** Posts `csrf_token` here to sign out. */
  readonly signOutAction: string
}

/** The start page: with `development`, what to try; without, a neutral page that reveals nothing. */
export interface HomePage {
  readonly issuer: string
  readonly development?: {
    /** starts a sign-in at the demo web client */
    readonly startUrl: string
    readonly users: readonly (DemoUser & { readonly label: string })[]
    readonly commands: readonly { readonly title: string; readonly command: string }[]
    readonly links: readonly { readonly title: string; readonly href: string; readonly about: string }[]
  }
}

/** A token as the demo page shows it; an opaque one has neither header nor payload. */
export interface ShownToken {
  /** the first and last characters: a page is no place for a whole token */
  readonly shortened: string
  readonly header?: Readonly<Record<string, unknown>>
  readonly payload?: Readonly<Record<string, unknown>>
}

export interface DemoTokensPage {
  readonly idToken?: ShownToken
  readonly accessToken?: ShownToken
  readonly refreshToken?: ShownToken
  readonly scope: string
  /** of the access token, in seconds */
  readonly expiresIn: number
  /** signs in once more */
  readonly startUrl: string
}

/** Posts `xsrf` and `user_code` to `action` (RFC 8628 §3.3). */
export interface DeviceCodePage {
  readonly action: string
  readonly xsrf: string
  /** what was typed before */
  readonly userCode?: string
  readonly problem?: 'missing' | 'unknown' | 'expired' | 'used' | 'aborted' | 'invalid'
}

/** Posts `xsrf`, `user_code` and `confirm=yes`, or `abort=yes`, to `action`. */
export interface DeviceConfirmPage {
  readonly action: string
  readonly xsrf: string
  readonly userCode: string
  readonly clientName: string
  readonly clientUri?: string
  /** what asked for the code, so that a person can tell a stranger's device from their own (RFC 8628 §5.4) */
  readonly device?: { readonly ip?: string; readonly userAgent?: string }
}

/** The catalogue of errors, where the links in error bodies lead. */
export interface ErrorsPage {
  readonly errors: readonly {
    readonly code: string
    readonly status: number
    readonly title: string
    readonly whatToDo: string
  }[]
}

export interface DeviceDonePage {
  readonly clientName?: string
}

/** One function a page; each returns a whole HTML document. */
export interface Views {
  login(page: LoginPage): string
  consent(page: ConsentPage): string
  error(page: ErrorPage): string
  errors(page: ErrorsPage): string
  signedOut(page: SignedOutPage): string
  logout(page: LogoutPage): string
  applications(page: ApplicationsPage): string
  home(page: HomePage): string
  demoTokens(page: DemoTokensPage): string
  deviceCode(page: DeviceCodePage): string
  deviceConfirm(page: DeviceConfirmPage): string
  deviceDone(page: DeviceDonePage): string
}

export interface ViewsSettings {
  /** a folder whose templates replace ours of the same name */
  readonly viewsDir: string | undefined
  readonly issuer: string
  /** the address of a file of views/assets, as `openAssets` gives it: `style.css` → `/assets/style.<hash>.css` */
  readonly assetUrl: (name: string) => string
}

const ourViews = join(import.meta.dirname, '..', '..', 'views')

/**
 * Reads and compiles every template.
 *
 * @throws when a template cannot be read or compiled, or when `viewsDir` does not exist
 * @example
 * const assets = openAssets({ viewsDir: config.viewsDir })
 * const views = openViews({ viewsDir: config.viewsDir, issuer: config.issuer, assetUrl: assets.url })
 * ctx.body = views.signedOut({})
 */
export function openViews({ viewsDir, issuer, assetUrl }: ViewsSettings): Views {
  const templates = readTemplates(viewsDir)
  const everywhere = { issuer, issuerHost: new URL(issuer).host, url: urlFor(issuer), asset: assetUrl, day, wait }
  const render = (name: string, page: object): string => templates.render(name, { ...everywhere, ...page })

  // What a page may leave out is named here, as undefined: templates ask for it by name, and a name that is not there
  // at all is an error.
  return {
    login: (page) =>
      render('login', { cancelAction: undefined, clientUri: undefined, problem: undefined, demo: undefined, ...page }),
    consent: (page) =>
      render('consent', {
        clientUri: undefined,
        logoUri: undefined,
        policyUri: undefined,
        tosUri: undefined,
        lastingDays: undefined,
        ...page,
        notGranted: page.notGranted.map((item) => ({ scope: undefined, ...item })),
      }),
    error: (page) => render('error', { suggestion: undefined, clientUri: undefined, ...page }),
    errors: (page) => render('errors', page),
    signedOut: (page) => render('signed-out', { clientName: undefined, clientUri: undefined, ...page }),
    logout: (page) => render('logout', { clientName: undefined, ...page }),
    applications: (page) =>
      render('applications', {
        notice: undefined,
        ...page,
        applications: page.applications.map((item) => ({ clientUri: undefined, lastUsedAt: undefined, ...item })),
      }),
    home: (page) => render('home', { development: undefined, ...page }),
    demoTokens: ({ idToken, accessToken, refreshToken, ...page }) =>
      render('demo-tokens', {
        ...page,
        idToken: decoded(idToken),
        accessToken: decoded(accessToken),
        refreshToken: decoded(refreshToken),
      }),
    deviceCode: (page) => render('device-code', { userCode: undefined, problem: undefined, ...page }),
    deviceConfirm: (page) =>
      render('device-confirm', {
        clientUri: undefined,
        ...page,
        device: { ip: undefined, userAgent: undefined, ...page.device },
      }),
    deviceDone: (page) => render('device-done', { clientName: undefined, ...page }),
  }
}

/** Templates whose `it` refuses names that are not there, in partials and the layout as well. */
class StrictEta extends Eta {
  readonly strict = strict
}

function readTemplates(viewsDir: string | undefined): StrictEta {
  const eta = new StrictEta({
    autoEscape: true,
    escapeFunction: escape,
    functionHeader: 'it = this.strict(it)',
    // So that an error names the line, for whoever writes a template of their own.
    debug: true,
  })
  const ours = readdirSync(ourViews).filter((name) => name.endsWith('.eta'))
  const theirs = viewsDir === undefined ? [] : readdirSync(viewsDir).filter((name) => name.endsWith('.eta'))
  const unknown = theirs.filter((name) => !ours.includes(name))
  if (unknown.length > 0) {
    throw new Error(`${viewsDir} holds ${unknown.join(', ')}: no page is called so. The pages are ${ours.join(', ')}`)
  }
  for (const name of ours) {
    const path = join(viewsDir !== undefined && theirs.includes(name) ? viewsDir : ourViews, name)
    try {
      eta.loadTemplate(name.slice(0, -'.eta'.length), readFileSync(path, 'utf8'))
    } catch (error) {
      throw new Error(`The template ${path} cannot be used`, { cause: error })
    }
  }
  return eta
}

/** What `strict` has made: an include is handed the page's data again, and must not copy all of it for each icon. */
const made = new WeakSet<object>()

/**
 * A copy of a page's data in which every name that is not there throws when it is asked for, however deep. A copy,
 * because a proxy may not answer for the properties of a frozen object with anything but themselves.
 */
function strict(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || made.has(value)) return value
  if (!Array.isArray(value) && Object.getPrototypeOf(value) !== Object.prototype) return value
  const copy = Array.isArray(value)
    ? value.map(strict)
    : new Proxy(Object.fromEntries(Object.entries(value).map(([key, item]) => [key, strict(item)])), refuseUnknownNames)
  made.add(copy)
  return copy
}

const refuseUnknownNames: ProxyHandler<Record<string, unknown>> = {
  get(target, key) {
    if (typeof key === 'string' && !Object.hasOwn(target, key)) {
      throw new ReferenceError(`the page has no '${key}'; it has ${Object.keys(target).join(', ')}`)
    }
    return Reflect.get(target, key)
  },
}

const entities: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
}

/** For text and for quoted attributes. What is left out of a page is not printed as the word "undefined": it throws. */
function escape(value: unknown): string {
  if (typeof value !== 'string' && typeof value !== 'number') {
    throw new TypeError(
      `a template prints ${value === null ? 'null' : typeof value}: only text and numbers are printed`,
    )
  }
  return String(value).replace(/[&<>"']/g, (character) => entities[character] ?? '')
}

/** Lets http, https and relative addresses through as they are; undefined for any other, so that no link is made. */
function urlFor(issuer: string): (address: string | undefined) => string | undefined {
  return (address) => {
    if (address === undefined) return undefined
    // Parsed as a browser does it, which ignores tabs and line feeds inside "java\nscript:".
    const protocol = URL.parse(address, issuer)?.protocol
    return protocol === 'https:' || protocol === 'http:' ? address : undefined
  }
}

const days = new Intl.DateTimeFormat('en-GB', { dateStyle: 'long', timeZone: 'UTC' })

/** `23 November 2026`, in UTC: without a script nobody knows the reader's time zone. */
function day(at: Date): string {
  return days.format(at)
}

/** A wait in words, never shorter than it is: `30 seconds`, `5 minutes`. */
function wait(seconds: number): string {
  const [count, unit] =
    seconds <= 90 ? [Math.max(1, Math.ceil(seconds)), 'second'] : [Math.ceil(seconds / 60), 'minute']
  return `${count} ${unit}${count === 1 ? '' : 's'}`
}

function decoded(token: ShownToken | undefined) {
  if (token === undefined) return undefined
  const { shortened, header, payload } = token
  return {
    shortened,
    header: header === undefined ? undefined : JSON.stringify(header, null, 2),
    payload: payload === undefined ? undefined : JSON.stringify(payload, null, 2),
  }
}
