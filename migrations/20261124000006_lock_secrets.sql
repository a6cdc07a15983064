-- Locks those of these secrets that there are until the transaction ends, and gives each with its labels `current` and
-- `previous`. All that moves these labels locks the secret's row first. The second statement sees what was committed before the
-- rows were locked; one statement would join the labels as they were before it had to wait. A secret that was added
-- meanwhile is not locked, and not given.
CREATE FUNCTION lock_secrets(wanted text[]) RETURNS TABLE (
    path text, id uuid, keyspace_id uuid, newest_version integer,
    current_version integer, current_generation bigint, current_mac bytea,
    previous_version integer, previous_generation bigint, previous_mac bytea
) LANGUAGE plpgsql AS $$
DECLARE
    -- In one order, so that two transactions wait for each other and not crosswise.
    locked uuid[] := ARRAY(SELECT s.id FROM secrets AS s WHERE s.path = ANY (wanted) ORDER BY s.path FOR UPDATE);
BEGIN
    RETURN QUERY
    SELECT s.path, s.id, s.keyspace_id, s.newest_version, c.version, c.generation, c.mac, p.version, p.generation, p.mac
    FROM secrets AS s
    -- One step into an index each: for tables that were never analysed the planner would rather read all labels.
    LEFT JOIN LATERAL (SELECT l.version, l.generation, l.mac FROM secret_labels AS l
                       WHERE l.secret_id = s.id AND l.label = 'current' LIMIT 1) AS c ON true
    LEFT JOIN LATERAL (SELECT l.version, l.generation, l.mac FROM secret_labels AS l
                       WHERE l.secret_id = s.id AND l.label = 'previous' LIMIT 1) AS p ON true
    WHERE s.id = ANY (locked);
END
$$;
