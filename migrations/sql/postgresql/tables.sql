-- What only Postgres knows about the tables.

-- Truncating the end of the table takes a lock that stops all readers and writers, and cancels queries on standbys.
ALTER TABLE {schema}sqlmq_message SET (vacuum_truncate = off, toast.vacuum_truncate = off);

-- lz4 writes JSON of 10 kB and more at two to three times the rate of the default. Not every server is built with it.
DO $sqlmq$ BEGIN
    ALTER TABLE {schema}sqlmq_message ALTER COLUMN value SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported OR invalid_parameter_value OR syntax_error THEN NULL;
END $sqlmq$;
