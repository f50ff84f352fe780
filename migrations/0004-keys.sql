-- Keys and secrets, sealed under the key-encryption key; settings; and the counters that tell other processes of a change.

CREATE TABLE signing_keys (
  kid text PRIMARY KEY,
  algorithm text NOT NULL,
  state text NOT NULL CHECK (state IN ('next', 'current', 'retiring', 'retired', 'revoked')),
  public_jwk jsonb NOT NULL,
  -- null once the key can sign no more
  sealed_private_jwk bytea,
  created_at timestamptz NOT NULL DEFAULT now(),
  current_since timestamptz,
  -- a retiring key stays published until then
  published_until timestamptz
);

-- One key signs, one waits: in every process, by the database's word.
CREATE UNIQUE INDEX signing_keys_one_current ON signing_keys (algorithm) WHERE state = 'current';
CREATE UNIQUE INDEX signing_keys_one_next ON signing_keys (algorithm) WHERE state = 'next';

-- The other secrets (cookies, CSRF, cursors, throttle, nonces): made once, replaced by rotation.
CREATE TABLE secrets (
  id text PRIMARY KEY,
  purpose text NOT NULL,
  sealed_value bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  -- null: the one in use; else it is still accepted until then
  expires_at timestamptz
);

CREATE UNIQUE INDEX secrets_one_current ON secrets (purpose) WHERE expires_at IS NULL;

CREATE TABLE settings (
  name text PRIMARY KEY,
  value jsonb NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE change_counters (
  topic text PRIMARY KEY,
  version bigint NOT NULL DEFAULT 1
);

INSERT INTO change_counters (topic) VALUES ('clients'), ('keys'), ('settings');

-- Whoever changes a row announces it, psql included: processes that keep a copy read it anew.
CREATE FUNCTION announce_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE change_counters SET version = version + 1 WHERE topic = TG_ARGV[0];
  PERFORM pg_notify('latchkey', TG_ARGV[0]);
  RETURN NULL;
END
$$;

CREATE TRIGGER clients_changed AFTER INSERT OR UPDATE OR DELETE ON clients FOR EACH STATEMENT EXECUTE FUNCTION announce_change('clients');
CREATE TRIGGER client_secrets_changed AFTER INSERT OR UPDATE OR DELETE ON client_secrets FOR EACH STATEMENT EXECUTE FUNCTION announce_change('clients');
CREATE TRIGGER client_permissions_changed AFTER INSERT OR UPDATE OR DELETE ON client_permissions FOR EACH STATEMENT EXECUTE FUNCTION announce_change('clients');
CREATE TRIGGER resources_changed AFTER INSERT OR UPDATE OR DELETE ON resources FOR EACH STATEMENT EXECUTE FUNCTION announce_change('clients');
CREATE TRIGGER permissions_changed AFTER INSERT OR UPDATE OR DELETE ON permissions FOR EACH STATEMENT EXECUTE FUNCTION announce_change('clients');
CREATE TRIGGER signing_keys_changed AFTER INSERT OR UPDATE OR DELETE ON signing_keys FOR EACH STATEMENT EXECUTE FUNCTION announce_change('keys');
CREATE TRIGGER secrets_changed AFTER INSERT OR UPDATE OR DELETE ON secrets FOR EACH STATEMENT EXECUTE FUNCTION announce_change('keys');
CREATE TRIGGER settings_changed AFTER INSERT OR UPDATE OR DELETE ON settings FOR EACH STATEMENT EXECUTE FUNCTION announce_change('settings');

CREATE FUNCTION announce_revocation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('latchkey', 'revocations');
  RETURN NULL;
END
$$;

CREATE TRIGGER revocations_changed AFTER INSERT ON revocations FOR EACH STATEMENT EXECUTE FUNCTION announce_revocation();
