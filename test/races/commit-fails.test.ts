/**
 * A COMMIT that fails: the answer must not go out, and the connection must come back. A trigger that speaks at the end
 * of the transaction stands for the full disk or the lost standby.
 */
import { sql } from 'kysely'
import { expect, it } from 'vitest'
import { eachDatabase } from '../support/databases.ts'
import { openProvider } from '../support/provider.ts'
import { refresh, registerClient, signInAt } from '../support/relying-party.ts'

eachDatabase((_open, engine) => {
  it('a refresh whose COMMIT fails is answered 503, holds no connection, and can be asked again', async () => {
    const provider = await openProvider(engine, { environment: { LATCHKEY_DATABASE_POOL_SIZE: '2' } })
    const rp = await registerClient(provider)
    const { body } = await signInAt(provider, rp)
    const { db } = provider.database
    await sql`
      CREATE FUNCTION fail_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$`.execute(db)
    await sql`
      CREATE CONSTRAINT TRIGGER fail_at_commit AFTER INSERT ON refresh_replies
      DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail_at_commit()`.execute(db)
    for (let attempt = 0; attempt < 4; attempt += 1) {
      const { status, headers } = await refresh(provider, rp, body.refresh_token)
      expect([attempt, status, headers.get('retry-after') !== null]).toEqual([attempt, 503, true])
    }
    await sql`DROP TRIGGER fail_at_commit ON refresh_replies`.execute(db)
    expect((await refresh(provider, rp, body.refresh_token)).status).toBe(200)
  })
})
