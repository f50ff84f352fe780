/**
 * The two pages of docs/ that are made from the source: `node test/docs/reference-pages.ts` writes them anew, and a test
 * beside this file fails when they say anything else than the source does.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { settingsReference } from '../../src/config.ts'
import { problemCatalogue } from '../../src/problems.ts'

const howMade = '<!-- Made by `node test/docs/reference-pages.ts`; do not edit. -->'

function configurationPage(): string {
  const rows = settingsReference().map(
    ({ name, about, default: fallback }) => `| \`${name}\` | ${cell(about)} | ${cell(fallback)} |`,
  )
  return `${howMade}

# Configuration

Every setting comes from the environment and is read once, at start. All bad values are reported together, and an
unknown name that begins with \`LATCHKEY_\` is an error that suggests the right one. An empty value counts as none.

A name that ends in \`[_FILE]\` holds a secret: it may be given as it is, or with \`_FILE\` appended as the path of a file
that holds it, not both.

\`npm run latchkey -- config check\` prints what is in force, without the secrets, or everything that is wrong.

| setting | what it is | default |
| --- | --- | --- |
${rows.join('\n')}
`
}

function errorsPage(): string {
  const rows = Object.entries(problemCatalogue).map(
    ([code, { status, title, whatToDo }]) =>
      `| <a id="${code}"></a>\`${code}\` | ${status} | ${cell(title)} | ${cell(whatToDo)} |`,
  )
  return `${howMade}

# Errors

Everything but the protocol's own endpoints answers an error with one body. It holds the members of RFC 9457 and, beside
them, an envelope with the \`code\` to program against; codes may be added, never changed. To a browser the same error is
a page. Example: \`curl http://localhost:3000/nowhere\`

\`\`\`json
{
  "type": "http://localhost:3000/docs/errors#RESOURCE_NOT_FOUND",
  "title": "There is nothing here",
  "status": 404,
  "detail": "There is nothing at this address.",
  "instance": "/nowhere",
  "error": { "code": "RESOURCE_NOT_FOUND", "message": "There is nothing at this address." },
  "request_id": "3ef4aaf9-13b1-4993-a9b5-1b25a83b99ec",
  "timestamp": "2026-11-23T17:29:04.406Z",
  "documentation": "http://localhost:3000/docs/errors#RESOURCE_NOT_FOUND"
}
\`\`\`

\`error.details\` names the fields that are wrong, when there are any; \`error.retry_after\` is the \`Retry-After\` header, in
seconds. \`request_id\` is the one in the log and in the \`X-Request-Id\` header.

| code | status | meaning | what to do |
| --- | --- | --- | --- |
${rows.join('\n')}

## The protocol's endpoints

\`/authorize\`, \`/token\`, \`/userinfo\`, \`/introspect\`, \`/revoke\` and \`/par\` answer as RFC 6749 §5.2 and its
successors say: \`{"error":"invalid_scope","error_description":"this client may not ask for this scope"}\`. An error that
\`/authorize\` may send back to the application goes there, with \`error\`, \`state\` and \`iss\`; any other is a page.
`
}

function cell(text: string): string {
  return text.replaceAll('|', '\\|')
}

/** Path below the repository's root → what stands there. */
export const referencePages: ReadonlyMap<string, () => string> = new Map([
  ['docs/configuration.md', configurationPage],
  ['docs/errors.md', errorsPage],
])

if (import.meta.main) {
  for (const [path, page] of referencePages) writeFileSync(join(import.meta.dirname, '..', '..', path), page())
}
