-- Requests that were sent under an Idempotency-Key: which are under way, and what those that are done were answered.

CREATE TABLE idempotency_keys (
  -- Keys of different callers have nothing to do with each other.
  caller_id text NOT NULL,
  key text NOT NULL,
  -- SHA-256 of the request: the same key with another one is refused.
  fingerprint bytea NOT NULL,
  -- Random, of the attempt that carries the request out; another may take it over when the lock has run out.
  claimed_by text NOT NULL,
  locked_until timestamptz NOT NULL,
  -- Status, headers and body, sealed: they may hold a secret that is shown once. Null: still under way.
  sealed_answer bytea,
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (caller_id, key)
);

CREATE INDEX idempotency_keys_expires_at ON idempotency_keys (expires_at);
