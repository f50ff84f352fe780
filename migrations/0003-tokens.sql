-- What the protocol keeps: sessions, grants, codes, tokens; what is revoked; the audit record.

CREATE TABLE artifacts (
  kind text NOT NULL,
  -- SHA-256 of the value that was handed out; a Grant, which is nobody's credential, has its own id.
  id text NOT NULL,
  -- The family: everything that came from one sign-in of one person at one client.
  grant_id text,
  session_uid text,
  user_id text REFERENCES users (id) ON DELETE CASCADE,
  client_id text REFERENCES clients (id) ON DELETE CASCADE,
  user_code text,
  sign_in_version integer,
  payload jsonb NOT NULL,
  consumed_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (kind, id)
);

CREATE INDEX artifacts_grant ON artifacts (grant_id) WHERE grant_id IS NOT NULL;
CREATE INDEX artifacts_user ON artifacts (user_id, kind) WHERE user_id IS NOT NULL;
CREATE INDEX artifacts_client ON artifacts (client_id, kind) WHERE client_id IS NOT NULL;
CREATE INDEX artifacts_session ON artifacts (session_uid) WHERE session_uid IS NOT NULL;
CREATE INDEX artifacts_user_code ON artifacts (user_code) WHERE user_code IS NOT NULL;
CREATE INDEX artifacts_expires_at ON artifacts (expires_at);

-- The answer to a refresh, sealed under the refresh token that asked for it, for as long as that token may ask again.
CREATE TABLE refresh_replies (
  token_id text PRIMARY KEY,
  grant_id text NOT NULL,
  request_hash bytea NOT NULL,
  sealed_reply bytea NOT NULL,
  expires_at timestamptz NOT NULL
);

CREATE INDEX refresh_replies_grant ON refresh_replies (grant_id);
CREATE INDEX refresh_replies_expires_at ON refresh_replies (expires_at);

-- The denylist, the provider's own check and the feed to the services in one: ordered by transaction.
CREATE TABLE revocations (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
  kind text NOT NULL CHECK (kind IN ('token', 'grant', 'session', 'user', 'client', 'key')),
  subject text NOT NULL,
  -- for kind user: tokens with a lower token_version are dead
  token_version integer,
  reason text NOT NULL,
  revoked_at timestamptz NOT NULL DEFAULT now(),
  -- by then every token that this row speaks of has expired
  expires_at timestamptz NOT NULL
);

CREATE INDEX revocations_subject ON revocations (subject, kind);
CREATE INDEX revocations_order ON revocations (transaction_id, id);
CREATE INDEX revocations_expires_at ON revocations (expires_at);

CREATE TABLE audit_events (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
  occurred_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  action text NOT NULL,
  actor_type text NOT NULL CHECK (actor_type IN ('user', 'client', 'operator', 'system', 'anonymous')),
  actor_id text NOT NULL,
  on_behalf_of text,
  request_id text,
  target_type text NOT NULL,
  target_id text NOT NULL,
  details jsonb NOT NULL DEFAULT '{}',
  -- Filled by the sealer, which chains the rows by hash.
  sequence bigint UNIQUE,
  previous_hash bytea,
  hash bytea
);

CREATE INDEX audit_events_target ON audit_events (target_type, target_id, id);
CREATE INDEX audit_events_actor ON audit_events (actor_type, actor_id, id);
