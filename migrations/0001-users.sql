-- People, what they may do, and what is remembered about their sign-ins.

CREATE TABLE users (
  id text PRIMARY KEY CHECK (id ~ '^usr_'),
  email text NOT NULL,
  -- Compared in this form only: NFC, trimmed, lower case.
  email_normalized text NOT NULL UNIQUE,
  email_verified boolean NOT NULL DEFAULT false,
  name text,
  -- The standard claims of OpenID Connect Core §5.1, by their own names.
  profile jsonb NOT NULL DEFAULT '{}',
  -- What the deployment declares about its people: department, clearance …
  attributes jsonb NOT NULL DEFAULT '{}',
  account_status text NOT NULL DEFAULT 'active' CHECK (account_status IN ('active', 'disabled')),
  -- A PHC string, parameters inside; null: this person cannot sign in by password.
  password_hash text,
  password_changed_at timestamptz,
  -- An access token with a lower token_version is refused.
  token_version integer NOT NULL DEFAULT 1,
  -- A session or family made under a lower sign_in_version is dead.
  sign_in_version integer NOT NULL DEFAULT 1,
  row_version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX users_created_at ON users (created_at, id);

-- A resource is what an access token is for: its audience, its lifetime, its permissions.
CREATE TABLE resources (
  id text PRIMARY KEY,
  name text NOT NULL,
  access_token_lifetime_seconds integer NOT NULL DEFAULT 900 CHECK (access_token_lifetime_seconds BETWEEN 10 AND 86400),
  -- claim name in the access token → name of the user's attribute
  attribute_claims jsonb NOT NULL DEFAULT '{}',
  row_version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);

-- A permission is a resource and `type:action`; a scope is that string.
CREATE TABLE permissions (
  resource text NOT NULL REFERENCES resources (id) ON DELETE CASCADE,
  permission text NOT NULL CHECK (permission ~ '^[a-z][a-z0-9_-]*:[a-z][a-z0-9_-]*$'),
  description text NOT NULL DEFAULT '',
  PRIMARY KEY (resource, permission)
);

CREATE TABLE roles (
  name text PRIMARY KEY,
  description text NOT NULL DEFAULT '',
  row_version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE role_permissions (
  role text NOT NULL REFERENCES roles (name) ON DELETE CASCADE,
  resource text NOT NULL,
  permission text NOT NULL,
  PRIMARY KEY (role, resource, permission),
  FOREIGN KEY (resource, permission) REFERENCES permissions (resource, permission) ON DELETE CASCADE
);

CREATE TABLE user_roles (
  user_id text NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  role text NOT NULL REFERENCES roles (name) ON DELETE CASCADE,
  granted_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (user_id, role)
);

CREATE INDEX user_roles_role ON user_roles (role);

-- Token buckets of failed sign-ins: one per account, per network and per known device.
CREATE TABLE sign_in_throttle (
  key text PRIMARY KEY,
  tokens double precision NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX sign_in_throttle_updated_at ON sign_in_throttle (updated_at);

-- A browser that has signed in before keeps its own bucket, so that strangers cannot lock its owner out.
CREATE TABLE known_devices (
  id text PRIMARY KEY,
  user_id text NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  created_at timestamptz NOT NULL DEFAULT now(),
  last_seen_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL
);

CREATE INDEX known_devices_user ON known_devices (user_id);
CREATE INDEX known_devices_expires_at ON known_devices (expires_at);
