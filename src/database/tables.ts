/**
 * The tables as TypeScript sees them: one interface a table, names as in migrations/*.sql. The only place besides SQL
 * and the wire where snake_case is written.
 */
import type { ColumnType, Generated, GeneratedAlways, JSONColumnType } from 'kysely'

type Timestamp = ColumnType<Date, Date | string, Date | string>
type DefaultNow = ColumnType<Date, Date | string | undefined, Date | string>
type NullableTimestamp = ColumnType<Date | null, Date | string | null | undefined, Date | string | null>
/** jsonb: read as a value, written as JSON text, so that both drivers send the same. */
type Json<T extends object> = JSONColumnType<T>
type JsonWithDefault<T extends object> = ColumnType<T, string | undefined, string>
type NullableJson<T extends object> = ColumnType<T | null, string | null | undefined, string | null>
type Bytes = ColumnType<Uint8Array, Uint8Array, Uint8Array>
type NullableBytes = ColumnType<Uint8Array | null, Uint8Array | null | undefined, Uint8Array | null>

export interface Tables {
  users: UsersTable
  resources: ResourcesTable
  permissions: PermissionsTable
  roles: RolesTable
  role_permissions: RolePermissionsTable
  role_inclusions: RoleInclusionsTable
  role_reach: RoleReachTable
  user_roles: UserRolesTable
  sign_in_throttle: SignInThrottleTable
  known_devices: KnownDevicesTable
  clients: ClientsTable
  client_secrets: ClientSecretsTable
  client_permissions: ClientPermissionsTable
  consents: ConsentsTable
  artifacts: ArtifactsTable
  refresh_replies: RefreshRepliesTable
  revocations: RevocationsTable
  security_events: SecurityEventsTable
  signal_streams: SignalStreamsTable
  signal_receipts: SignalReceiptsTable
  signal_pusher: SignalPusherTable
  audit_events: AuditEventsTable
  audit_chain: AuditChainTable
  signing_keys: SigningKeysTable
  secrets: SecretsTable
  settings: SettingsTable
  change_counters: ChangeCountersTable
  idempotency_keys: IdempotencyKeysTable
  usage_plans: UsagePlansTable
  api_keys: ApiKeysTable
  rate_buckets: RateBucketsTable
  quota_counters: QuotaCountersTable
  api_usage: ApiUsageTable
}

export interface UsersTable {
  id: string
  email: string
  email_normalized: string
  email_verified: Generated<boolean>
  name: string | null
  profile: JsonWithDefault<Record<string, unknown>>
  attributes: JsonWithDefault<Record<string, unknown>>
  account_status: Generated<'active' | 'disabled'>
  password_hash: string | null
  password_changed_at: NullableTimestamp
  token_version: Generated<number>
  sign_in_version: Generated<number>
  row_version: Generated<number>
  created_at: DefaultNow
  updated_at: DefaultNow
}

export interface ResourcesTable {
  id: string
  name: string
  access_token_lifetime_seconds: Generated<number>
  attribute_claims: JsonWithDefault<Record<string, string>>
  row_version: Generated<number>
  created_at: DefaultNow
  updated_at: DefaultNow
}

export interface PermissionsTable {
  resource: string
  permission: string
  description: Generated<string>
}

export interface RolesTable {
  name: string
  description: Generated<string>
  row_version: Generated<number>
  created_at: DefaultNow
  updated_at: DefaultNow
}

export interface RolePermissionsTable {
  role: string
  resource: string
  permission: string
}

export interface RoleInclusionsTable {
  role: string
  included: string
}

export interface RoleReachTable {
  role: string
  reached: string
}

export interface UserRolesTable {
  user_id: string
  role: string
  granted_at: DefaultNow
}

export interface SignInThrottleTable {
  key: string
  tokens: number
  updated_at: DefaultNow
}

export interface KnownDevicesTable {
  id: string
  user_id: string
  created_at: DefaultNow
  last_seen_at: DefaultNow
  expires_at: Timestamp
}

export interface ClientsTable {
  id: string
  name: string
  token_endpoint_auth_method: 'none' | 'client_secret_basic' | 'private_key_jwt'
  application_type: Generated<'web' | 'native'>
  grant_types: Json<string[]>
  redirect_uris: JsonWithDefault<string[]>
  post_logout_redirect_uris: JsonWithDefault<string[]>
  backchannel_logout_uri: string | null
  jwks: NullableJson<{ keys: Record<string, unknown>[] }>
  jwks_uri: string | null
  client_uri: string | null
  logo_uri: string | null
  policy_uri: string | null
  tos_uri: string | null
  first_party: Generated<boolean>
  require_pkce: Generated<boolean>
  require_pushed_authorization_requests: Generated<boolean>
  dpop_bound_access_tokens: Generated<boolean>
  default_resource: string | null
  plan: string | null
  status: Generated<'active' | 'disabled'>
  token_version: Generated<number>
  row_version: Generated<number>
  created_at: DefaultNow
  updated_at: DefaultNow
}

export interface ClientSecretsTable {
  id: string
  client_id: string
  secret_hash: Bytes
  created_at: DefaultNow
  expires_at: NullableTimestamp
}

export interface ClientPermissionsTable {
  client_id: string
  resource: string
  permission: string
}

