import type { ParameterizedContext } from 'koa'

/**
 * Which of these media types the Accept header likes best; undefined for none. Whatever is sent here is in UTF-8, so a
 * range that wants that is met too: `application/json; charset=utf-8`.
 */
export function acceptedType<Type extends string>(ctx: ParameterizedContext, types: readonly Type[]): Type | undefined {
  const accepted = ctx.accepts(...types, ...types.map((type) => `${type}; charset=utf-8`))
  return accepted === false ? undefined : types.find((type) => type === accepted.split(';')[0])
}
