/** Every page in the states it can be in, with ordinary data, with a stranger's worst, and with a great deal of it. */
import type { Views } from '../../src/login/render.ts'

/** Markup, quotes, an override of the writing direction, a long word, and words that run from right to left. */
export const hostile = `"><script>alert(1)</script><img src=x onerror=alert(1)>'&\u202e ${'Extraordinarily'.repeat(12)} שלום`

const readModels = { scope: 'models:read', description: 'Read your models' }
const writeModels = { scope: 'models:write', description: 'Create and change your models' }
const profile = {
  resourceName: 'Your profile',
  scopes: [
    { scope: 'openid', description: 'Know that it is you' },
    { scope: 'email', description: 'See your email address' },
  ],
}
const models = { resourceName: 'Model registry', scopes: [readModels, writeModels] }
const many = {
  resourceName: 'Everything else',
  scopes: Array.from({ length: 30 }, (_, i) => ({ scope: `things:action-${i}`, description: `Do thing number ${i}` })),
}
const nasty = { resourceName: hostile, scopes: [{ scope: hostile, description: hostile }] }

const form = { action: '/interaction/V1StGXR8_Z5jdHi6B-myT', csrfToken: 'csrf-8ZzO2kQ' }
const login = { ...form, cancelAction: `${form.action}/abort`, clientName: 'Model Workbench', login: '' }
const consent = {
  ...form,
  clientName: 'Experiment Tracker',
  clientUri: 'https://tracker.example/about',
  policyUri: 'https://tracker.example/privacy',
  tosUri: 'https://tracker.example/terms',
  userEmail: 'ada@example.com',
  granted: [profile, models],
  notGranted: [
    { scope: 'models:delete', description: 'Delete your models' },
    { description: 'See or change your password' },
  ],
  lasting: true,
  lastingDays: 30,
  redirectHost: 'tracker.example',
}
const application = {
  clientId: 'cli_tracker',
  clientName: 'Experiment Tracker',
  clientUri: 'https://tracker.example/about',
  firstParty: false,
  grantedAt: new Date('2026-03-01T23:30:00Z'),
  lastUsedAt: new Date('2026-11-23T08:00:00Z'),
  scopes: [profile, models],
  withdrawAction: '/account/applications/cli_tracker/withdraw',
}
const applications = { userEmail: 'ada@example.com', csrfToken: 'csrf-8ZzO2kQ', signOutAction: '/logout' }
const claims = {
  iss: 'http://localhost:3000',
  sub: 'usr_9f1c2ab47d',
  aud: 'http://localhost:3000/v1',
  exp: 1795424400,
  iat: 1795423500,
  jti: 'Yk2w9vXq0eB3',
  scope: 'models:read models:write',
}
const demoTokens = {
  idToken: {
    shortened: 'eyJhbGciOiJSUzI1…q9Zx1w',
    header: { alg: 'RS256', kid: 'k1' },
    payload: { ...claims, aud: 'web' },
  },
  accessToken: {
    shortened: 'eyJhbGciOiJSUzI1…Zm8Jtg',
    header: { alg: 'RS256', typ: 'at+jwt', kid: 'k1' },
    payload: claims,
  },
  refreshToken: { shortened: 'rt_K3v…8sQ' },
  scope: 'openid models:read models:write',
  expiresIn: 900,
  startUrl: '/demo/start',
}
const device = { action: '/device', xsrf: 'xsrf-41', userCode: 'BDWP-HQPK' }

