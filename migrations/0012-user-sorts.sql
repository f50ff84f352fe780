-- People are listed by name and by when they were changed: a page deep inside must cost what the first does.

CREATE INDEX users_name ON users (name, id);
CREATE INDEX users_updated_at ON users (updated_at, id);
