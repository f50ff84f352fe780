/**
 * Faults that the database makes: one statement that writes fails as if the disk were full, whichever it is, so that a
 * change can be seen to happen whole or not at all. Nothing in the code under test knows of it.
 */
import { sql } from 'kysely'
import type { Db } from '../../../src/database/database.ts'

/** What the server writes by itself now and then, beside whatever is asked of it. */
const inTheBackground = /^(audit_chain|security_events|signal_|rate_buckets|quota_counters|api_usage|kysely_)/

export interface Faults {
  /** The statement that fails: 1 is the next that writes to a table. */
  arm(statement: number): Promise<void>
  /** No statement fails any more. @returns whether one did */
  disarm(): Promise<boolean>
}

export async function installFaults(db: Db): Promise<Faults> {
  // Sequences know no rollback, so that a statement that failed is counted all the same.
  await sql`CREATE SEQUENCE fault_countdown MINVALUE -1000000 START 1`.execute(db)
  await sql`
    CREATE FUNCTION fail_when_due() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF nextval('fault_countdown') = 0 THEN
        RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100';
      END IF;
      RETURN NULL;
    END $$`.execute(db)
  for (const table of await findTables(db)) {
    // The sealer updates the audit record a moment later.
    const events = table === 'audit_events' ? sql`INSERT OR DELETE` : sql`INSERT OR UPDATE OR DELETE`
    await sql`
      CREATE TRIGGER fault BEFORE ${events} ON ${sql.table(table)} FOR EACH STATEMENT EXECUTE FUNCTION fail_when_due()`.execute(
      db,
    )
  }
  return {
    async arm(statement) {
      await sql`SELECT setval('fault_countdown', ${-statement}::bigint)`.execute(db)
    },
    async disarm() {
      const { rows } = await sql<{ value: number }>`SELECT last_value AS value FROM fault_countdown`.execute(db)
      await sql`SELECT setval('fault_countdown', 1)`.execute(db)
      return Number(rows[0]?.value) >= 0
    },
  }
}

/** Table → a fingerprint of its rows: where that is another one, something has changed. */
export type State = ReadonlyMap<string, string>

export async function readState(db: Db): Promise<State> {
  const tables = (await findTables(db)).filter((table) => table !== 'change_counters')
  const queries = tables.map(
    (table) => sql`
      SELECT ${table}::text AS name, (
        SELECT coalesce(md5(string_agg(row::text, ',' ORDER BY row::text)), '') FROM (
          SELECT ${contentOf(table)} AS row FROM ${sql.table(table)} AS t
        ) AS rows
      ) AS fingerprint`,
  )
  const { rows } = await sql<{ name: string; fingerprint: string }>`${sql.join(queries, sql` UNION ALL `)}`.execute(db)
  return new Map(rows.map(({ name, fingerprint }) => [name, fingerprint]))
}

/** The names of the tables that are not as they were. */
export function findChanged(before: State, after: State): string[] {
  return [...after].flatMap(([name, fingerprint]) => (before.get(name) === fingerprint ? [] : [name]))
}

function contentOf(table: string) {
  // Filled in by the sealer.
  if (table === 'audit_events') return sql`to_jsonb(t) - ARRAY['sequence', 'previous_hash', 'hash']`
  // Every request that carries a session writes it again.
  if (table !== 'artifacts') return sql`to_jsonb(t)`
  return sql`CASE WHEN t.kind IN ('Session', 'Interaction') THEN to_jsonb(t) - ARRAY['payload', 'expires_at'] ELSE to_jsonb(t) END`
}

async function findTables(db: Db): Promise<string[]> {
  const { rows } = await sql<{ name: string }>`
    SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename`.execute(db)
  return rows.map(({ name }) => name).filter((name) => !inTheBackground.test(name))
}
