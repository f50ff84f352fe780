/** Models and whom they are shared with: the two tables, and every statement about them. */
import { randomUUID } from 'node:crypto'
import { PGlite } from '@electric-sql/pglite'
import type { Resource } from '@latchkey/guard'
import type { AttributeMap } from '@latchkey/guard/kysely'
import { Kysely, PGliteDialect } from 'kysely'
import type { Expression, SqlBool } from 'kysely'

interface Tables {
  models: { id: string; owner_id: string; name: string; is_public: boolean }
  model_shares: { model_id: string; user_id: string; permission: string }
}

/** As the API shows it. */
export interface Model {
  id: string
  owner_id: string
  name: string
  is_public: boolean
}

/** How the attributes that policies speak of lie in the tables; what makes the list filter possible. */
export const modelAttributes: AttributeMap = {
  id: { type: 'string', column: 'models.id' },
  owner: { type: 'string', column: 'models.owner_id' },
  public: { type: 'bool', column: 'models.is_public' },
  shares: {
    type: 'rows',
    table: 'model_shares',
    on: { model_id: 'models.id' },
    attributes: { user: { type: 'string', column: 'user_id' }, permission: { type: 'string', column: 'permission' } },
  },
}

export class Models {
  readonly #database: Kysely<Tables>

  constructor(database: Kysely<Tables>) {
    this.#database = database
  }

  /** As policies see it: with its shares. */
  async findResource(id: string): Promise<Resource | undefined> {
    const model = await this.find(id)
    if (model === undefined) return undefined
    const shares = await this.#database
      .selectFrom('model_shares')
      .select(['user_id as user', 'permission'])
      .where('model_id', '=', id)
      .execute()
    return { type: 'model', id, owner: model.owner_id, public: model.is_public, shares }
  }

  find(id: string): Promise<Model | undefined> {
    return this.#database.selectFrom('models').selectAll().where('id', '=', id).executeTakeFirst()
  }

  list(visible: Expression<SqlBool>): Promise<Model[]> {
    return this.#database.selectFrom('models').selectAll().where(visible).orderBy('name').limit(100).execute()
  }

  create(ownerId: string, name: string, isPublic: boolean): Promise<Model> {
    const model = { id: randomUUID(), owner_id: ownerId, name, is_public: isPublic }
    return this.#database.insertInto('models').values(model).returningAll().executeTakeFirstOrThrow()
  }

  async update(
    id: string,
    changes: { name?: string; is_public?: boolean; owner_id?: string },
  ): Promise<Model | undefined> {
    return this.#database.updateTable('models').set(changes).where('id', '=', id).returningAll().executeTakeFirst()
  }

  async delete(id: string): Promise<void> {
    await this.#database.deleteFrom('models').where('id', '=', id).execute()
  }

  /** What a user may do from now on; nothing, when the list is empty. */
  async share(id: string, userId: string, permissions: readonly string[]): Promise<void> {
    await this.#database.transaction().execute(async (trx) => {
      await trx.deleteFrom('model_shares').where('model_id', '=', id).where('user_id', '=', userId).execute()
      if (permissions.length === 0) return
      const rows = permissions.map((permission) => ({ model_id: id, user_id: userId, permission }))
      await trx.insertInto('model_shares').values(rows).execute()
    })
  }

  async close(): Promise<void> {
    await this.#database.destroy()
  }
}

/** Opens an empty store in memory. */
export async function openModels(): Promise<Models> {
  const pglite = await PGlite.create()
  await pglite.exec(`
    CREATE TABLE models (
      id text PRIMARY KEY,
      owner_id text NOT NULL,
      name text NOT NULL,
      is_public boolean NOT NULL DEFAULT false
    );
    CREATE TABLE model_shares (
      model_id text NOT NULL REFERENCES models (id) ON DELETE CASCADE,
      user_id text NOT NULL,
      permission text NOT NULL,
      PRIMARY KEY (model_id, user_id, permission)
    );`)
  return new Models(new Kysely<Tables>({ dialect: new PGliteDialect({ pglite }) }))
}
