-- Streams say what has become of them: their status to their receivers, what these refuse to operators, and whose credentials they rest on.

ALTER TABLE signal_streams
  -- the event that tells of its status, which is to be sent, or has been and is not acknowledged
  ADD COLUMN status_jti text,
  -- of the token by which its delivery was last agreed to: a push needs no other, so it ends when such tokens do
  ADD COLUMN client_token_version integer NOT NULL DEFAULT 1,
  -- How often its order has begun anew: whoever was moving the cursor meanwhile moves nothing.
  ADD COLUMN beginnings integer NOT NULL DEFAULT 0,
  -- what its receiver could not make use of: how often, when last, and why
  ADD COLUMN refusals bigint NOT NULL DEFAULT 0,
  ADD COLUMN last_refused_at timestamptz,
  ADD COLUMN last_refusal text;

UPDATE signal_streams s SET client_token_version = c.token_version FROM clients c WHERE c.id = s.client_id;
