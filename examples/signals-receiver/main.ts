/** ISSUER=… CLIENT_ID=… CLIENT_SECRET=… node examples/signals-receiver/main.ts */
import { receive } from './receiver.ts'

const { ISSUER = 'http://localhost:3000', CLIENT_ID = '', CLIENT_SECRET = '' } = process.env
const stop = new AbortController()
process.once('SIGINT', () => stop.abort())

await receive({
  issuer: ISSUER,
  clientId: CLIENT_ID,
  clientSecret: CLIENT_SECRET,
  onEvent: ({ sub_id, events }) => console.log(JSON.stringify({ sub_id, events })),
  signal: stop.signal,
})
