-- The end of the audit record's chain, so that rows missing there are missed too; and the rows that wait to be chained.

CREATE TABLE audit_chain (
  -- One row.
  id boolean PRIMARY KEY DEFAULT true CHECK (id),
  -- Of the last row that was chained; 0: none was yet.
  sequence bigint NOT NULL,
  hash bytea NOT NULL,
  -- Keyed, under a secret that the database holds only encrypted; null: nothing was chained yet.
  seal bytea,
  sealed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

INSERT INTO audit_chain (sequence, hash) VALUES (0, decode(repeat('00', 32), 'hex'));

CREATE INDEX audit_events_unsealed ON audit_events (id) WHERE sequence IS NULL;
