/**
 * CLIENT_ID=… CLIENT_SECRET=… node examples/manage-users/main.ts staff.example examples/manage-users/people.json
 *
 * The client is one for machines, registered by:
 *
 *   npm run latchkey -- clients create 'People sync' --type machine \
 *     --permission users:read@http://localhost:3000/v1 --permission users:write@http://localhost:3000/v1
 */
import { readFileSync } from 'node:fs'
import { syncPeople, type Person } from './sync-people.ts'

const { ISSUER = 'http://localhost:3000', CLIENT_ID = '', CLIENT_SECRET = '' } = process.env
const [domain = '', file = ''] = process.argv.slice(2)
const people = JSON.parse(readFileSync(file, 'utf8')) as Person[]

for (const line of await syncPeople({
  issuer: ISSUER,
  clientId: CLIENT_ID,
  clientSecret: CLIENT_SECRET,
  domain,
  people,
})) {
  console.log(line)
}