/** Name → the page. The name says what is special about it. */
export const samplePages: Readonly<Record<string, (views: Views) => string>> = {
  login: (views) =>
    views.login({
      ...login,
      clientUri: 'https://workbench.example',
      demo: [
        { email: 'ada@example.com', password: 'correct-horse-4711' },
        { email: 'admin@example.com', password: 'battery-staple-0815' },
      ],
    }),
  'login, plain': (views) => views.login({ ...form, clientName: 'Model Workbench', login: '' }),
  'login, refused': (views) => views.login({ ...login, login: 'ada@example.com', problem: { kind: 'refused' } }),
  'login, throttled': (views) =>
    views.login({ ...login, login: 'ada@example.com', problem: { kind: 'throttled', retryAfterSeconds: 180 } }),
  'login, busy': (views) =>
    views.login({ ...login, login: 'ada@example.com', problem: { kind: 'busy', retryAfterSeconds: 1 } }),
  'login, expired': (views) => views.login({ ...login, problem: { kind: 'expired' } }),
  'login, hostile': (views) =>
    views.login({
      action: form.action,
      csrfToken: hostile,
      clientName: hostile,
      clientUri: 'javascript:alert(1)',
      login: hostile,
      problem: { kind: 'refused' },
      demo: [{ email: hostile, password: hostile }],
    }),
  consent: (views) => views.consent(consent),
  'consent, short': (views) =>
    views.consent({
      ...form,
      clientName: 'Experiment Tracker',
      userEmail: 'ada@example.com',
      granted: [],
      notGranted: [],
      lasting: false,
      redirectHost: 'tracker.example',
    }),
  'consent, with logo and terms': (views) =>
    views.consent({
      ...form,
      clientName: 'Experiment Tracker',
      userEmail: 'ada@example.com',
      granted: [profile],
      notGranted: consent.notGranted,
      lasting: true,
      redirectHost: 'tracker.example',
      tosUri: consent.tosUri,
      logoUri: 'https://tracker.example/logo.png',
    }),
  'consent, many': (views) => views.consent({ ...consent, granted: [profile, models, many], lastingDays: 1 }),
  'consent, hostile': (views) =>
    views.consent({
      ...consent,
      csrfToken: hostile,
      clientName: hostile,
      clientUri: 'data:text/html,<script>alert(1)</script>',
      logoUri: 'java\nscript:alert(1)',
      policyUri: ' javascript:alert(1)',
      tosUri: 'vbscript:alert(1)',
      userEmail: hostile,
      granted: [nasty],
      notGranted: [{ scope: hostile, description: hostile }],
      redirectHost: hostile,
    }),
  error: (views) =>
    views.error({
      status: 400,
      title: 'This link is not right',
      detail: 'The application sent you here with an address to return to that is not registered.',
      requestId: '01JDC5V2N7',
      suggestion: 'Go back to the application and start again. If it happens again, tell its makers the request below.',
      clientUri: 'https://tracker.example',
    }),
  'error, short': (views) =>
    views.error({ status: 500, title: 'Something went wrong', detail: 'It is our fault.', requestId: '01JDC5V2N7' }),
  'error, hostile': (views) =>
    views.error({
      status: 400,
      title: hostile,
      detail: hostile,
      requestId: hostile,
      suggestion: hostile,
      clientUri: 'javascript:alert(1)',
    }),
  errors: (views) =>
    views.errors({
      errors: [
        { code: 'CONFLICT', status: 409, title: 'The request conflicts', whatToDo: 'Read the state, then decide.' },
      ],
    }),
  'signed out': (views) => views.signedOut({}),
  'signed out of one': (views) =>
    views.signedOut({ clientName: 'Experiment Tracker', clientUri: 'https://tracker.example' }),
  'signed out, hostile': (views) => views.signedOut({ clientName: hostile, clientUri: 'javascript:alert(1)' }),
  logout: (views) => views.logout({ action: '/logout/confirm', xsrf: 'xsrf-41', clientName: 'Experiment Tracker' }),
  'logout, plain': (views) => views.logout({ action: '/logout/confirm', xsrf: 'xsrf-41' }),
  'logout, hostile': (views) => views.logout({ action: '/logout/confirm', xsrf: hostile, clientName: hostile }),
  applications: (views) =>
    views.applications({
      ...applications,
      notice: 'Report Builder no longer has access to your account.',
      applications: [
        application,
        {
          clientId: 'cli_web',
          clientName: 'Model Workbench',
          firstParty: true,
          grantedAt: new Date('2026-11-20T10:00:00Z'),
          scopes: [],
          withdrawAction: '/account/applications/cli_web/withdraw',
        },
      ],
    }),
  'applications, none': (views) => views.applications({ ...applications, applications: [] }),
  'applications, hostile': (views) =>
    views.applications({
      ...applications,
      userEmail: hostile,
      csrfToken: hostile,
      notice: hostile,
      applications: [
        {
          ...application,
          clientId: hostile,
          clientName: hostile,
          clientUri: 'javascript:alert(1)',
          scopes: [nasty, many],
        },
      ],
    }),
  home: (views) => views.home({ issuer: 'http://localhost:3000' }),
  'home, development': (views) =>
    views.home({
      issuer: 'http://localhost:3000',
      development: {
        startUrl: '/demo/start',
        users: [
          { label: 'A person', email: 'ada@example.com', password: 'correct-horse-4711' },
          { label: 'An administrator', email: 'admin@example.com', password: 'battery-staple-0815' },
        ],
        commands: [
          {
            title: 'A token for a service',
            command:
              'curl -u service:lks_2f0e9a7c5b -d grant_type=client_credentials \\\n  -d resource=http://localhost:3000/v1 -d scope=models:read http://localhost:3000/token',
          },
        ],
        links: [
          {
            title: 'Provider metadata',
            href: '/.well-known/openid-configuration',
            about: 'what clients read first (OpenID Connect Discovery)',
          },
          { title: 'Keys', href: '/.well-known/jwks.json', about: 'what tokens are verified with' },
          { title: 'Connected applications', href: '/account/applications', about: 'who has access to your account' },
        ],
      },
    }),
  'home, hostile': (views) =>
    views.home({
      issuer: hostile,
      development: {
        startUrl: '/demo/start',
        users: [{ label: hostile, email: hostile, password: hostile }],
        commands: [{ title: hostile, command: hostile }],
        links: [{ title: hostile, href: '/', about: hostile }],
      },
    }),
  'demo tokens': (views) => views.demoTokens(demoTokens),
  'demo tokens, opaque': (views) =>
    views.demoTokens({
      accessToken: { shortened: 'Kx81Q…0pL' },
      scope: 'openid',
      expiresIn: 60,
      startUrl: '/demo/start',
    }),
  'demo tokens, none': (views) => views.demoTokens({ scope: 'openid', expiresIn: 60, startUrl: '/demo/start' }),
  'demo tokens, hostile': (views) =>
    views.demoTokens({
      idToken: { shortened: hostile, header: { [hostile]: hostile }, payload: { [hostile]: [hostile] } },
      refreshToken: { shortened: hostile },
      scope: hostile,
      expiresIn: 900,
      startUrl: '/demo/start',
    }),
  'device code': (views) => views.deviceCode({ action: '/device', xsrf: 'xsrf-41' }),
  'device code, missing': (views) => views.deviceCode({ action: '/device', xsrf: 'xsrf-41', problem: 'missing' }),
  'device code, unknown': (views) => views.deviceCode({ ...device, problem: 'unknown' }),
  'device code, expired': (views) => views.deviceCode({ ...device, problem: 'expired' }),
  'device code, used': (views) => views.deviceCode({ ...device, problem: 'used' }),
  'device code, aborted': (views) => views.deviceCode({ ...device, problem: 'aborted' }),
  'device code, invalid': (views) => views.deviceCode({ ...device, problem: 'invalid' }),
  'device code, hostile': (views) => views.deviceCode({ action: '/device', xsrf: hostile, userCode: hostile }),
  'device confirm': (views) =>
    views.deviceConfirm({
      ...device,
      clientName: 'Latchkey command line',
      clientUri: 'https://latchkey.example',
      device: { ip: '203.0.113.7', userAgent: 'latchkey-cli/1.4 (linux; x64)' },
    }),
  'device confirm, plain': (views) => views.deviceConfirm({ ...device, clientName: 'Television' }),
  'device confirm, hostile': (views) =>
    views.deviceConfirm({
      action: '/device',
      xsrf: hostile,
      userCode: hostile,
      clientName: hostile,
      clientUri: 'javascript:alert(1)',
      device: { ip: hostile, userAgent: hostile },
    }),
  'device done': (views) => views.deviceDone({ clientName: 'Television' }),
  'device done, plain': (views) => views.deviceDone({}),
  'device done, hostile': (views) => views.deviceDone({ clientName: hostile }),
}
