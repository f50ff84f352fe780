import { beforeAll, describe, expect, it } from 'vitest'
import { describeAuditEvent, findAuditEvents } from '../../src/audit/audit-log.ts'
import { writeAudit } from '../../src/audit/audit.ts'
import type { Db } from '../../src/database/database.ts'
import { eachDatabase } from '../support/databases.ts'
import { sealAll, write } from './chains.ts'

eachDatabase((open) => {
  let db: Db
  beforeAll(async () => {
    db = (await open()).db
    await write(db, 'a')
    await write(db, 'b')
    await sealAll(db)
    await db
      .transaction()
      .execute((trx) =>
        writeAudit(
          trx,
          { type: 'user', id: 'usr_grace' },
          { action: 'user.updated', target: { type: 'user', id: 'usr_grace' } },
        ),
      )
  })

  describe('the audit record', () => {
    const find = async (filter: Partial<Parameters<typeof findAuditEvents>[1]>) =>
      (await findAuditEvents(db, { limit: 10, ...filter })).map((row) => row.target_id)

    it('is found the newest first, sealed or not, and no more of it than asked for', async () => {
      expect(await find({})).toEqual(['usr_grace', 'b', 'a'])
      expect(await find({ limit: 2 })).toEqual(['usr_grace', 'b'])
    })

    it('is found by who did it or for whom, by what, to whom and since when', async () => {
      expect(await find({ actor: 'nobody' })).toEqual([])
      expect(await find({ actor: 'ada' })).toEqual(['b', 'a'])
      expect(await find({ actor: 'usr_grace' })).toEqual(['usr_grace', 'b', 'a'])
      expect(await find({ actor: 'usr_grace', action: 'user.updated' })).toEqual(['usr_grace'])
      expect(await find({ target: 'a' })).toEqual(['a'])
      expect(await find({ since: new Date(Date.now() - 60_000) })).toHaveLength(3)
      expect(await find({ since: new Date(Date.now() + 60_000) })).toEqual([])
    })

    it('is described as it goes over the wire', async () => {
      const [unsealed, sealed] = await findAuditEvents(db, { limit: 2 })
      if (unsealed === undefined || sealed === undefined) throw new Error('rows are missing')
      expect(JSON.parse(JSON.stringify(describeAuditEvent(sealed)))).toEqual({
        audit_event_id: `aud_${sealed.id}`,
        occurred_at: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
        action: 'role.created',
        actor: { type: 'operator', id: 'ada', on_behalf_of: 'usr_grace' },
        target: { type: 'role', id: 'b' },
        request_id: 'req-1',
        details: { after: { name: 'b', size: 1.5 }, é: [null] },
        sequence: 2,
        hash: expect.stringMatching(/^[0-9a-f]{64}$/),
      })
      expect(describeAuditEvent(unsealed)).toMatchObject({
        actor: { type: 'user', id: 'usr_grace', on_behalf_of: null },
        request_id: null,
        details: {},
        sequence: null,
        hash: null,
      })
    })
  })
})
