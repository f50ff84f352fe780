import { BlockList } from 'node:net'
import { expect, it } from 'vitest'
import { errorReference } from '../../src/http/error-reference.ts'
import { problemResponse } from '../../src/http/problem-response.ts'
import { requestContext } from '../../src/http/request-context.ts'
import { Problem, problemCatalogue, type ProblemCode } from '../../src/problems.ts'
import { openTestLog, serveApp } from '../support/serve-app.ts'

it('is where the documentation of every error leads', async () => {
  const issuer = 'http://localhost:3000'
  const url = await serveApp(
    requestContext({ trustProxy: new BlockList(), issuer }),
    problemResponse({ issuer, log: openTestLog().log }),
    errorReference((errors) => errors.map(({ code }) => `<p id="${code}">`).join('')),
    (ctx) => {
      throw new Problem(ctx.path.slice(1) as ProblemCode)
    },
  )
  for (const code of Object.keys(problemCatalogue)) {
    const { documentation } = (await (await fetch(`${url}/${code}`)).json()) as { documentation: string }
    const { pathname, hash } = new URL(documentation)
    const page = await fetch(url + pathname)
    expect(page.status).toBe(200)
    expect(await page.text()).toContain(`id="${hash.slice(1)}"`)
  }
})
