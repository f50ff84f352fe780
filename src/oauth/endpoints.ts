/** Where the protocol's endpoints are; the interactions between them are pages of ours (login/routes.ts). */
export const endpoints = {
  authorization: '/authorize',
  token: '/token',
  userinfo: '/userinfo',
  introspection: '/introspect',
  revocation: '/revoke',
  end_session: '/logout',
  pushed_authorization_request: '/par',
  jwks: '/.well-known/jwks.json',
  device_authorization: '/device/authorization',
  code_verification: '/device',
} as const
