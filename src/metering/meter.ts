import type { NamedVerdict, RateLimiter, Verdict } from '../http/rate-limit.ts'
import type { Plan, PlanDirectory } from './plans.ts'

/** Who is counted. */
export interface MeteredCaller {
  readonly clientId: string
  /** the key by which it came, if it did */
  readonly apiKey?: { readonly api_key_id: string; readonly plan: string | null } | undefined
}

export interface Metered {
  /** for the answer's headers; none for who is on no plan */
  readonly verdicts: readonly NamedVerdict[]
  /** the limit that refuses; undefined: go on */
  readonly refusal: Verdict | undefined
}

export interface Meter {
  /**
   * Counts one request. One that is refused counts nowhere.
   *
   * @throws the database's own errors
   * @example
   * const { verdicts, refusal } = await meter.take({ clientId })
   * ctx.set(rateLimitHeaders(verdicts))
   * if (refusal !== undefined) throw rateLimitExceeded(refusal)
   */
  take(caller: MeteredCaller): Promise<Metered>
}

const unlimited: Metered = { verdicts: [], refusal: undefined }

/** Takes from the plan that a caller is on: an API key's own, or else its client's, which all that is the client's shares. */
export function openMeter({ limiter, plans }: { limiter: RateLimiter; plans: PlanDirectory }): Meter {
  return {
    async take({ clientId, apiKey }) {
      if (apiKey?.plan == null) return takeFrom(limiter, `client:${clientId}`, await plans.planOfClient(clientId))
      return takeFrom(limiter, `api-key:${apiKey.api_key_id}`, await plans.findPlan(apiKey.plan))
    },
  }
}

async function takeFrom(limiter: RateLimiter, key: string, plan: Plan | undefined): Promise<Metered> {
  if (plan === undefined) return unlimited
  const { throttle, quota } = plan
  const verdicts: NamedVerdict[] = []
  if (throttle !== null) {
    const verdict = await limiter.take(key, { ratePerSecond: throttle.rateLimit, burst: throttle.burstLimit })
    verdicts.push({ name: 'throttle', verdict })
    if (!verdict.allowed) return { verdicts, refusal: verdict }
  }
  if (quota !== null) {
    const verdict = await limiter.takeQuota(key, quota)
    verdicts.push({ name: 'quota', verdict })
    if (!verdict.allowed) {
      if (throttle !== null) limiter.giveBack(key)
      return { verdicts, refusal: verdict }
    }
  }
  return { verdicts, refusal: undefined }
}
