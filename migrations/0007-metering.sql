-- Metering: how much each client may call (plans, API keys), what is left of it (buckets, quotas), and who called what.

CREATE TABLE usage_plans (
  name text PRIMARY KEY,
  -- requests a second, and how many may come at once
  rate_limit double precision CHECK (rate_limit > 0),
  burst_limit integer CHECK (burst_limit > 0),
  quota_limit bigint CHECK (quota_limit > 0),
  quota_period text CHECK (quota_period IN ('DAY', 'WEEK', 'MONTH')),
  row_version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  CHECK ((rate_limit IS NULL) = (burst_limit IS NULL)),
  CHECK ((quota_limit IS NULL) = (quota_period IS NULL))
);

CREATE TRIGGER usage_plans_changed AFTER INSERT OR UPDATE OR DELETE ON usage_plans FOR EACH STATEMENT EXECUTE FUNCTION announce_change('clients');

-- null: no limit but that of the network
ALTER TABLE clients ADD COLUMN plan text REFERENCES usage_plans (name);

CREATE INDEX clients_plan ON clients (plan) WHERE plan IS NOT NULL;

-- For callers that cannot do OAuth. 256-bit random values, so a plain SHA-256 is enough.
CREATE TABLE api_keys (
  id text PRIMARY KEY,
  client_id text NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
  name text NOT NULL,
  -- the first characters of the value, by which its owner knows it again
  prefix text NOT NULL,
  key_hash bytea NOT NULL UNIQUE,
  -- null: counts as its client does
  plan text REFERENCES usage_plans (name),
  created_at timestamptz NOT NULL DEFAULT now(),
  last_used_at timestamptz,
  expires_at timestamptz
);

CREATE INDEX api_keys_client ON api_keys (client_id, created_at, id);
CREATE INDEX api_keys_plan ON api_keys (plan) WHERE plan IS NOT NULL;
CREATE INDEX api_keys_expires_at ON api_keys (expires_at) WHERE expires_at IS NOT NULL;

-- Token buckets. A missing one is full, so that nothing is lost with a crash but a few seconds of counting: unlogged.
CREATE UNLOGGED TABLE rate_buckets (
  key text PRIMARY KEY,
  tokens double precision NOT NULL,
  -- what the last statement gave to its process
  granted integer NOT NULL,
  updated_at timestamptz NOT NULL,
  full_at timestamptz NOT NULL
);

CREATE INDEX rate_buckets_full_at ON rate_buckets (full_at);

CREATE TABLE quota_counters (
  key text PRIMARY KEY,
  period text NOT NULL,
  starts_at timestamptz NOT NULL,
  ends_at timestamptz NOT NULL,
  used bigint NOT NULL,
  granted integer NOT NULL
);

CREATE INDEX quota_counters_ends_at ON quota_counters (ends_at);

-- client_id '' is nobody, user_agent '' none.
CREATE TABLE api_usage (
  day date NOT NULL,
  version text NOT NULL,
  client_id text NOT NULL,
  user_agent text NOT NULL,
  endpoint text NOT NULL,
  requests bigint NOT NULL,
  errors bigint NOT NULL,
  last_seen_at timestamptz NOT NULL,
  PRIMARY KEY (day, version, client_id, user_agent, endpoint)
);
