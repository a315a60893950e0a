DROP FUNCTION {schema}sqlmq_append_anywhere(bigint[], bytea[], text[], integer);

-- For messages that any partition will do for: locks the first of those wanted that nobody else has locked, so that
-- producers do not wait for each other's commits. If all are locked it is the first, for whose lock sqlmq_append waits.
CREATE FUNCTION {schema}sqlmq_free_partition(wanted bigint[]) RETURNS bigint
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan{search_path} AS $sqlmq$
DECLARE
    free bigint;
BEGIN
    SELECT p.id INTO free
    FROM unnest(wanted) WITH ORDINALITY AS w (id, place)
    JOIN {schema}sqlmq_partition p ON p.id = w.id AND p.topic_id IS NOT NULL
    ORDER BY w.place
    LIMIT 1
    FOR NO KEY UPDATE OF p SKIP LOCKED;
    RETURN coalesce(free, wanted[1]);
END
$sqlmq$;
