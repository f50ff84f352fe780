/**
 * How often the protocol's endpoints may be asked. Before anybody is known the network is counted (http/rate-limit.ts);
 * at the token endpoint also the client, on its usage plan, which is counted elsewhere and handed in.
 */
import { errors, Provider, type KoaContextWithOIDC, type TokenEndpointGrantContext } from 'oidc-provider'
import { rateLimitHeaders, type NamedVerdict, type Verdict } from '../http/rate-limit.ts'
import type { RequestState } from '../http/request-context.ts'
import { endpoints } from './endpoints.ts'

/** Takes one request from the plan that a client is on. */
export type TakeFromPlan = (clientId: string) => Promise<{
  readonly verdicts: readonly NamedVerdict[]
  /** undefined: go on */
  readonly refusal: Verdict | undefined
}>

const limitedPaths: readonly string[] = [
  endpoints.authorization,
  endpoints.token,
  endpoints.userinfo,
  endpoints.introspection,
  endpoints.revocation,
  endpoints.pushed_authorization_request,
  endpoints.device_authorization,
  endpoints.code_verification,
]

/** What costs a look into the database, or a row in it, before anybody has proved anything. */
export function isLimitedPath(path: string): boolean {
  return limitedPaths.some((limited) => path === limited || path.startsWith(`${limited}/`))
}

/** RFC 6749 has no word for it: the status and `Retry-After` say what is meant (RFC 6585 §4). */
class RateLimited extends errors.OIDCProviderError {
  override readonly error_description =
    'this client has used up what its plan allows: wait for as long as Retry-After says'
  constructor() {
    super(429, 'temporarily_unavailable')
  }
}

/**
 * A provider whose grants are counted, each before it begins: the client has been authenticated by then, and no code or
 * refresh token has been looked at, so that a refusal spends nothing. A public client proves nothing about itself: if it
 * were counted, anybody could use up what is its users'. Its network is counted all the same.
 */
export function meteredProvider(takeFromPlan: TakeFromPlan, onRefused?: (limit: string) => void): typeof Provider {
  async function count(ctx: KoaContextWithOIDC): Promise<void> {
    const { client } = ctx.oidc
    if (client === undefined || client.clientAuthMethod === 'none') return
    const { verdicts, refusal } = await takeFromPlan(client.clientId)
    if (refusal === undefined) return
    const limit = verdicts.find(({ verdict }) => verdict === refusal)?.name ?? 'plan'
    ;(ctx.state as RequestState).rateLimited = limit
    onRefused?.(limit)
    ctx.set({ ...rateLimitHeaders(verdicts), 'Retry-After': String(refusal.retryAfterSeconds) })
    throw new RateLimited()
  }

  return class MeteredProvider extends Provider {
    override registerGrantType<Params extends object>(
      name: string,
      handler: (ctx: TokenEndpointGrantContext<Params>) => Promise<void> | void,
      parameters?: string | readonly string[] | ReadonlySet<string>,
      duplicates?: string | readonly string[] | ReadonlySet<string>,
    ): void {
      const counted = async (ctx: TokenEndpointGrantContext<Params>) => {
        await count(ctx)
        await handler(ctx)
      }
      super.registerGrantType<Params>(name, counted, parameters, duplicates)
    }
  }
}
