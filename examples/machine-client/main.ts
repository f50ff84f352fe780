/** ISSUER=… API=… CLIENT_ID=… CLIENT_SECRET=… node examples/machine-client/main.ts */
import { fetchHello } from './fetch-hello.ts'

const {
  ISSUER = 'http://localhost:3000',
  API = 'http://localhost:3001',
  CLIENT_ID = '',
  CLIENT_SECRET = '',
} = process.env
console.log(await fetchHello({ issuer: ISSUER, api: API, clientId: CLIENT_ID, clientSecret: CLIENT_SECRET }))
