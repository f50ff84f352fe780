import type { CompiledQuery } from 'kysely'
import type { Db } from './database.ts'

/**
 * A query of one text, which is built once instead of for every request; for the few that most requests make.
 *
 * @param build given the values to stand in for the first time; each must appear once, in this order, and decide nothing
 *   about the text
 * @example
 * const findName = compileOnce((db, id: string) => db.selectFrom('users').select('name').where('id', '=', id))
 * const [user] = await findName(db, userId)
 */
export function compileOnce<V extends readonly unknown[], R>(
  build: (db: Db, ...values: V) => { compile(db: Db): CompiledQuery<R> },
): (db: Db, ...values: V) => Promise<R[]> {
  let compiled: CompiledQuery<R> | undefined
  return async (db, ...values) => {
    compiled ??= checked(build(db, ...values).compile(db), values)
    return (await db.executeQuery<R>({ ...compiled, parameters: values })).rows
  }
}

function checked<R>(query: CompiledQuery<R>, values: readonly unknown[]): CompiledQuery<R> {
  if (query.parameters.length === values.length && query.parameters.every((value, i) => value === values[i]))
    return query
  throw new Error('a query that is compiled once takes its values as they are, each once and in order')
}
