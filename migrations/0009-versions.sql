-- What its maker names may be made again under a name that was deleted: its versions go on from there, so that a change based on the one before finds none of them.

-- Milliseconds: no row changes so often that its versions, one more with each change, are ahead of the clock.
ALTER TABLE roles ALTER COLUMN row_version SET DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
ALTER TABLE clients ALTER COLUMN row_version SET DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
ALTER TABLE resources ALTER COLUMN row_version SET DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
ALTER TABLE usage_plans ALTER COLUMN row_version SET DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
