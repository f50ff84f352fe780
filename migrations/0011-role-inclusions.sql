-- Roles that include others: whoever has one may do what those allow too.

CREATE TABLE role_inclusions (
  role text NOT NULL REFERENCES roles (name) ON DELETE CASCADE,
  included text NOT NULL REFERENCES roles (name) ON DELETE CASCADE,
  PRIMARY KEY (role, included),
  CHECK (role <> included)
);

CREATE INDEX role_inclusions_included ON role_inclusions (included);

-- What comes of it: every role reaches itself, those that it includes, those that these include, and so on. Kept with each
-- change, so that nobody who asks what a person may do has to walk from role to role.
CREATE TABLE role_reach (
  role text NOT NULL REFERENCES roles (name) ON DELETE CASCADE,
  reached text NOT NULL REFERENCES roles (name) ON DELETE CASCADE,
  PRIMARY KEY (role, reached)
);

CREATE INDEX role_reach_reached ON role_reach (reached);

INSERT INTO role_reach (role, reached) SELECT name, name FROM roles;
