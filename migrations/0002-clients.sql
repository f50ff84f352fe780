-- Applications that ask for tokens, what they may ask for, and what people agreed to.

CREATE TABLE clients (
  -- Apart from the users' ids, so that no client can pose as a person (RFC 9700 §4.15).
  id text PRIMARY KEY CHECK (id !~ '^usr_'),
  name text NOT NULL,
  token_endpoint_auth_method text NOT NULL CHECK (token_endpoint_auth_method IN ('none', 'client_secret_basic', 'private_key_jwt')),
  application_type text NOT NULL DEFAULT 'web' CHECK (application_type IN ('web', 'native')),
  grant_types jsonb NOT NULL,
  redirect_uris jsonb NOT NULL DEFAULT '[]',
  post_logout_redirect_uris jsonb NOT NULL DEFAULT '[]',
  backchannel_logout_uri text,
  jwks jsonb,
  jwks_uri text,
  client_uri text,
  logo_uri text,
  policy_uri text,
  tos_uri text,
  -- First-party clients skip the consent page.
  first_party boolean NOT NULL DEFAULT false,
  require_pkce boolean NOT NULL DEFAULT true,
  require_pushed_authorization_requests boolean NOT NULL DEFAULT false,
  dpop_bound_access_tokens boolean NOT NULL DEFAULT false,
  default_resource text REFERENCES resources (id) ON DELETE SET NULL,
  status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
  token_version integer NOT NULL DEFAULT 1,
  row_version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  -- A public client cannot prove who it is, so PKCE is all that protects its codes (RFC 9700 §2.1.1).
  CHECK (require_pkce OR token_endpoint_auth_method <> 'none')
);

-- 256-bit random secrets, so a plain SHA-256 is enough; two may live at once, for rotation.
CREATE TABLE client_secrets (
  id text PRIMARY KEY,
  client_id text NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
  secret_hash bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz
);

CREATE INDEX client_secrets_client ON client_secrets (client_id);

-- What a client may ask of each resource.
CREATE TABLE client_permissions (
  client_id text NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
  resource text NOT NULL,
  permission text NOT NULL,
  PRIMARY KEY (client_id, resource, permission),
  FOREIGN KEY (resource, permission) REFERENCES permissions (resource, permission) ON DELETE CASCADE
);

-- What a person agreed that a client may do; resource '' holds the OpenID Connect scopes.
CREATE TABLE consents (
  user_id text NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  client_id text NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
  resource text NOT NULL,
  scope text NOT NULL,
  granted_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (user_id, client_id, resource, scope)
);