export interface ConsentsTable {
  user_id: string
  client_id: string
  resource: string
  scope: string
  granted_at: DefaultNow
}

export interface ArtifactsTable {
  kind: string
  id: string
  grant_id: string | null
  session_uid: string | null
  user_id: string | null
  client_id: string | null
  user_code: string | null
  sign_in_version: number | null
  payload: Json<Record<string, unknown>>
  consumed_at: NullableTimestamp
  created_at: DefaultNow
  expires_at: Timestamp
}

export interface RefreshRepliesTable {
  token_id: string
  grant_id: string
  request_hash: Bytes
  sealed_reply: Bytes
  expires_at: Timestamp
}

export interface RevocationsTable {
  id: GeneratedAlways<number>
  transaction_id: GeneratedAlways<string>
  kind: 'token' | 'grant' | 'session' | 'user' | 'client' | 'key'
  subject: string
  token_version: number | null
  reason: string
  cause: Generated<'password-change' | 'claims-change' | 'other'>
  initiated_by: Generated<'admin' | 'user' | 'policy' | 'system'>
  request_id: ColumnType<string | null, string | null | undefined, never>
  revoked_at: DefaultNow
  expires_at: Timestamp
}

export interface SecurityEventsTable {
  revocation_id: number
  jti: string
  kid: string
  signed_set: string
  signed_at: DefaultNow
}

export interface SignalStreamsTable {
  stream_id: string
  client_id: string
  delivery_method: 'poll' | 'push'
  endpoint_url: string | null
  sealed_authorization_header: NullableBytes
  events_requested: NullableJson<string[]>
  events_delivered: Json<string[]>
  description: string | null
  status: Generated<'enabled' | 'paused' | 'disabled'>
  status_reason: string | null
  status_jti: string | null
  client_token_version: Generated<number>
  cursor_transaction_id: Generated<string>
  cursor_id: Generated<number>
  beginnings: Generated<number>
  verification_jti: string | null
  verification_state: string | null
  verification_requested_at: NullableTimestamp
  failing_since: NullableTimestamp
  last_error: string | null
  refusals: Generated<number>
  last_refused_at: NullableTimestamp
  last_refusal: string | null
  active_at: DefaultNow
  expires_at: NullableTimestamp
  created_at: DefaultNow
}

export interface SignalReceiptsTable {
  stream_id: string
  revocation_id: number
  refusals: Generated<number>
  retry_at: NullableTimestamp
}

export interface SignalPusherTable {
  id: Generated<boolean>
  holder: Generated<string>
  leased_until: DefaultNow
}

export interface AuditEventsTable {
  id: GeneratedAlways<number>
  transaction_id: GeneratedAlways<string>
  occurred_at: DefaultNow
  action: string
  actor_type: 'user' | 'client' | 'operator' | 'system' | 'anonymous'
  actor_id: string
  on_behalf_of: string | null
  request_id: string | null
  target_type: string
  target_id: string
  details: JsonWithDefault<Record<string, unknown>>
  sequence: number | null
  previous_hash: NullableBytes
  hash: NullableBytes
}

export interface AuditChainTable {
  id: Generated<boolean>
  sequence: number
  hash: Bytes
  seal: NullableBytes
  sealed_at: DefaultNow
}

export interface SigningKeysTable {
  kid: string
  algorithm: string
  state: 'next' | 'current' | 'retiring' | 'retired' | 'revoked'
  public_jwk: Json<Record<string, unknown>>
  sealed_private_jwk: NullableBytes
  created_at: DefaultNow
  current_since: NullableTimestamp
  published_until: NullableTimestamp
}

export interface SecretsTable {
  id: string
  purpose: string
  sealed_value: Bytes
  created_at: DefaultNow
  expires_at: NullableTimestamp
}

export interface SettingsTable {
  name: string
  value: ColumnType<unknown, string, string>
  updated_at: DefaultNow
}

export interface ChangeCountersTable {
  topic: string
  version: Generated<number>
}

export interface UsagePlansTable {
  name: string
  rate_limit: number | null
  burst_limit: number | null
  quota_limit: number | null
  quota_period: 'DAY' | 'WEEK' | 'MONTH' | null
  row_version: Generated<number>
  created_at: DefaultNow
  updated_at: DefaultNow
}

export interface ApiKeysTable {
  id: string
  client_id: string
  name: string
  prefix: string
  key_hash: Bytes
  plan: string | null
  created_at: DefaultNow
  last_used_at: NullableTimestamp
  expires_at: NullableTimestamp
}

export interface RateBucketsTable {
  key: string
  tokens: number
  granted: number
  updated_at: Timestamp
  full_at: Timestamp
}

export interface QuotaCountersTable {
  key: string
  period: 'DAY' | 'WEEK' | 'MONTH'
  starts_at: Timestamp
  ends_at: Timestamp
  used: number
  granted: number
}

export interface ApiUsageTable {
  day: ColumnType<Date, string, string>
  version: string
  client_id: string
  user_agent: string
  endpoint: string
  requests: number
  errors: number
  last_seen_at: Timestamp
}

export interface IdempotencyKeysTable {
  caller_id: string
  key: string
  fingerprint: Bytes
  claimed_by: string
  locked_until: Timestamp
  sealed_answer: NullableBytes
  created_at: DefaultNow
  expires_at: Timestamp
}
