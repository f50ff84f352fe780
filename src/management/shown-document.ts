import type { OpenApiDocument } from '../http/openapi.ts'

interface Parameter {
  readonly required?: boolean
  readonly description?: string
  readonly example?: string | number | boolean
  readonly schema?: { readonly example?: unknown; readonly default?: unknown }
}

/** What is read of an operation, whatever else stands in it. */
interface Operation {
  readonly parameters?: readonly Parameter[]
  readonly responses?: Readonly<Record<string, { readonly headers?: Readonly<Record<string, unknown>> }>>
}

/**
 * The document as the page shows it. Swagger UI fills in the example of every parameter, which would be all filters at
 * once, and repeats each refusal's body and the common headers at every operation, which would be all that one sees.
 */
export function shownDocument(document: OpenApiDocument): object {
  const { securitySchemes: { oauth2, ...otherSchemes } = {}, ...components } = document.components ?? {}
  const paths = Object.entries(document.paths ?? {}).map(([path, operations]) => [
    path,
    Object.fromEntries(
      Object.entries(operations as Record<string, Operation>).map(([method, operation]) => [
        method,
        shownOperation(operation),
      ]),
    ),
  ])
  return {
    ...document,
    paths: Object.fromEntries(paths) as object,
    components: {
      ...components,
      responses: mapValues(components.responses ?? {}, ({ description }: { description?: string }) => ({
        description,
      })),
      // The dialog puts the cursor into the field for a key, so that comes first; a service asks for tokens by itself.
      securitySchemes: { ...otherSchemes, oauth2: withoutClientCredentials(oauth2) },
    },
  }
}

function shownOperation(operation: Operation): object {
  return {
    ...operation,
    parameters: operation.parameters?.map((parameter) =>
      parameter.required === true ? parameter : withoutExample(parameter),
    ),
    responses: mapValues(operation.responses ?? {}, ({ headers = {}, ...response }) => ({
      ...response,
      headers: Object.fromEntries(Object.entries(headers).filter(([name]) => name === 'ETag' || name === 'Location')),
    })),
  }
}

function withoutExample({ example, schema, description = '', ...parameter }: Parameter): Parameter {
  const { example: _, ...shown } = schema ?? {}
  const such = example === undefined || schema?.default !== undefined ? '' : `. Such as \`${String(example)}\``
  return { ...parameter, description: `${description}${such}`, schema: shown }
}

function withoutClientCredentials(scheme: unknown): unknown {
  const { flows: { clientCredentials: _, ...flows } = {}, ...rest } = scheme as { flows?: Record<string, unknown> }
  return { ...rest, flows }
}

function mapValues<T, U>(object: Readonly<Record<string, T>>, change: (value: T) => U): Record<string, U> {
  return Object.fromEntries(Object.entries(object).map(([name, value]) => [name, change(value)]))
}
