-- The feed of revocations to services: what of a revocation they are told, each event signed once, the streams and how far each of them is.

ALTER TABLE revocations
  -- what the event about it is called: password-change, claims-change, other
  ADD COLUMN cause text NOT NULL DEFAULT 'other',
  ADD COLUMN initiated_by text NOT NULL DEFAULT 'system' CHECK (initiated_by IN ('admin', 'user', 'policy', 'system')),
  ADD COLUMN request_id text;

-- A revocation as it is sent, the same to everybody; it is gone when the revocation is.
CREATE TABLE security_events (
  revocation_id bigint PRIMARY KEY REFERENCES revocations (id) ON DELETE CASCADE,
  jti text NOT NULL UNIQUE,
  kid text NOT NULL,
  signed_set text NOT NULL,
  signed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE signal_streams (
  stream_id text PRIMARY KEY,
  client_id text NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
  delivery_method text NOT NULL CHECK (delivery_method IN ('poll', 'push')),
  endpoint_url text CHECK ((endpoint_url IS NOT NULL) = (delivery_method = 'push')),
  -- sealed under the key-encryption key
  sealed_authorization_header bytea,
  -- as the receiver wrote them; null: all
  events_requested jsonb,
  -- the short names of those of them that there are
  events_delivered jsonb NOT NULL,
  description text,
  status text NOT NULL DEFAULT 'enabled' CHECK (status IN ('enabled', 'paused', 'disabled')),
  status_reason text,
  -- Every revocation up to here, in the order of (transaction_id, id), has arrived; none can be added below it.
  cursor_transaction_id xid8 NOT NULL DEFAULT '0',
  cursor_id bigint NOT NULL DEFAULT 0,
  -- the verification event that is to be sent, or has been and is not acknowledged
  verification_jti text,
  verification_state text,
  verification_requested_at timestamptz,
  -- push: since when every attempt has failed, and how
  failing_since timestamptz,
  last_error text,
  active_at timestamptz NOT NULL DEFAULT now(),
  -- null: it does not end by itself
  expires_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX signal_streams_client ON signal_streams (client_id, active_at);
CREATE INDEX signal_streams_expires_at ON signal_streams (expires_at) WHERE expires_at IS NOT NULL;

-- What has arrived beyond a stream's cursor, which must wait for transactions that are still open; and what its receiver
-- has refused.
CREATE TABLE signal_receipts (
  stream_id text NOT NULL REFERENCES signal_streams (stream_id) ON DELETE CASCADE,
  revocation_id bigint NOT NULL REFERENCES revocations (id) ON DELETE CASCADE,
  refusals integer NOT NULL DEFAULT 0,
  -- refused, and to be sent again from then on; null: it has arrived
  retry_at timestamptz,
  PRIMARY KEY (stream_id, revocation_id)
);

CREATE INDEX signal_receipts_revocation ON signal_receipts (revocation_id);

-- Which process pushes: one at a time, for as long as it says so.
CREATE TABLE signal_pusher (
  id boolean PRIMARY KEY DEFAULT true CHECK (id),
  holder text NOT NULL DEFAULT '',
  leased_until timestamptz NOT NULL DEFAULT now()
);

INSERT INTO signal_pusher DEFAULT VALUES;

INSERT INTO change_counters (topic) VALUES ('signals');

-- Not for how far a stream is, which changes all the time.
CREATE TRIGGER signal_streams_changed AFTER INSERT OR DELETE OR UPDATE OF status, delivery_method, events_delivered, verification_requested_at ON signal_streams FOR EACH STATEMENT EXECUTE FUNCTION announce_change('signals');
